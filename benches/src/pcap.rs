//! Writing packet files in the classic format of libpcap: the simplest that every reader knows.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::error::BenchError;

/// Little endian, microseconds; version 2.4; no time zone; frames of at most 65535 bytes; Ethernet.
const HEADER: [u8; 24] = {
    let mut header = [0; 24];
    let (magic, version, snap, link) =
        (0xa1b2_c3d4_u32.to_le_bytes(), [2, 0, 4, 0], 0xffff_u32.to_le_bytes(), 1);
    let mut at = 0;
    while at < 4 {
        header[at] = magic[at];
        header[4 + at] = version[at];
        header[16 + at] = snap[at];
        at += 1;
    }
    header[20] = link;
    header
};

/// Writes frames into a new file; gives how many they were.
///
/// # Errors
/// The file cannot be written, or a frame could not be made.
pub(crate) fn write_file(
    path: &Path,
    frames: impl Iterator<Item = Result<Vec<u8>, BenchError>>,
) -> Result<usize, BenchError> {
    let error = |source| BenchError::File { path: path.to_owned(), source };
    let mut out = BufWriter::new(File::create(path).map_err(error)?);
    out.write_all(&HEADER).map_err(error)?;
    let mut count = 0;
    for frame in frames {
        write_frame(&mut out, &frame?).map_err(error)?;
        count += 1;
    }
    out.flush().map_err(error)?;
    Ok(count)
}

/// One record: time zero, captured and original length, the frame.
fn write_frame(out: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?.to_le_bytes();
    out.write_all(&[0; 8])?;
    out.write_all(&length)?;
    out.write_all(&length)?;
    out.write_all(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of its own: magic number, then records until the end.
    fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (0xa1b2_c3d4, 65_535, 1));
        assert_eq!((bytes[4], bytes[6]), (2, 4));
        let (mut at, mut frames) = (24, Vec::new());
        while at < bytes.len() {
            let length = word(at + 8);
            assert_eq!(length, word(at + 12));
            at += 16;
            frames.push(bytes[at..at + length as usize].to_vec());
            at += length as usize;
        }
        frames
    }

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames.pcap");
        let frames = vec![vec![1; 60], Vec::new(), (0..255).collect::<Vec<u8>>()];
        assert_eq!(write_file(&path, frames.clone().into_iter().map(Ok)).unwrap(), 3);
        assert_eq!(read(&std::fs::read(&path).unwrap()), frames);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = write_file(Path::new("/no/such/folder/a.pcap"), std::iter::empty()).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/folder/a.pcap: No such file"), "{error}");
    }
}

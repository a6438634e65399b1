//! How much memory a process has.

use std::fs;
use std::path::PathBuf;

use crate::error::BenchError;

/// Memory of a process, as the kernel counts it; huge pages of hugetlbfs do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Bytes that are in memory now.
    pub bytes: u64,
    /// The most that ever were.
    pub peak_bytes: u64,
}

/// The memory of a process.
pub(crate) fn resident(process_id: u32) -> Result<Resident, BenchError> {
    let path = PathBuf::from(format!("/proc/{process_id}/status"));
    let text = fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })?;
    Ok(Resident { bytes: bytes_of(&text, "VmRSS:"), peak_bytes: bytes_of(&text, "VmHWM:") })
}

fn bytes_of(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let status = "Name:\tforebay\nVmHWM:\t  7 kB\nVmRSS:\t  123456 kB\nVmData:\t 7 kB\n";
        assert_eq!((bytes_of(status, "VmRSS:"), bytes_of(status, "VmHWM:")), (123_456 * 1024, 7 * 1024));
        assert_eq!(bytes_of("", "VmRSS:"), 0);
        let own = resident(std::process::id()).unwrap();
        assert!(own.bytes > 1 << 20 && own.peak_bytes > 1 << 20);
        assert!(resident(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/status"));
    }
}

//! The lines of a rule file, one at a time, in one buffer whose size does not depend on the file's.

use std::io::{BufRead, BufReader, Read};

use forebay_api::rule_json::MAX_RULE_BYTES;

use super::failure::LineProblem;

/// Reads lines that have something in them, and counts all of them.
pub struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: Read> Lines<BufReader<R>> {
    /// Whether some of the next line has been read already.
    pub fn has_more(&self) -> bool {
        !self.input.buffer().is_empty()
    }
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), number: 0 }
    }

    /// The number of the line that was read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The next line that is not blank, without surrounding white space; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read, or the line is too long or not UTF-8.
    pub fn next_line(&mut self) -> Result<Option<&str>, LineProblem> {
        loop {
            self.number += 1;
            if !self.fill()? {
                return Ok(None);
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        std::str::from_utf8(self.buffer.trim_ascii()).map(Some).map_err(LineProblem::Utf8)
    }

    /// Reads one line into the buffer; false at the input's end.
    fn fill(&mut self) -> Result<bool, LineProblem> {
        self.buffer.clear();
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LineProblem::Read(error)),
            };
            if chunk.is_empty() {
                return Ok(!self.buffer.is_empty());
            }
            let end = memchr::memchr(b'\n', chunk);
            let taken = end.map_or(chunk.len(), |end| end + 1);
            // A rule of exactly the limit, and its line end.
            if self.buffer.len() + taken > MAX_RULE_BYTES + 2 {
                return Err(LineProblem::TooLong);
            }
            self.buffer.extend_from_slice(&chunk[..taken]);
            self.input.consume(taken);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Result<Vec<(u64, String)>, (u64, LineProblem)> {
        // A tiny buffer: lines cross its end.
        let mut lines = Lines::new(BufReader::with_capacity(3, input));
        let mut all = Vec::new();
        loop {
            match lines.next_line().map(|line| line.map(str::to_owned)) {
                Ok(Some(line)) => all.push((lines.number(), line)),
                Ok(None) => return Ok(all),
                Err(problem) => return Err((lines.number(), problem)),
            }
        }
    }

    #[test]
    fn skips_blank_lines_and_counts_them() {
        let lines = read(b"\n one \r\n\n  \t\ntwo").unwrap();
        assert_eq!(lines, [(2, "one".to_owned()), (5, "two".to_owned())]);
        assert!(read(b"").unwrap().is_empty());
    }

    #[test]
    fn names_the_line_that_is_not_utf8() {
        let (number, problem) = read(b"one\ntwo\xff\n").unwrap_err();
        assert_eq!((number, problem.to_string().as_str()), (2, "not UTF-8 at byte 4 (JSON is UTF-8)"));
    }

    #[test]
    fn an_endless_line_is_refused_at_the_limit() {
        let mut input = vec![b'x'; MAX_RULE_BYTES];
        input.extend_from_slice(b"\r\n");
        assert_eq!(read(&input).unwrap().len(), 1);
        assert!(matches!(read(&vec![b'x'; MAX_RULE_BYTES + 3]), Err((1, LineProblem::TooLong))));
    }
}

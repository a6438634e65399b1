//! How much memory a process has.

use std::fs;
use std::path::PathBuf;

use crate::error::BenchError;

/// Bytes of a process that are in memory now, as the kernel counts them; huge pages of hugetlbfs do not count.
pub(crate) fn resident_bytes(process_id: u32) -> Result<u64, BenchError> {
    let path = PathBuf::from(format!("/proc/{process_id}/status"));
    let text = fs::read_to_string(&path).map_err(|source| BenchError::File { path, source })?;
    Ok(resident(&text))
}

fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(resident("Name:\tforebay\nVmRSS:\t  123456 kB\nVmData:\t 7 kB\n"), 123_456 * 1024);
        assert_eq!(resident(""), 0);
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 20);
        assert!(resident_bytes(u32::MAX).unwrap_err().to_string().contains("/proc/4294967295/status"));
    }
}

//! How many huge pages the machine has to give, and whether to use them.

use std::fs::File;
use std::path::Path;
use std::{fs, io};

use crate::error::EalError;

/// Whether packet memory comes from huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hugepages {
    /// If enough are free; otherwise plain memory. Slower to translate, the same otherwise.
    #[default]
    Auto,
    /// From huge pages or not at all.
    Required,
    /// From plain memory.
    Off,
}

/// Where the kernel tells of its huge pages, one folder a size.
const SYSFS: &str = "/sys/kernel/mm/hugepages";

/// The huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageSize {
    kib: u64,
    total: u64,
    free: u64,
}

impl Hugepages {
    /// Decides for `needed_mib` of memory. Errors: they are required and too few are free.
    pub(crate) fn decide(self, needed_mib: u32) -> Result<bool, EalError> {
        self.decide_by(&page_sizes(Path::new(SYSFS)).unwrap_or_default(), u64::from(needed_mib))
    }

    fn decide_by(self, sizes: &[PageSize], needed_mib: u64) -> Result<bool, EalError> {
        let free_mib: u64 = sizes.iter().map(|size| size.free * size.kib / 1024).sum();
        match self {
            Self::Off => Ok(false),
            Self::Auto => Ok(free_mib >= needed_mib),
            Self::Required if free_mib >= needed_mib => Ok(true),
            Self::Required => {
                // nr_hugepages counts the default size, which is the smallest wherever nobody chose otherwise.
                let default = sizes.iter().min_by_key(|size| size.kib).copied();
                let default = default.unwrap_or(PageSize { kib: 2048, total: 0, free: 0 });
                let missing_kib = (needed_mib - free_mib) * 1024;
                let pages = default.total + missing_kib.div_ceil(default.kib);
                Err(EalError::TooFewHugepages { free_mib, needed_mib, pages })
            }
        }
    }
}

/// Waits until no other process of ours stands between counting the free pages and taking them; the next one may go on once
/// the file is dropped. `None` where there is nothing to wait for.
pub(crate) fn take_turn() -> Option<File> {
    take_turn_at(Path::new(SYSFS))
}

fn take_turn_at(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

fn page_sizes(sysfs: &Path) -> io::Result<Vec<PageSize>> {
    let mut sizes = Vec::new();
    for folder in fs::read_dir(sysfs)? {
        let folder = folder?;
        let name = folder.file_name();
        let kib =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok());
        let count = |file| fs::read_to_string(folder.path().join(file)).ok()?.trim().parse().ok();
        if let (Some(kib), Some(total), Some(free)) = (kib, count("nr_hugepages"), count("free_hugepages")) {
            sizes.push(PageSize { kib, total, free });
        }
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn one_at_a_time_counts_and_takes_pages() {
        let take = || take_turn_at(Path::new(env!("CARGO_MANIFEST_DIR")));
        let turn = take().unwrap();
        let (sender, receiver) = mpsc::channel();
        let other = std::thread::spawn(move || sender.send(take().is_some()).unwrap());
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err(), "the other one waits");
        drop(turn);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(true));
        other.join().unwrap();
    }

    const SIZES: [PageSize; 2] =
        [PageSize { kib: 2048, total: 100, free: 32 }, PageSize { kib: 1_048_576, total: 1, free: 0 }];

    #[test]
    fn auto_uses_them_only_when_enough_are_free() {
        assert_eq!(Hugepages::Auto.decide_by(&SIZES, 64), Ok(true));
        assert_eq!(Hugepages::Auto.decide_by(&SIZES, 65), Ok(false));
        assert_eq!(Hugepages::Off.decide_by(&SIZES, 1), Ok(false));
    }

    #[test]
    fn required_names_what_is_free_and_the_command() {
        let error = Hugepages::Required.decide_by(&SIZES, 512).unwrap_err();
        assert_eq!(error, EalError::TooFewHugepages { free_mib: 64, needed_mib: 512, pages: 324 });
        assert!(error.to_string().contains("echo 324 > /proc/sys/vm/nr_hugepages"), "{error}");
        let error = Hugepages::Required.decide_by(&[], 512).unwrap_err();
        assert!(error.to_string().contains("echo 256 >"), "{error}");
    }

    #[test]
    fn reads_the_kernels_folders() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("hugepages-2048kB");
        fs::create_dir(&page).unwrap();
        fs::write(page.join("nr_hugepages"), "100\n").unwrap();
        fs::write(page.join("free_hugepages"), "32\n").unwrap();
        fs::create_dir(folder.path().join("else")).unwrap();
        assert_eq!(page_sizes(folder.path()).unwrap(), [SIZES[0]]);
    }
}

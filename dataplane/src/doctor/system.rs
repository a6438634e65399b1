//! The kernel's files, below a root. Whatever cannot be read is absent: a machine lacks many of them, and each concern
//! knows what it means that one is not there.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_pipeline::cores;

/// Where /proc, /sys and the rest begin.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// This machine.
    #[must_use]
    pub fn this() -> Self {
        Self::below("/")
    }

    /// A machine whose files stand below a folder.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where a file is that this machine knows by an absolute path.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file, without blanks around it.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The number that a file holds.
    pub(super) fn number(&self, path: impl AsRef<Path>) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// The cores that a file lists; none where it lists none.
    pub(super) fn cores(&self, path: impl AsRef<Path>) -> Option<Vec<usize>> {
        let text = self.text(path)?;
        Some(cores::parse(&text).unwrap_or_default())
    }

    /// What is in a folder, sorted; a number within a name counts as a number.
    pub(super) fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let number = |name: &str| name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().ok();
        names.sort_by(|a, b| (number(a), a).cmp(&(number(b), b)));
        names
    }

    /// The last part of what a link names.
    pub(super) fn link(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Whether something is there.
    pub(super) fn has(&self, path: impl AsRef<Path>) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }

    /// A word of the kernel's command line: what stands behind `KEY=`. The last one counts.
    pub(super) fn boot_argument(&self, key: &str) -> Option<String> {
        let line = self.text("/proc/cmdline")?;
        let mut words = line.split_whitespace().rev();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    }
}

/// The command that adds a word to the kernel's command line, for good: where Debian and Ubuntu look for such words.
pub(super) fn add_boot_argument(word: &str) -> String {
    format!(
        "echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {word}\"' >> /etc/default/grub.d/forebay.cfg && \
         update-grub && reboot"
    )
}

//! What was changed, and how it was before: one JSON file, which outlives the process that wrote it.
//!
//! It is written before a change is made and after it is undone, as a whole and in one step (rename), under a lock that
//! every process takes. It is in `/run`, which a reboot empties: so does a reboot with VFs and bindings. Restoring what is
//! as it was already does nothing, so a record of a change that a crash prevented is harmless.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::VfError;
use super::settings::VfSettings;

/// Where the record is kept.
pub(super) const FOLDER: &str = "/run/forebay/vf";

/// The form of the file; another number is a file of another program.
const VERSION: u32 = 1;

/// Who changed something, and so who restores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// `forebay vf`: it stays until it is released.
    Command,
    /// The daemon of the host with this name: it is restored when the daemon ends.
    Daemon(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command => f.write_str("command"),
            Self::Daemon(name) => write!(f, "daemon {name}"),
        }
    }
}

/// All that was changed, by PCI address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    version: u32,
    /// PFs whose number of VFs was changed.
    pub(super) physical: BTreeMap<String, PfRecord>,
    /// Functions that were bound to another driver, or whose settings were changed.
    pub(super) functions: BTreeMap<String, FunctionRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PfRecord {
    pub(super) former_vfs: u32,
    /// Whether drivers took its VFs by themselves; `None` where the kernel has no such switch.
    pub(super) former_autoprobe: Option<String>,
    pub(super) owner: Owner,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FunctionRecord {
    /// The PF's address and the VF's number; `None` for what is no VF.
    pub(super) vf: Option<(String, u32)>,
    pub(super) former_driver: Option<String>,
    pub(super) former_override: Option<String>,
    /// The settings that were changed, as they were.
    pub(super) former_settings: VfSettings,
    /// vfio's mode without IOMMU was switched on for it.
    pub(super) no_iommu: bool,
    pub(super) owner: Owner,
}

impl Default for Records {
    fn default() -> Self {
        Self { version: VERSION, physical: BTreeMap::new(), functions: BTreeMap::new() }
    }
}

impl Records {
    /// The functions with a record that are VFs of a PF.
    pub(super) fn vfs_of(&self, pf: &str) -> Vec<String> {
        let all = self.functions.iter();
        let of = all.filter(|(_, record)| record.vf.as_ref().is_some_and(|(address, _)| address == pf));
        of.map(|(address, _)| address.clone()).collect()
    }
}

/// The file.
pub(super) struct RecordFile {
    folder: PathBuf,
}

/// The file while nobody else may change it.
pub(super) struct Locked {
    path: PathBuf,
    pub(super) records: Records,
    _lock: File,
}

impl RecordFile {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("record.json")
    }

    /// What it has now.
    pub(super) fn read(&self) -> Result<Records, VfError> {
        read(&self.path())
    }

    /// Takes the lock, and waits for it: changes take moments.
    pub(super) fn lock(&self) -> Result<Locked, VfError> {
        let error = |path: &Path, source| VfError::File {
            path: path.to_owned(),
            source,
            remedy: "changing functions needs root",
        };
        fs::create_dir_all(&self.folder).map_err(|source| error(&self.folder, source))?;
        let path = self.folder.join("lock");
        let lock = File::create(&path).map_err(|source| error(&path, source))?;
        lock.lock().map_err(|source| error(&path, source))?;
        Ok(Locked { path: self.path(), records: self.read()?, _lock: lock })
    }
}

impl Locked {
    /// Writes the records.
    pub(super) fn save(&self) -> Result<(), VfError> {
        let beside = self.path.with_extension("new");
        let written = serde_json::to_vec_pretty(&self.records).map_err(io::Error::other).and_then(|text| {
            fs::write(&beside, text)?;
            fs::rename(&beside, &self.path)
        });
        written.map_err(|source| VfError::File {
            path: self.path.clone(),
            source,
            remedy: "changing functions needs root, and room in /run",
        })
    }
}

fn read(path: &Path) -> Result<Records, VfError> {
    let damaged = |source: io::Error| VfError::File {
        path: path.to_owned(),
        source,
        remedy: "it records what forebay changed; remove it to forget that",
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Records::default()),
        Err(error) => return Err(damaged(error)),
    };
    let records: Records = serde_json::from_str(&text).map_err(|error| damaged(io::Error::other(error)))?;
    if records.version != VERSION {
        let reason = format!("version {} of the file, not {VERSION}", records.version);
        return Err(damaged(io::Error::other(reason)));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_the_process_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = RecordFile::new(folder.path().join("vf"));
        assert_eq!(file.read().unwrap(), Records::default());
        let mut locked = file.lock().unwrap();
        let record = FunctionRecord {
            vf: Some(("0000:3b:00.0".into(), 3)),
            former_driver: Some("igbvf".into()),
            former_override: None,
            former_settings: VfSettings { mac: Some([0; 6]), ..VfSettings::default() },
            no_iommu: false,
            owner: Owner::Daemon("host-a".into()),
        };
        locked.records.functions.insert("0000:3b:02.3".into(), record);
        let pf = PfRecord { former_vfs: 0, former_autoprobe: Some("1".into()), owner: Owner::Command };
        locked.records.physical.insert("0000:3b:00.0".into(), pf);
        locked.save().unwrap();
        let written = locked.records.clone();
        drop(locked);
        assert_eq!(file.lock().unwrap().records, written);
        assert_eq!(written.vfs_of("0000:3b:00.0"), ["0000:3b:02.3"]);
        assert!(written.vfs_of("0000:3b:00.1").is_empty());
        for text in ["{", "{}", r#"{"version":2,"physical":{},"functions":{}}"#] {
            fs::write(file.path(), text).unwrap();
            let error = file.read().unwrap_err().to_string();
            assert!(error.contains("record.json") && error.contains("remove it"), "{error}");
        }
    }
}

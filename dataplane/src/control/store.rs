//! What survives a restart: rules, and the ports that were added over the control socket.
//!
//! One `redb` file in the state directory. Every change is one transaction, on disk before [`Store::write`] returns:
//! after a crash at any instant each change is there as a whole or not at all. Values are protobuf messages of the control
//! API, so that newer versions can read older files.

use forebay_api::v1;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const RULES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rules");
const PORTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ports");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The file's name in the state directory.
const FILE: &str = "forebay.redb";
/// What the file holds; raised when older programs could not read it.
const FORMAT: u64 = 1;
/// Pages that redb keeps in memory. Rules are read at start and for `rule list` only.
const CACHE_BYTES: usize = 64 << 20;

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("state directory {}: {source} (set host.state to a directory that this user can write)", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file cannot be opened.
    #[error("state file {}: {source} (is another forebay using it? is it damaged? move it away to start empty)", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// The file was written by a newer program.
    #[error("state file {}: format {format} is newer than {FORMAT} (use the forebay that wrote it)", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
    },
    /// A read or write failed.
    #[error("state file {}: {source} (is the disk full?)", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// A value cannot be read.
    #[error("state file {}: {table} {key:?} is damaged: {source} (delete it, or move the file away to start empty)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Rules or ports.
        table: &'static str,
        /// Which.
        key: String,
        /// What the decoder says.
        source: prost::DecodeError,
    },
}

/// A change of the state.
#[derive(Default)]
pub struct Change {
    /// Rules to write: id, and the encoded message.
    pub put_rules: Vec<(Arc<str>, Box<[u8]>)>,
    /// Ids of rules to delete.
    pub delete_rules: Vec<String>,
    /// Ports to write.
    pub put_ports: Vec<v1::PortSpec>,
    /// Names of ports to delete.
    pub delete_ports: Vec<String>,
}

/// The state file.
pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the state file in `directory`; makes both where they are missing.
    ///
    /// # Errors
    /// The directory or the file cannot be used.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join(FILE);
        let open = || -> Result<(Database, u64), redb::Error> {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path)?;
            let write = database.begin_write()?;
            let format = {
                let mut meta = write.open_table(META)?;
                let found = meta.get("format")?.map(|value| value.value());
                let format = found.unwrap_or(FORMAT);
                if found.is_none() {
                    meta.insert("format", FORMAT)?;
                }
                write.open_table(RULES)?;
                write.open_table(PORTS)?;
                format
            };
            write.commit()?;
            Ok((database, format))
        };
        let (database, format) =
            open().map_err(|source| StoreError::Open { path: path.clone(), source: Box::new(source) })?;
        if format > FORMAT { Err(StoreError::Format { path, format }) } else { Ok(Store { database, path }) }
    }

    /// Makes a change durable: on disk, whole, when this returns.
    ///
    /// # Errors
    /// Nothing was changed.
    pub fn write(&self, change: &Change) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                let mut rules = write.open_table(RULES)?;
                for id in &change.delete_rules {
                    rules.remove(id.as_str())?;
                }
                for (id, encoded) in &change.put_rules {
                    rules.insert(&**id, &**encoded)?;
                }
                let mut ports = write.open_table(PORTS)?;
                for name in &change.delete_ports {
                    ports.remove(name.as_str())?;
                }
                for port in &change.put_ports {
                    ports.insert(port.name.as_str(), port.encode_to_vec().as_slice())?;
                }
            }
            write.commit()?;
            Ok(())
        };
        write().map_err(|source| self.io(source))
    }

    /// Every rule, in the order of the ids.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rules(&self) -> Result<Vec<v1::Rule>, StoreError> {
        self.all(RULES, "rule")
    }

    /// Every port that was added over the control socket.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn ports(&self) -> Result<Vec<v1::PortSpec>, StoreError> {
        self.all(PORTS, "port")
    }

    /// The rules of these ids that are there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rules_by_id<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<Vec<v1::Rule>, StoreError> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(RULES)?;
            let mut found = Vec::new();
            for id in ids {
                if let Some(value) = table.get(id)? {
                    found.push((id.to_owned(), value.value().to_vec()));
                }
            }
            Ok(found)
        };
        let found = read().map_err(|source| self.io(source))?;
        found.into_iter().map(|(id, bytes)| self.decode(&bytes, "rule", &id)).collect()
    }

    fn all<M: Message + Default>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
        what: &'static str,
    ) -> Result<Vec<M>, StoreError> {
        let read = || -> Result<Vec<Result<M, StoreError>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(table)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                found.push(self.decode(value.value(), what, key.value()));
            }
            Ok(found)
        };
        read().map_err(|source| self.io(source))?.into_iter().collect()
    }

    fn decode<M: Message + Default>(
        &self,
        bytes: &[u8],
        table: &'static str,
        key: &str,
    ) -> Result<M, StoreError> {
        M::decode(bytes).map_err(|source| StoreError::Damaged {
            path: self.path.clone(),
            table,
            key: key.to_owned(),
            source,
        })
    }

    fn io(&self, source: redb::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, priority: u32) -> v1::Rule {
        v1::Rule { id: id.into(), priority, ..v1::Rule::default() }
    }

    fn put(rule: v1::Rule) -> (Arc<str>, Box<[u8]>) {
        (rule.id.as_str().into(), rule.encode_to_vec().into())
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let store = Store::open(&path).unwrap();
        let port = v1::PortSpec { name: "vm1".into(), ..v1::PortSpec::default() };
        let change = Change {
            put_rules: vec![put(rule("b", 2)), put(rule("a", 1))],
            put_ports: vec![port.clone()],
            ..Change::default()
        };
        store.write(&change).unwrap();
        store
            .write(&Change {
                put_rules: vec![put(rule("b", 3))],
                delete_rules: vec!["a".into()],
                ..Change::default()
            })
            .unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.rules().unwrap(), [rule("b", 3)]);
        assert_eq!(store.ports().unwrap(), [port]);
        assert_eq!(store.rules_by_id(["a", "b"].into_iter()).unwrap(), [rule("b", 3)]);
    }

    #[test]
    fn a_second_user_and_an_impossible_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(matches!(Store::open(directory.path()), Err(StoreError::Open { .. })));
        drop(store);
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Store::open(&file), Err(StoreError::Directory { .. })));
    }
}

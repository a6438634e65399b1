//! What survives a restart: rules, and the ports that were added over the control socket.
//!
//! One `redb` file in the state directory. Every change is one transaction, on disk before [`Store::write`] returns:
//! after a crash at any instant each change is there as a whole or not at all. Rules stand in a log of rows (see
//! [`super::segment`]); its oldest rows are written anew, less what is out of date, as part of later changes. Values are
//! protobuf messages, so that newer versions can read older files.

use super::segment::{Entry, Place, Rows, entries, rule_at};
use forebay_api::v1;
use parking_lot::Mutex;
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use std::path::{Path, PathBuf};

/// Rows of the log by their number.
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// One rule a row: where format 1 has them.
const RULES_1: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rules");
const PORTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("ports");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// The file's name in the state directory.
const FILE: &str = "forebay.redb";
/// What the file holds; raised when older programs could not read it. 2: rules stand in a log.
const FORMAT: u64 = 2;
/// Pages that redb keeps in memory: some hundred rows. Rules are read at start and when they are shown only.
const CACHE_BYTES: usize = 8 << 20;
/// Entries beyond twice the rules that a log may have before it is cleaned: some rows that are not worth the trouble.
const SLACK_ENTRIES: u64 = 4096;

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
    /// A row of the log cannot be read.
    #[error("state file {}: row {row} is damaged (move the file away to start empty)", path.display())]
    DamagedRow {
        /// The file.
        path: PathBuf,
        /// The row.
        row: u64,
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
pub struct Change {
    /// Rows to append to the log.
    pub rows: Rows,
    /// Numbers of the oldest rows, whose rules in force stand in the new ones.
    pub cleaned: Vec<u64>,
    /// Entries in those.
    pub cleaned_entries: u64,
    /// Ports to write.
    pub put_ports: Vec<v1::PortSpec>,
    /// Names of ports to delete.
    pub delete_ports: Vec<String>,
}

/// What is known of the log without reading it.
#[derive(Clone, Copy)]
struct Log {
    /// The number of the next row.
    next: u64,
    /// Entries in all rows.
    entries: u64,
}

/// The state file. Changes are made by one thread at a time; anybody may read.
pub struct Store {
    database: Database,
    path: PathBuf,
    log: Mutex<Log>,
}

impl Store {
    /// Opens the state file in `directory`; makes both where they are missing. A file of an older format becomes one of this
    /// format, as a whole or not at all.
    ///
    /// # Errors
    /// The directory or the file cannot be used.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        let path = directory.join(FILE);
        let open = || -> Result<(Database, u64, Log), redb::Error> {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(&path)?;
            let write = database.begin_write()?;
            let format = write.open_table(META)?.get("format")?.map(|value| value.value());
            if let Some(format @ FORMAT.. | format @ 0) = format
                && format != FORMAT
            {
                return Ok((database, format, Log { next: 0, entries: 0 }));
            }
            write.open_table(PORTS)?;
            if format == Some(1) {
                migrate(&write)?;
            }
            write.open_table(META)?.insert("format", FORMAT)?;
            let log = measure(&write)?;
            write.commit()?;
            Ok((database, FORMAT, log))
        };
        let (database, format, log) =
            open().map_err(|source| StoreError::Open { path: path.clone(), source: Box::new(source) })?;
        match format {
            FORMAT => Ok(Store { database, path, log: Mutex::new(log) }),
            _ => Err(StoreError::Format { path, format }),
        }
    }

    /// A change that changes nothing yet.
    pub fn change(&self) -> Change {
        Change {
            rows: Rows::new(self.log.lock().next),
            cleaned: Vec::new(),
            cleaned_entries: 0,
            put_ports: Vec::new(),
            delete_ports: Vec::new(),
        }
    }

    /// Whether more than half of the log is out of date when `rules` are in force, with what `change` adds and cleans.
    pub fn wants_cleaning(&self, rules: usize, change: &Change) -> bool {
        let entries = self.log.lock().entries + change.rows.entries - change.cleaned_entries;
        entries > 2 * rules as u64 + SLACK_ENTRIES
    }

    /// The oldest row that `change` does not clean yet, with its number.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn oldest(&self, change: &Change) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let from = change.cleaned.last().map_or(0, |row| row + 1);
        let read = || -> Result<Option<(u64, Vec<u8>)>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            let first = table.range(from..)?.next().transpose()?;
            Ok(first.map(|(number, row)| (number.value(), row.value().to_vec())))
        };
        read().map_err(|source| self.io(source))
    }

    /// Makes a change durable: on disk, whole, when this returns.
    ///
    /// # Errors
    /// Nothing was changed.
    pub fn write(&self, change: &Change) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                let mut log = write.open_table(LOG)?;
                for (number, row) in change.rows.numbered() {
                    log.insert(number, row)?;
                }
                for number in &change.cleaned {
                    log.remove(number)?;
                }
            }
            if !change.put_ports.is_empty() || !change.delete_ports.is_empty() {
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
        write().map_err(|source| self.io(source))?;
        let mut log = self.log.lock();
        log.next = change.rows.next();
        log.entries = log.entries + change.rows.entries - change.cleaned_entries;
        Ok(())
    }

    /// Calls `see` with every row of the log, oldest first: its number and its entries with their offsets.
    ///
    /// # Errors
    /// The file cannot be read, or a row is damaged.
    pub fn replay(&self, mut see: impl FnMut(Place, Entry<'_>)) -> Result<(), StoreError> {
        let mut read = || -> Result<Option<u64>, redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            for item in table.iter()? {
                let (number, row) = item?;
                for entry in entries(row.value()) {
                    let Some((offset, entry)) = entry else { return Ok(Some(number.value())) };
                    see(Place::new(number.value(), offset), entry);
                }
            }
            Ok(None)
        };
        match read().map_err(|source| self.io(source))? {
            Some(row) => Err(StoreError::DamagedRow { path: self.path.clone(), row }),
            None => Ok(()),
        }
    }

    /// The rules at these places; `None` where a row is gone, because it was cleaned in the meantime.
    ///
    /// # Errors
    /// The file cannot be read, or a rule is damaged.
    pub fn rules_at(&self, places: &[Place]) -> Result<Vec<Option<v1::Rule>>, StoreError> {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|index| places[*index]);
        let mut found: Vec<Option<Vec<u8>>> = vec![None; places.len()];
        let mut read = || -> Result<(), redb::Error> {
            let table = self.database.begin_read()?.open_table(LOG)?;
            for group in order.chunk_by(|a, b| places[*a].row() == places[*b].row()) {
                let Some(row) = table.get(places[group[0]].row())? else { continue };
                for index in group {
                    found[*index] = rule_at(row.value(), places[*index].offset()).map(<[u8]>::to_vec);
                }
            }
            Ok(())
        };
        read().map_err(|source| self.io(source))?;
        let decode = |bytes: Vec<u8>| self.decode(&bytes, "rule", "");
        found.into_iter().map(|bytes| bytes.map(decode).transpose()).collect()
    }

    /// Every port that was added over the control socket.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn ports(&self) -> Result<Vec<v1::PortSpec>, StoreError> {
        let read = || -> Result<Vec<Result<v1::PortSpec, StoreError>>, redb::Error> {
            let table = self.database.begin_read()?.open_table(PORTS)?;
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                found.push(self.decode(value.value(), "port", key.value()));
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

/// Moves the rules of format 1 into the log.
fn migrate(write: &WriteTransaction) -> Result<(), redb::Error> {
    let mut rows = Rows::new(0);
    for item in write.open_table(RULES_1)?.iter()? {
        let (_, rule) = item?;
        rows.put(rule.value());
    }
    let mut log = write.open_table(LOG)?;
    for (number, row) in rows.numbered() {
        log.insert(number, row)?;
    }
    write.delete_table(RULES_1)?;
    Ok(())
}

/// Counts the log. A damaged row is found when it is replayed.
fn measure(write: &WriteTransaction) -> Result<Log, redb::Error> {
    let mut log = Log { next: 0, entries: 0 };
    for item in write.open_table(LOG)?.iter()? {
        let (number, row) = item?;
        log.next = number.value() + 1;
        log.entries += entries(row.value()).count() as u64;
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, priority: u32) -> v1::Rule {
        v1::Rule { id: id.into(), priority, ..v1::Rule::default() }
    }

    fn put(store: &Store, rules: &[v1::Rule], deletes: &[&str]) -> Vec<Place> {
        let mut change = store.change();
        let places = rules.iter().map(|rule| change.rows.put(&rule.encode_to_vec())).collect();
        deletes.iter().for_each(|id| change.rows.delete(id));
        store.write(&change).unwrap();
        places
    }

    /// What stands in the log: the rules put, and the ids deleted.
    fn log(store: &Store) -> Vec<Result<v1::Rule, String>> {
        let mut all = Vec::new();
        let see = |_, entry: Entry<'_>| {
            all.push(match entry {
                Entry::Put(rule) => Ok(v1::Rule::decode(rule).unwrap()),
                Entry::Delete(id) => Err(id.to_owned()),
            });
        };
        store.replay(see).unwrap();
        all
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let store = Store::open(&path).unwrap();
        let port = v1::PortSpec { name: "vm1".into(), ..v1::PortSpec::default() };
        let places = put(&store, &[rule("b", 2), rule("a", 1)], &[]);
        store.write(&Change { put_ports: vec![port.clone()], ..store.change() }).unwrap();
        put(&store, &[rule("b", 3)], &["a"]);
        drop(store);
        let store = Store::open(&path).unwrap();
        let wanted = [Ok(rule("b", 2)), Ok(rule("a", 1)), Ok(rule("b", 3)), Err("a".to_owned())];
        assert_eq!(log(&store), wanted);
        assert_eq!(store.ports().unwrap(), [port]);
        let read = store.rules_at(&[places[1], places[0], Place::new(99, 0)]).unwrap();
        assert_eq!(read, [Some(rule("a", 1)), Some(rule("b", 2)), None]);
        let next = put(&store, &[rule("c", 1)], &[])[0];
        assert!(next.row() > places[0].row() + 1);
    }

    #[test]
    fn the_oldest_rows_are_cleaned() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for priority in 0..3 {
            put(&store, &[rule("a", priority)], &[]);
        }
        assert!(!store.wants_cleaning(1, &store.change()));
        let mut change = store.change();
        for _ in 0..2 {
            let (number, row) = store.oldest(&change).unwrap().unwrap();
            change.cleaned.push(number);
            change.cleaned_entries += entries(&row).count() as u64;
        }
        store.write(&change).unwrap();
        assert_eq!(log(&store), [Ok(rule("a", 2))]);
        let many: Vec<v1::Rule> = (0..5000).map(|number| rule(&number.to_string(), 0)).collect();
        put(&store, &many, &[]);
        assert!(store.wants_cleaning(400, &store.change()) && !store.wants_cleaning(500, &store.change()));
    }

    #[test]
    fn a_file_of_format_1_becomes_one_of_this_format() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::create(directory.path().join(FILE)).unwrap();
        let write = database.begin_write().unwrap();
        {
            let mut rules = write.open_table(RULES_1).unwrap();
            for (id, priority) in [("b", 2), ("a", 1)] {
                rules.insert(id, rule(id, priority).encode_to_vec().as_slice()).unwrap();
            }
            write.open_table(PORTS).unwrap();
            write.open_table(META).unwrap().insert("format", 1).unwrap();
        }
        write.commit().unwrap();
        drop(database);
        for _ in 0..2 {
            let store = Store::open(directory.path()).unwrap();
            assert_eq!(log(&store), [Ok(rule("a", 1)), Ok(rule("b", 2))]);
        }
        let database = Database::open(directory.path().join(FILE)).unwrap();
        assert!(database.begin_read().unwrap().open_table(RULES_1).is_err());
    }

    #[test]
    fn a_file_of_a_newer_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path()).unwrap());
        let database = Database::open(directory.path().join(FILE)).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        write.commit().unwrap();
        drop(database);
        let newer = FORMAT + 1;
        for _ in 0..2 {
            let opened = Store::open(directory.path());
            assert!(matches!(opened, Err(StoreError::Format { format, .. }) if format == newer));
        }
    }

    #[test]
    fn a_damaged_row_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut change = store.change();
        change.rows.put(b"rule");
        change.rows.rows[0].pop();
        store.write(&change).unwrap();
        let error = store.replay(|_, _| ()).unwrap_err().to_string();
        assert!(error.contains("row 0 is damaged"), "{error}");
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

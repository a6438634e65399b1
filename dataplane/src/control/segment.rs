//! The form in which rules stand in the state file: rows of a log, each with many entries.
//!
//! A row is a protobuf message, `{ repeated Rule put = 1; repeated string delete = 2; }`, read in the order in which its
//! fields stand: a bulk load is some thousand big rows, a small change a small one. The log read from its beginning gives
//! the rules; the last entry of an id counts. A [`Place`] is where an entry stands.

/// Bytes after which a row is full: with its key and headers it fits the 64 KiB that redb then allocates for it.
const ROW_BYTES: usize = 60 << 10;
/// Bits of a place that are the offset in the row: rows are far shorter than 16 MiB, even one with the longest rule.
const OFFSET_BITS: u32 = 24;

/// Key of a put: field 1, length-delimited.
const PUT: u8 = 1 << 3 | 2;
/// Key of a delete: field 2, length-delimited.
const DELETE: u8 = 2 << 3 | 2;

/// Where an entry stands: the number of its row, and its offset in it. Row numbers have 40 bits: a thousand rows a second for
/// thirty years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

impl Place {
    /// The place at an offset of a row.
    pub fn new(row: u64, offset: usize) -> Place {
        Place(row << OFFSET_BITS | offset as u64)
    }

    /// The row's number.
    pub fn row(self) -> u64 {
        self.0 >> OFFSET_BITS
    }

    /// The offset in the row, in bytes.
    pub fn offset(self) -> usize {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as usize
    }
}

/// One entry of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// An encoded rule.
    Put(&'a [u8]),
    /// The id of a rule that is gone.
    Delete(&'a str),
}

/// The entries of a row with their offsets; ends early, with `None` as the last item, where the row is damaged.
pub fn entries(row: &[u8]) -> impl Iterator<Item = Option<(usize, Entry<'_>)>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= row.len() {
            return None;
        }
        let read = entry(row, at);
        let item = read.map(|(entry, _)| (at, entry));
        at = read.map_or(row.len(), |(_, next)| next);
        Some(item)
    })
}

/// The rule at an offset of a row.
pub fn rule_at(row: &[u8], offset: usize) -> Option<&[u8]> {
    match entry(row, offset)?.0 {
        Entry::Put(rule) => Some(rule),
        Entry::Delete(_) => None,
    }
}

fn entry(row: &[u8], at: usize) -> Option<(Entry<'_>, usize)> {
    let key = *row.get(at)?;
    let (mut length, mut begin) = (0_usize, at + 1);
    for shift in (0..28).step_by(7) {
        let byte = *row.get(begin)?;
        begin += 1;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            let bytes = row.get(begin..begin + length)?;
            let entry = match key {
                PUT => Entry::Put(bytes),
                DELETE => Entry::Delete(std::str::from_utf8(bytes).ok()?),
                _ => return None,
            };
            return Some((entry, begin + length));
        }
    }
    None
}

/// Rows in the making.
pub struct Rows {
    first: u64,
    /// The rows; the last one is being filled.
    pub rows: Vec<Vec<u8>>,
    /// Entries in them.
    pub entries: u64,
}

/// An end of rows in the making.
#[derive(Clone, Copy)]
pub struct Mark {
    rows: usize,
    bytes: usize,
    entries: u64,
}

impl Rows {
    /// No rows yet; the first one will have this number.
    pub fn new(first: u64) -> Rows {
        Rows { first, rows: Vec::new(), entries: 0 }
    }

    /// Rows with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &[u8])> {
        (self.first..).zip(self.rows.iter().map(Vec::as_slice))
    }

    /// The number of the row after the last one.
    pub fn next(&self) -> u64 {
        self.first + self.rows.len() as u64
    }

    /// Where the rows end now.
    pub fn mark(&self) -> Mark {
        Mark { rows: self.rows.len(), bytes: self.rows.last().map_or(0, Vec::len), entries: self.entries }
    }

    /// Takes back what was added since.
    pub fn truncate(&mut self, mark: Mark) {
        self.rows.truncate(mark.rows);
        if let Some(last) = self.rows.last_mut() {
            last.truncate(mark.bytes);
        }
        self.entries = mark.entries;
    }

    /// Adds an encoded rule.
    pub fn put(&mut self, rule: &[u8]) -> Place {
        self.push(PUT, rule)
    }

    /// Adds the deletion of a rule.
    pub fn delete(&mut self, id: &str) {
        self.push(DELETE, id.as_bytes());
    }

    fn push(&mut self, key: u8, bytes: &[u8]) -> Place {
        // Key and length take five bytes at most.
        let full = self.rows.last().is_none_or(|row| row.len() + bytes.len() + 5 > ROW_BYTES);
        if full {
            // A second row will be full in the end.
            let bytes = if self.rows.is_empty() { 0 } else { ROW_BYTES };
            self.rows.push(Vec::with_capacity(bytes));
        }
        let number = self.next() - 1;
        self.entries += 1;
        let Some(row) = self.rows.last_mut() else { return Place::default() };
        let place = Place::new(number, row.len());
        row.push(key);
        let mut length = bytes.len();
        while length >= 0x80 {
            row.push(length as u8 | 0x80);
            length >>= 7;
        }
        row.push(length as u8);
        row.extend_from_slice(bytes);
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_from_their_places() {
        let mut rows = Rows::new(7);
        let long = vec![9; 40_000];
        let places = [rows.put(b"one"), rows.put(&long), rows.put(&long), rows.put(b"")];
        rows.delete("gone");
        assert_eq!((rows.entries, rows.rows.len(), rows.next()), (5, 2, 9));
        for (place, bytes) in places.iter().zip([&b"one"[..], &long, &long, b""]) {
            let row = rows.numbered().find(|(number, _)| *number == place.row()).unwrap().1;
            assert_eq!(rule_at(row, place.offset()), Some(bytes));
        }
        let all: Vec<_> =
            rows.rows.iter().flat_map(|row| entries(row)).map(|entry| entry.unwrap().1).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(all[4], Entry::Delete("gone"));
    }

    #[test]
    fn what_was_added_since_a_mark_can_be_taken_back() {
        let mut rows = Rows::new(0);
        let empty = rows.mark();
        rows.put(b"one");
        let one = rows.mark();
        let before = rows.rows.clone();
        rows.delete("x");
        rows.put(&vec![1; ROW_BYTES]);
        assert_eq!(rows.rows.len(), 2);
        rows.truncate(one);
        assert_eq!((&rows.rows, rows.entries), (&before, 1));
        rows.truncate(empty);
        assert_eq!((rows.rows.len(), rows.entries, rows.next()), (0, 0, 0));
    }

    #[test]
    fn a_damaged_row_says_so() {
        let mut rows = Rows::new(0);
        rows.put(b"rule");
        let row = &rows.rows[0];
        for length in 1..row.len() {
            assert_eq!(entries(&row[..length]).collect::<Vec<_>>(), [None], "{length}");
        }
        assert_eq!(rule_at(row, 1), None);
        assert_eq!(entries(&[0xff; 8]).collect::<Vec<_>>(), [None]);
        assert_eq!(rule_at(&[PUT, 0xff, 0xff, 0xff, 0xff, 0xff], 0), None);
    }

    #[test]
    fn places_keep_row_and_offset() {
        let place = Place::new((1 << 40) - 1, (1 << 24) - 1);
        assert_eq!((place.row(), place.offset()), ((1 << 40) - 1, (1 << 24) - 1));
    }
}

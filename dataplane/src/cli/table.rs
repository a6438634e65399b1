//! A table of text in aligned columns, written while it grows.

use std::io;

use super::Out;

/// Rows that are held back to measure the columns. Later rows that are wider shift their own line only, so that a
/// listing of a million rules starts at once and needs no memory for all of them.
const MEASURED_ROWS: usize = 1000;

/// One column: its title, and on which side its cells are flush.
pub struct Column {
    title: &'static str,
    right: bool,
}

/// A column of words.
pub const fn left(title: &'static str) -> Column {
    Column { title, right: false }
}

/// A column of numbers.
pub const fn right(title: &'static str) -> Column {
    Column { title, right: true }
}

/// A table with `N` columns.
pub struct Table<const N: usize> {
    columns: [Column; N],
    indent: &'static str,
    widths: [usize; N],
    held: Vec<[String; N]>,
    started: bool,
}

impl<const N: usize> Table<N> {
    pub fn new(columns: [Column; N]) -> Self {
        let widths = std::array::from_fn(|index| columns[index].title.chars().count());
        Self { columns, indent: "", widths, held: Vec::new(), started: false }
    }

    /// What every line begins with.
    pub fn indented(self, indent: &'static str) -> Self {
        Self { indent, ..self }
    }

    /// Adds a row, and writes it where the columns are measured.
    pub fn row(&mut self, out: &mut Out<'_>, row: [String; N]) -> io::Result<()> {
        if self.started {
            return self.write_row(out, &row);
        }
        for (width, cell) in self.widths.iter_mut().zip(&row) {
            *width = (*width).max(cell.chars().count());
        }
        self.held.push(row);
        if self.held.len() == MEASURED_ROWS { self.finish(out) } else { Ok(()) }
    }

    /// Writes what is held back: the titles also of a table without rows.
    pub fn finish(&mut self, out: &mut Out<'_>) -> io::Result<()> {
        if !self.started {
            self.started = true;
            let titles = std::array::from_fn(|index| self.columns[index].title.to_owned());
            self.write_row(out, &titles)?;
        }
        for row in std::mem::take(&mut self.held) {
            self.write_row(out, &row)?;
        }
        Ok(())
    }

    fn write_row(&self, out: &mut Out<'_>, row: &[String; N]) -> io::Result<()> {
        let mut line = self.indent.to_owned();
        for (index, cell) in row.iter().enumerate() {
            let padding = " ".repeat(self.widths[index].saturating_sub(cell.chars().count()));
            if self.columns[index].right {
                line.push_str(&padding);
                line.push_str(cell);
            } else {
                line.push_str(cell);
                line.push_str(&padding);
            }
            line.push_str("  ");
        }
        writeln!(out, "{}", line.trim_end())
    }
}

/// A number of things, where there is one.
pub fn items(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// A mean, where there is one.
pub fn tenths(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Out<'_>, &mut Table<2>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        let mut table = Table::new([left("NAME"), right("N")]).indented("  ");
        write(&mut out, &mut table).unwrap();
        table.finish(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_flush() {
        let text = written(|out, table| {
            table.row(out, ["a".into(), "10".into()])?;
            table.row(out, ["äöüäöü".into(), "2".into()])
        });
        assert_eq!(text, "  NAME     N\n  a       10\n  äöüäöü   2\n");
    }

    #[test]
    fn titles_stand_alone_without_rows() {
        assert_eq!(written(|_, _| Ok(())), "  NAME  N\n");
    }

    #[test]
    fn long_tables_are_written_while_they_grow() {
        let text = written(|out, table| {
            for number in 0..MEASURED_ROWS * 2 {
                table.row(out, ["x".into(), number.to_string()])?;
            }
            assert!(table.held.is_empty());
            Ok(())
        });
        assert_eq!(text.lines().count(), MEASURED_ROWS * 2 + 1);
    }
}

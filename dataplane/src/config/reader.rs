//! Typed access to the tables of a TOML document that remembers lines.
//!
//! `serde` would stop at the first error and lose most lines; this walks the spanned document instead, and reports
//! wrong types and unknown keys to the table's [`Object`] while the caller goes on.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::object::{At, Fault, Field, Object, Source};
use super::suggest::instead_of;

/// The text of a document and where its lines start.
pub(super) struct Text<'a> {
    text: &'a str,
    /// Byte offset of each line's start; ascending, never empty.
    starts: Vec<usize>,
}

impl<'a> Text<'a> {
    pub fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Text { text, starts }
    }

    /// The line, from 1, of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    fn source(&self, value: &Spanned<DeValue<'_>>) -> Source {
        let text = self.text.get(value.span()).unwrap_or_default();
        Source(text.lines().next().unwrap_or_default().to_string())
    }
}

/// One table of the document.
pub(super) struct Table<'a> {
    text: &'a Text<'a>,
    /// `None`: the document does not have the table; then every key is absent.
    keys: Option<&'a DeTable<'a>>,
    pub object: Object,
}

impl<'a> Table<'a> {
    pub fn new(text: &'a Text<'a>, keys: Option<&'a DeTable<'a>>, object: Object) -> Self {
        Table { text, keys, object }
    }

    /// Reports every key that is not allowed here.
    pub fn allow(&mut self, allowed: &[&str]) {
        for key in self.keys.into_iter().flat_map(|keys| keys.keys()) {
            let name: &str = key.get_ref();
            if !allowed.contains(&name) {
                let line = Some(self.text.line(key.span().start));
                let fault = Fault::new("unknown key", instead_of(name, allowed));
                self.object.misplaced(&shown_key(name), line, fault);
            }
        }
    }

    /// Line of a key, where the table has it.
    pub fn key_line(&self, key: &str) -> Option<usize> {
        let (key, _) = self.keys?.get_key_value(key)?;
        Some(self.text.line(key.span().start))
    }

    pub fn text(&mut self, key: &str) -> Field<String> {
        let Some(value) = self.get(key) else { return Field::Absent };
        match value.get_ref() {
            DeValue::String(text) => Field::Given(self.at(value, key, text.to_string())),
            other => self.mistyped(value, key, other, "a string", "put it in double quotes"),
        }
    }

    pub fn integer(&mut self, key: &str) -> Field<i64> {
        let Some(value) = self.get(key) else { return Field::Absent };
        match value.get_ref() {
            DeValue::Integer(digits) => match i64::from_str_radix(digits.as_str(), digits.radix()) {
                Ok(number) => Field::Given(self.at(value, key, number)),
                Err(_) => {
                    let at = self.at(value, key, self.text.source(value));
                    self.object.mistyped(&at, Fault::new("far too large a number", "write a smaller one"));
                    Field::Bad
                }
            },
            other => self.mistyped(value, key, other, "a whole number", "write it in digits, without quotes"),
        }
    }

    /// A list of strings.
    pub fn texts(&mut self, key: &str) -> Field<Vec<At<String>>> {
        let Some(value) = self.get(key) else { return Field::Absent };
        match value.get_ref() {
            DeValue::Array(items) => {
                let mut list = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    let key = format!("{key}[{i}]");
                    match item.get_ref() {
                        DeValue::String(text) => list.push(self.at(item, &key, text.to_string())),
                        other => {
                            let _: Field<()> =
                                self.mistyped(item, &key, other, "a string", "put it in double quotes");
                        }
                    }
                }
                // A list of nothing but wrong types is reported, not empty.
                if list.is_empty() && !items.is_empty() {
                    return Field::Bad;
                }
                Field::Given(self.at(value, key, list))
            }
            other => self.mistyped(value, key, other, "a list of strings", "write [\"…\", \"…\"]"),
        }
    }

    /// A string, or a list of strings.
    pub fn text_or_texts(&mut self, key: &str) -> Field<Vec<At<String>>> {
        match self.get(key) {
            Some(value) if !value.get_ref().is_array() => match self.text(key) {
                Field::Given(at) => Field::Given(At { value: vec![at.clone()], line: at.line, key: at.key }),
                Field::Bad => Field::Bad,
                Field::Absent => Field::Absent,
            },
            _ => self.texts(key),
        }
    }

    /// The table `[key]` of this table; one without keys where it is absent or, which is reported, not a table.
    pub fn table(&mut self, key: &str) -> Table<'a> {
        let value = self.get(key);
        let keys = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, keys) {
            let header = format!("write [{key}] and its keys below it");
            let _: Field<()> = self.mistyped(value, key, value.get_ref(), "a table", &header);
        }
        let line = value.map(|value| self.text.line(value.span().start));
        Table::new(self.text, keys, Object::new(key, key, line))
    }

    /// The tables `[[key]]` of this table, which stand under `header` in the file.
    pub fn tables(&mut self, key: &str, header: &str) -> Vec<Table<'a>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let header = format!("write [[{header}]] and its keys below it");
        let Some(items) = value.get_ref().as_array() else {
            let _: Field<()> = self.mistyped(value, key, value.get_ref(), "a list of tables", &header);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let key = format!("{key}[{i}]");
            match item.get_ref().as_table() {
                Some(keys) => {
                    let object = self.object.inner(&key, self.text.line(item.span().start));
                    tables.push(Table::new(self.text, Some(keys), object));
                }
                None => {
                    let _: Field<()> = self.mistyped(item, &key, item.get_ref(), "a table", &header);
                }
            }
        }
        tables
    }

    /// The value of a key, of any type.
    pub fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.keys?.get(key)
    }

    fn at<T>(&self, value: &Spanned<DeValue<'_>>, key: &str, typed: T) -> At<T> {
        At { value: typed, line: Some(self.text.line(value.span().start)), key: key.to_string() }
    }

    fn mistyped<T>(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        key: &str,
        found: &DeValue<'_>,
        expected: &str,
        remedy: &str,
    ) -> Field<T> {
        let at = self.at(value, key, self.text.source(value));
        let problem = format!("expected {expected}, found {}", type_name(found));
        self.object.mistyped(&at, Fault::new(problem, remedy));
        Field::Bad
    }
}

/// A key as TOML writes it: bare where that is possible.
fn shown_key(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(bare) { key.to_string() } else { format!("{key:?}") }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_from_one_and_end_with_the_text() {
        let text = Text::new("a\n\nb");
        assert_eq!([0, 1, 2, 3, 4, 99].map(|offset| text.line(offset)), [1, 1, 2, 3, 3, 3]);
        assert_eq!(Text::new("").line(0), 1);
    }

    #[test]
    fn integers_of_every_notation_are_read() {
        let text = Text::new("a = 1_500\nb = 0x5_dc\nc = -1\nd = 99999999999999999999");
        let (document, errors) = DeTable::parse_recoverable(text.text);
        assert_eq!(errors, []);
        let mut table = Table::new(&text, Some(document.get_ref()), Object::new("t", "t", None));
        let numbers = ["a", "b", "c", "d"].map(|key| table.integer(key).given().map(|at| at.value));
        assert_eq!(numbers, [Some(1500), Some(1500), Some(-1), None]);
        assert_eq!(
            table.object.problems[0].to_string(),
            "t: d = 99999999999999999999: far too large a number (write a smaller one)"
        );
        assert_eq!(table.object.problems[0].line, Some(4));
    }

    #[test]
    fn keys_are_shown_as_toml_writes_them() {
        assert_eq!(shown_key("max-mtu_2"), "max-mtu_2");
        assert_eq!(shown_key("a b\n"), "\"a b\\n\"");
        assert_eq!(shown_key(""), "\"\"");
    }
}

//! A JSON value that borrows its text from the line it was read from, and keeps what general JSON trees lose:
//! duplicate keys and the order of keys.
//!
//! Rules and ports are read through this tree rather than by derived deserializers, so that one pass both is fast
//! (strings are not copied until they land in the rule) and can say which field of which rule is wrong. Its size
//! is bounded by the text's, its depth by `serde_json`'s limit of 128.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::spec_error::{At, FieldError, Problem};
use crate::validate::shown;

/// Keys and values of one object, in the order of the text.
pub(crate) type Entries<'a> = Vec<(Text<'a>, Node<'a>)>;

/// Room for the keys of a usual object without growing: the largest of INTERFACE's examples has six.
const USUAL_KEYS: usize = 6;

/// Any JSON value.
pub(crate) enum Node<'a> {
    Null,
    Bool(bool),
    Number(u64),
    /// Negative, or not whole, or beyond 64 bits: no field takes it, it is kept as it is shown.
    OtherNumber(String),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    Object(Entries<'a>),
}

/// A string that stays borrowed where the text has no escapes.
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

/// Reads one JSON value.
pub(crate) fn parse(text: &str) -> Result<Node<'_>, FieldError> {
    serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let detail = message.rsplit_once(" at line ").map_or(message.as_str(), |(detail, _)| detail);
        let position = match error.line() {
            0 | 1 => format!("column {}", error.column()),
            line => format!("line {line} column {}", error.column()),
        };
        FieldError::from(Problem::Json { detail: detail.to_owned(), position })
    })
}

impl<'a> Node<'a> {
    /// The value as an error shows it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
            Self::OtherNumber(value) => value.clone(),
            Self::Text(text) => shown(text),
            Self::List(_) => "a list".to_owned(),
            Self::Object(_) => "an object".to_owned(),
        }
    }

    pub(crate) fn wrong(&self, wanted: &'static str) -> Problem {
        Problem::Type { value: self.shown(), wanted }
    }

    /// A string that is not empty: in the proto, empty means absent.
    pub(crate) fn text(self) -> Result<String, Problem> {
        match self {
            Self::Text(text) if text.is_empty() => Err(Problem::Empty),
            Self::Text(text) => Ok(text.into_owned()),
            other => Err(other.wrong("a string (write it in double quotes)")),
        }
    }

    /// A whole number that is not negative; its range is the validator's business.
    pub(crate) fn number(&self) -> Result<u64, Problem> {
        match self {
            Self::Number(number) => Ok(*number),
            other => Err(other.wrong("a whole number (write it without quotes, sign or fraction)")),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, Problem> {
        match self {
            Self::Bool(value) => Ok(*value),
            other => Err(other.wrong("true or false")),
        }
    }

    pub(crate) fn object(self) -> Result<Entries<'a>, Problem> {
        match self {
            Self::Object(entries) => Ok(entries),
            other => Err(other.wrong("an object (write {...})")),
        }
    }

    /// One string, or a list of them.
    pub(crate) fn texts(self) -> Result<Vec<String>, FieldError> {
        match self {
            Self::List(list) => list
                .into_iter()
                .enumerate()
                .map(|(index, node)| node.text().at(&format!("[{index}]")))
                .collect(),
            text @ Self::Text(_) => Ok(vec![text.text()?]),
            other => Err(other.wrong("a string or a list of strings").into()),
        }
    }
}

/// The first value of a key.
pub(crate) fn find<'e, 'a>(entries: &'e Entries<'a>, wanted: &str) -> Option<&'e Node<'a>> {
    entries.iter().find(|(key, _)| key.0 == wanted).map(|(_, node)| node)
}

/// The text of a key, where it is a string: for naming the object in errors.
pub(crate) fn find_text<'e>(entries: &'e Entries<'_>, wanted: &str) -> Option<&'e str> {
    match find(entries, wanted) {
        Some(Node::Text(text)) => Some(text),
        _ => None,
    }
}

/// Calls `take` for every entry; it returns false for a key that is not one of `allowed`.
///
/// A key twice is an error. The check is quadratic in the number of *allowed* keys only, because the first unknown
/// key ends it.
pub(crate) fn read_object(
    mut entries: Entries<'_>,
    allowed: &[&str],
    mut take: impl FnMut(&str, Node<'_>) -> Result<bool, FieldError>,
) -> Result<(), FieldError> {
    for index in 0..entries.len() {
        let node = std::mem::replace(&mut entries[index].1, Node::Null);
        let key = &entries[index].0.0;
        if entries[..index].iter().any(|(earlier, _)| earlier.0 == *key) {
            return Err(Problem::DuplicateKey { key: shown(key) }.into());
        }
        if !take(key, node)? {
            return Err(Problem::UnknownKey { key: shown(key), allowed: allowed.join(", ") }.into());
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        from.deserialize_str(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for Node<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(u64::try_from(value).map_or_else(|_| Node::OtherNumber(value.to_string()), Node::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        // The form that keeps ".0" and turns to exponents: 443.0 is not 443, and 1e300 has 301 digits.
        Ok(Node::OtherNumber(format!("{value:?}")))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            if entries.is_empty() {
                entries.reserve(USUAL_KEYS);
            }
            entries.push(entry);
        }
        Ok(Node::Object(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        match parse(text) {
            Ok(node) => panic!("accepted: {}", node.shown()),
            Err(error) => error.named("rule", None).to_string(),
        }
    }

    #[test]
    fn says_where_the_text_is_not_json() {
        assert_eq!(
            problem("{\"a\":1,}"),
            "rule: not JSON: trailing comma at column 8 (write one JSON object)"
        );
        assert_eq!(
            problem("{\n\"a\" 1}"),
            "rule: not JSON: expected `:` at line 2 column 5 (write one JSON object)"
        );
        assert!(problem("{} {}").contains("trailing characters"));
    }

    #[test]
    fn bombs_are_errors() {
        assert!(problem(&"[".repeat(60_000)).contains("recursion limit"));
        assert!(problem("1e999").contains("number out of range"));
        let Ok(node) = parse("99999999999999999999999999") else { panic!("numbers may be long") };
        assert_eq!(node.shown(), "1e26");
    }

    #[test]
    fn keeps_duplicates_and_borrows() {
        let Ok(Node::Object(entries)) = parse(r#"{"a":"x","a":"\n"}"#) else { panic!("an object") };
        assert!(matches!(&entries[0].1, Node::Text(Cow::Borrowed("x"))));
        assert!(matches!(&entries[1].1, Node::Text(Cow::Owned(text)) if text == "\n"));
        let error = read_object(entries, &["a"], |_, _| Ok(true)).unwrap_err().named("rule", None);
        assert_eq!(error.to_string(), "rule: key \"a\" stands there twice (keep one)");
    }
}

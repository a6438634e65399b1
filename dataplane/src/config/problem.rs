//! What is wrong with a config file or a port specification, in a form for people and one for programs.
//!
//! A problem always names the object, the value as the user wrote it, and the remedy. All problems of a file are
//! collected and reported together, in the order of their lines: nobody has to fix a file one error at a time.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// The most characters of a value that a message repeats; enough for an IPv6 prefix or a device path of usual length.
const SHOWN_VALUE_MAX_CHARS: usize = 120;

/// One thing that is wrong.
///
/// As JSON: `line`, `key`, `value`, `problem`, `remedy`; `line` and `value` are `null` where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Line of the file, from 1; `None` where no file is involved or the file as a whole is meant.
    pub line: Option<usize>,
    /// Path of the key, such as `port[1].mac` (tables of a list count from 0); empty for the file as a whole.
    pub key: String,
    /// The value as given; `None` where the key is missing or the problem is not about a value.
    pub value: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
    /// The object for people: `port "vm1"`, `workers`; empty for the file as a whole.
    #[serde(skip)]
    pub(super) object: String,
    /// The key within the object; empty for the object as a whole.
    #[serde(skip)]
    pub(super) leaf: String,
    /// The value was a string, and is shown in quotes.
    #[serde(skip)]
    pub(super) quoted: bool,
    /// The problem follows from the value alone, whatever the rest of the file says.
    #[serde(skip)]
    pub(super) of_value: bool,
}

impl Problem {
    /// A problem of the text at `line`, or of the file as a whole: it has no key.
    pub(super) fn of_file(
        line: Option<usize>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Problem {
            line,
            key: String::new(),
            value: None,
            problem: problem.into(),
            remedy: remedy.into(),
            object: String::new(),
            leaf: String::new(),
            quoted: false,
            of_value: false,
        }
    }
}

/// Without the line, which is meaningful only beside a file's name: `port "vm1": mac = "…": what (remedy)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.leaf.is_empty() {
            f.write_str(&self.leaf)?;
            if let Some(value) = &self.value {
                f.write_str(" = ")?;
                show_value(f, value, self.quoted)?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{} ({})", self.problem, self.remedy)
    }
}

/// Writes a value on one line, without control characters, and cut where it is very long.
fn show_value(f: &mut fmt::Formatter<'_>, value: &str, quoted: bool) -> fmt::Result {
    let mut shown: String = value.chars().take(SHOWN_VALUE_MAX_CHARS).collect();
    let cut = if shown.len() < value.len() { "…" } else { "" };
    if quoted {
        write!(f, "{shown:?}{cut}")
    } else {
        shown.retain(|c| !c.is_control());
        write!(f, "{shown}{cut}")
    }
}

/// Everything that is wrong with a config file; never empty. Displays one line per problem, without a last newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    file: Option<PathBuf>,
    list: Vec<Problem>,
}

impl Problems {
    /// Puts the problems into the order of their lines; those of one line stay in the order in which they were found.
    pub(super) fn new(mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| problem.line);
        Problems { file: None, list }
    }

    /// Names the file that the lines belong to.
    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_path_buf());
        self
    }

    /// The problems, in the order of their lines.
    pub fn as_slice(&self) -> &[Problem] {
        &self.list
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match (&self.file, problem.line) {
                (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
                (Some(file), None) => write!(f, "{}: ", file.display())?,
                (None, Some(line)) => write!(f, "line {line}: ")?,
                (None, None) => {}
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// As JSON: the list of the problems.
impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.list.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac_problem() -> Problem {
        Problem {
            line: Some(17),
            key: "port[1].mac".into(),
            value: Some("02:00:00:00:01".into()),
            problem: "not a MAC address".into(),
            remedy: "write six bytes in hex, such as 02:00:00:00:01:01".into(),
            object: "port \"vm1\"".into(),
            leaf: "mac".into(),
            quoted: true,
            of_value: true,
        }
    }

    #[test]
    fn displays_file_line_object_value_and_remedy() {
        let problems = Problems::new(vec![mac_problem()]).in_file(Path::new("host.toml"));
        assert_eq!(
            problems.to_string(),
            "host.toml:17: port \"vm1\": mac = \"02:00:00:00:01\": not a MAC address \
             (write six bytes in hex, such as 02:00:00:00:01:01)"
        );
    }

    #[test]
    fn serializes_as_a_list_with_stable_keys() {
        let json = serde_json::to_value(Problems::new(vec![mac_problem()])).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "line": 17,
                "key": "port[1].mac",
                "value": "02:00:00:00:01",
                "problem": "not a MAC address",
                "remedy": "write six bytes in hex, such as 02:00:00:00:01:01"
            }])
        );
    }

    #[test]
    fn orders_by_line_with_the_whole_file_first() {
        let problems = Problems::new(vec![
            Problem::of_file(Some(9), "c", "r"),
            Problem::of_file(Some(2), "b", "r"),
            Problem::of_file(None, "a", "r"),
        ]);
        assert_eq!(problems.to_string(), "a (r)\nline 2: b (r)\nline 9: c (r)");
    }

    #[test]
    fn a_problem_stays_on_one_line_and_is_cut() {
        let mut problem = mac_problem();
        problem.value = Some("a\n\u{1b}[31m".to_string() + &"x".repeat(1000));
        let text = problem.to_string();
        assert!(!text.contains('\n') && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("…: not a MAC") && text.len() < 300, "{text}");
        problem.quoted = false;
        assert!(!problem.to_string().contains(char::is_control));
    }
}

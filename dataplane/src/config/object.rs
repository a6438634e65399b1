//! Fields on their way from text to typed values, and the collector of what is wrong with them.
//!
//! A field knows where it stands; a check knows only values. [`Object::check`] joins the two, so that the same checks
//! serve the config file and the control socket. A field that is already reported counts as given, never as missing.

use super::problem::Problem;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub value: T,
    /// Line of the file, from 1.
    pub line: Option<usize>,
    /// The key within its object: `mac`, `ip[1]`.
    pub key: String,
}

/// What an object says about one of its keys.
#[derive(Debug, Clone)]
pub(super) enum Field<T> {
    /// Nothing.
    Absent,
    /// Something of a wrong type, which is reported already.
    Bad,
    Given(At<T>),
}

impl<T> Field<T> {
    pub fn given(&self) -> Option<&At<T>> {
        match self {
            Field::Given(at) => Some(at),
            Field::Absent | Field::Bad => None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }
}

/// A value as a message repeats it.
pub(super) trait Shown {
    /// What a check sees of it.
    type View: ?Sized;
    fn view(&self) -> &Self::View;
    fn text(&self) -> String;
    const QUOTED: bool;
}

impl Shown for String {
    type View = str;
    fn view(&self) -> &str {
        self
    }
    fn text(&self) -> String {
        self.clone()
    }
    const QUOTED: bool = true;
}

impl Shown for i64 {
    type View = i64;
    fn view(&self) -> &i64 {
        self
    }
    fn text(&self) -> String {
        self.to_string()
    }
    const QUOTED: bool = false;
}

/// Text of the source that is not a string there.
pub(super) struct Source(pub String);

impl Shown for Source {
    type View = str;
    fn view(&self) -> &str {
        &self.0
    }
    fn text(&self) -> String {
        self.0.clone()
    }
    const QUOTED: bool = false;
}

/// What is wrong with a value, whoever gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub problem: String,
    pub remedy: String,
}

impl Fault {
    pub fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fault { problem: problem.into(), remedy: remedy.into() }
    }
}

/// A table of the file, or a port specification: its names and what is wrong with it so far.
#[derive(Debug)]
pub(super) struct Object {
    /// Path of the object's keys: `port[1]`; empty where its keys stand alone.
    pub path: String,
    /// The object for people: `port "vm1"`.
    pub title: String,
    /// Line of the table's header, which is where a missing key is reported.
    pub line: Option<usize>,
    pub problems: Vec<Problem>,
}

impl Object {
    pub fn new(path: impl Into<String>, title: impl Into<String>, line: Option<usize>) -> Self {
        Object { path: path.into(), title: title.into(), line, problems: Vec::new() }
    }

    /// The object within this one that `key` names: `stage[1]` of `pipeline "gold"`.
    pub fn inner(&self, key: &str, line: usize) -> Self {
        let path = if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) };
        let title = if self.title.is_empty() { key.to_string() } else { format!("{}: {key}", self.title) };
        Object::new(path, title, Some(line))
    }

    /// Titles the object by what it is and its name, also in problems that were found before: the name is among its
    /// fields.
    pub fn entitle(&mut self, what: &str, name: &Field<String>) {
        if let Some(name) = name.given() {
            self.title = format!("{what} {:?}", name.value);
        }
        for problem in &mut self.problems {
            problem.object.clone_from(&self.title);
        }
    }

    /// The value of a field that passes `check`; `None` where it is not given, or wrong and now reported.
    pub fn check<T: Shown, U>(
        &mut self,
        field: &Field<T>,
        check: impl FnOnce(&T::View) -> Result<U, Fault>,
    ) -> Option<U> {
        self.check_at(field.given()?, check)
    }

    /// As [`Object::check`], for one value of a list.
    pub fn check_at<T: Shown, U>(
        &mut self,
        at: &At<T>,
        check: impl FnOnce(&T::View) -> Result<U, Fault>,
    ) -> Option<U> {
        match check(at.value.view()) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.report(Some(at), &at.key, at.line, fault, true);
                None
            }
        }
    }

    /// The key is not given and must be.
    pub fn missing(&mut self, key: &str, remedy: impl Into<String>) {
        self.report(None::<&At<String>>, key, self.line, Fault::new("missing", remedy), false);
    }

    /// A given value does not fit the rest of the file or of the object.
    pub fn conflict<T: Shown>(&mut self, at: &At<T>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.report(Some(at), &at.key, at.line, Fault::new(problem, remedy), false);
    }

    /// A key should not be there, whatever its value.
    pub fn misplaced(&mut self, key: &str, line: Option<usize>, fault: Fault) {
        self.report(None::<&At<String>>, key, line, fault, false);
    }

    /// A value has the wrong type.
    pub fn mistyped(&mut self, at: &At<Source>, fault: Fault) {
        self.report(Some(at), &at.key, at.line, fault, true);
    }

    fn report<T: Shown>(
        &mut self,
        at: Option<&At<T>>,
        key: &str,
        line: Option<usize>,
        fault: Fault,
        of_value: bool,
    ) {
        let dot = if self.path.is_empty() || key.is_empty() { "" } else { "." };
        self.problems.push(Problem {
            line,
            key: format!("{}{dot}{key}", self.path),
            value: at.map(|at| at.value.text()),
            problem: fault.problem,
            remedy: fault.remedy,
            object: self.title.clone(),
            leaf: key.to_string(),
            quoted: T::QUOTED,
            of_value,
        });
    }
}

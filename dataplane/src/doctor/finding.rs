//! One thing that was looked at: its name, how it stands, what was seen, and the remedy.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Forebay runs, but slower, less steadily, or not with every device.
    Warn,
    /// What the config file asks for cannot run.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        })
    }
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; stays the same from version to version.
    pub name: &'static str,
    /// Which one of several: a PCI address, a NUMA node, a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// How it stands.
    pub level: Level,
    /// What was seen, in words.
    pub value: String,
    /// What was seen, in numbers whose unit is in their name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<&'static str, u64>,
    /// What mends it: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// Nothing is to be done.
    pub(super) fn ok(name: &'static str, value: impl Into<String>) -> Self {
        let (value, figures) = (value.into(), BTreeMap::new());
        Self { name, object: None, level: Level::Ok, value, figures, remedy: None }
    }

    /// Something is to be done about it.
    pub(super) fn bad(
        level: Level,
        name: &'static str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level, remedy: Some(remedy.into()), ..Self::ok(name, value) }
    }

    /// It runs without, but not as well.
    pub(super) fn warn(name: &'static str, value: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::bad(Level::Warn, name, value, remedy)
    }

    /// Says which one of several it is.
    pub(super) fn of(self, object: impl Into<String>) -> Self {
        Self { object: Some(object.into()), ..self }
    }

    /// Adds a number.
    pub(super) fn with(mut self, key: &'static str, number: u64) -> Self {
        self.figures.insert(key, number);
        self
    }
}

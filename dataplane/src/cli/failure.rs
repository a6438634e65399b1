//! What can go wrong between the words and the answer, and the exit status that says so.

use std::fmt;
use std::io;
use std::str::Utf8Error;

use forebay_api::client::ConnectError;
use forebay_api::rule_json::MAX_RULE_BYTES;
use forebay_api::spec_error::SpecError;
use forebay_sriov::vf::VfError;
use tonic::Code;

/// A command that was not done. Its text is one line.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{file}: {source} (name a file of JSON lines, or - for standard input)")]
    Open { file: String, source: io::Error },
    #[error("{file}:{line}: {problem}")]
    Line { file: String, line: u64, problem: LineProblem },
    #[error("{}", Answer(.0))]
    Refused(Box<tonic::Status>),
    #[error("{count} changes were refused, the others are in force")]
    ChangesRefused { count: u64 },
    #[error("the daemon's answer has no {0} (are forebay and the daemon of the same version?)")]
    Incomplete(&'static str),
    #[error(transparent)]
    Function(#[from] VfError),
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// What is wrong with one line of a rule file.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    #[error("{0} (is the file readable, and a file?)")]
    Read(io::Error),
    #[error("longer than {MAX_RULE_BYTES} bytes (write one rule a line)")]
    TooLong,
    #[error("not UTF-8 at byte {} (JSON is UTF-8)", .0.valid_up_to() + 1)]
    Utf8(Utf8Error),
    #[error("not a change (write {{\"put\":{{…}}}} or {{\"delete\":\"ID\"}})")]
    NoChange,
    #[error(transparent)]
    Spec(#[from] SpecError),
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Failure {
    /// 2 where the words or the file are wrong, 1 for all else.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Spec(_) | Self::Open { .. } => 2,
            Self::Line { problem: LineProblem::Read(_), .. } => 1,
            Self::Line { .. } => 2,
            Self::Refused(status) if status.code() == Code::InvalidArgument => 2,
            _ => 1,
        }
    }
}

/// A status as a person reads it, in one line whatever the daemon wrote.
struct Answer<'a>(&'a tonic::Status);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message: String = self
            .0
            .message()
            .chars()
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect();
        match self.0.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                write!(
                    out,
                    "the daemon's answer did not arrive: {message} (is it still running? then try again)"
                )
            }
            code if message.is_empty() => write!(out, "the daemon refused: {}", code.description()),
            _ => out.write_str(&message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_tells_wrong_words_from_failures() {
        let of = |status: tonic::Status| Failure::from(status).exit_status();
        assert_eq!(of(tonic::Status::invalid_argument("x")), 2);
        assert_eq!(of(tonic::Status::not_found("x")), 1);
        assert_eq!(of(tonic::Status::failed_precondition("x")), 1);
        let line = |problem| Failure::Line { file: "f".into(), line: 1, problem }.exit_status();
        assert_eq!(line(LineProblem::TooLong), 2);
        assert_eq!(line(LineProblem::Read(io::ErrorKind::Other.into())), 1);
    }

    #[test]
    fn answers_are_one_line() {
        let text = |status: tonic::Status| Failure::from(status).to_string();
        assert_eq!(
            text(tonic::Status::not_found("rule \"a\": none\nof that id")),
            "rule \"a\": none of that id"
        );
        assert!(text(tonic::Status::unavailable("broken pipe")).contains("did not arrive: broken pipe"));
        assert!(!text(tonic::Status::permission_denied("")).is_empty());
    }
}

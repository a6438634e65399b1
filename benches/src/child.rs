//! A child process that never outlives its owner, and the file that it writes its words to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::error::BenchError;

/// How often a child is looked at while it is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of a child's log that an error shows.
const TAIL_LINES: usize = 4;

/// A running child. Dropped, it is killed and waited for: nothing that a benchmark measures is worth a farewell, and its
/// files lie in a folder that goes away.
#[derive(Debug)]
pub(crate) struct OwnChild {
    child: Child,
    log: PathBuf,
}

/// What happened first to a child that was waited for.
#[derive(Debug)]
pub(crate) enum Waited {
    /// The words stand in its log.
    Said,
    /// It ended.
    Ended(ExitStatus),
    /// Neither, in the time given.
    Neither,
}

impl OwnChild {
    /// Starts a command with both outputs in one new log file. Its input is a pipe if asked for, else nothing.
    pub(crate) fn start(command: &mut Command, log: &Path, piped: bool) -> Result<Self, BenchError> {
        let error = |source| BenchError::File { path: log.to_owned(), source };
        let out = File::create(log).map_err(error)?;
        let also = out.try_clone().map_err(error)?;
        let input = if piped { Stdio::piped() } else { Stdio::null() };
        let child = command.stdin(input).stdout(out).stderr(also).spawn();
        let program = || PathBuf::from(command.get_program());
        let child = child.map_err(|source| BenchError::File { path: program(), source })?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pipe to its input; once.
    pub(crate) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Everything that it wrote so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its last lines, as one.
    pub(crate) fn tail(&self) -> String {
        tail_of(&self.said())
    }

    /// Waits until it has written `words`, or has ended.
    pub(crate) async fn wait_for(
        &mut self,
        words: Option<&str>,
        patience: Duration,
    ) -> Result<Waited, BenchError> {
        let deadline = Instant::now() + patience;
        loop {
            if words.is_some_and(|words| self.said().contains(words)) {
                return Ok(Waited::Said);
            }
            let ended = self.child.try_wait();
            let ended =
                ended.map_err(|source| BenchError::System { what: "wait for a child process", source })?;
            if let Some(status) = ended {
                return Ok(Waited::Ended(status));
            }
            if Instant::now() >= deadline {
                return Ok(Waited::Neither);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for OwnChild {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "it wrote nothing".to_owned(),
        count => lines[count.saturating_sub(TAIL_LINES)..].join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (tempfile::TempDir, OwnChild) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let child = OwnChild::start(Command::new("/bin/sh").args(["-c", script]), &log, true).unwrap();
        (folder, child)
    }

    #[tokio::test]
    async fn words_an_end_and_patience_are_told_apart() {
        let second = Duration::from_secs(10);
        let (_folder, mut child) = shell("echo ready >&2; read line; echo done; exit 3");
        assert!(matches!(child.wait_for(Some("ready"), second).await.unwrap(), Waited::Said));
        assert!(matches!(child.wait_for(None, Duration::from_millis(30)).await.unwrap(), Waited::Neither));
        drop(child.take_stdin());
        let Waited::Ended(status) = child.wait_for(Some("never"), second).await.unwrap() else {
            panic!("no end")
        };
        assert_eq!(status.code(), Some(3));
        assert_eq!(child.tail(), "ready | done");
    }

    #[tokio::test]
    async fn a_dropped_child_is_gone() {
        let (_folder, mut child) = shell("echo $$; exec sleep 60");
        assert!(matches!(child.wait_for(Some("\n"), Duration::from_secs(10)).await.unwrap(), Waited::Said));
        let process = PathBuf::from(format!("/proc/{}", child.said().trim()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }

    #[test]
    fn a_tail_is_short_and_a_missing_program_named() {
        assert_eq!(tail_of("\n \n"), "it wrote nothing");
        assert_eq!(tail_of("1\n2\n\n3\n4\n5\n"), "2 | 3 | 4 | 5");
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("/no/such/program");
        let error = OwnChild::start(&mut command, &folder.path().join("log"), false).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/program: No such file"), "{error}");
    }
}

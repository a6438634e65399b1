//! The process that sends packets at a rate and measures how long they take: how it is started, and what it says.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::child::OwnChild;
use crate::error::BenchError;
use crate::feed;
use crate::scenario::Scenario;

/// The command of this program that does it.
pub const PACER_COMMAND: &str = "bench-pacer";
/// What it says when both devices have another end.
pub const PACER_SENDING: &str = "forebay: pacing";
/// What it says before its figures.
pub const PACER_MEASURED: &str = "forebay: paced ";
/// How long it may take to tell its figures.
const PATIENCE: Duration = Duration::from_secs(60);
/// Slots of the rings between the process and what it measures, as a power of two: 16 ms of the heaviest load that is sent at a
/// rate. Linux lets another thread have a core for some 4 ms, which is as much as the 1024 slots that are usual hold.
const RING_SHIFT: u8 = 12;
/// What is sent as fast as possible keeps a ring full; the usual ones are measured then.
const SATURATED_RING_SHIFT: u8 = 10;
/// Packets that a ring holds at a rate.
pub(crate) const RING_PACKETS: u32 = 1 << RING_SHIFT;

/// What the process measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PacerFigures {
    /// Packets that the device took.
    pub sent: u64,
    /// Packets that came back.
    pub received: u64,
    /// Packets that the device did not take.
    pub refused: u64,
    /// Of those that came back, packets whose latency is not known: the process did not have its core meanwhile.
    pub unjudged: u64,
    /// How long.
    pub elapsed_ns: u64,
    /// Nanoseconds from sending to receiving of the first packet of each burst, as a histogram's buckets.
    pub first_ns: Vec<u64>,
    /// The same of the other packets.
    pub rest_ns: Vec<u64>,
}

impl PacerFigures {
    /// As the process writes them.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "sent": self.sent,
            "received": self.received,
            "refused": self.refused,
            "unjudged": self.unjudged,
            "elapsed_ns": self.elapsed_ns,
            "first_ns": self.first_ns,
            "rest_ns": self.rest_ns,
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        let number = |key: &str| value.get(key)?.as_u64();
        let buckets =
            |key: &str| value.get(key)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>();
        Some(Self {
            sent: number("sent")?,
            received: number("received")?,
            refused: number("refused")?,
            unjudged: number("unjudged")?,
            elapsed_ns: number("elapsed_ns")?,
            first_ns: buckets("first_ns")?,
            rest_ns: buckets("rest_ns")?,
        })
    }

    fn find(said: &str) -> Option<Self> {
        let line = said.lines().find_map(|line| line.strip_prefix(PACER_MEASURED))?;
        Self::from_json(&serde_json::from_str(line).ok()?)
    }
}

/// How packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Packets a second, 0 for none; no limit where there is none.
    pub packets_per_second: Option<u32>,
    /// Packets sent at once.
    pub burst: u32,
}

/// The running process.
#[derive(Debug)]
pub(crate) struct Pacer {
    child: OwnChild,
}

impl Pacer {
    /// Starts it against a daemon in the folder `own`, as [`feed::sender`] does.
    pub(crate) async fn start(
        scenario: &Scenario,
        pace: Pace,
        packets: &Path,
        own: &Path,
        worker_cores: &[usize],
    ) -> Result<Self, BenchError> {
        let shift = if pace.packets_per_second.is_none() { SATURATED_RING_SHIFT } else { RING_SHIFT };
        let client = |socket: &Path| format!("{},rsize={shift}", feed::client(socket, scenario));
        let (there, back) = (client(&feed::socket(own, 0)), client(&feed::back_socket(own, 0)));
        let pps = pace.packets_per_second.unwrap_or(0).to_string();
        let mut more: Vec<String> = vec!["--back".into(), back, "--pps".into(), pps];
        more.extend(["--burst".into(), pace.burst.to_string()]);
        if pace.packets_per_second.is_none() {
            more.push("--saturate".into());
        }
        let words = (PACER_COMMAND, PACER_SENDING);
        let child = feed::sender(words, &there, &more, packets, own, worker_cores).await?;
        Ok(Self { child })
    }

    /// Ends it, and gives what it measured.
    pub(crate) async fn end(mut self) -> Result<PacerFigures, BenchError> {
        drop(self.child.take_stdin());
        // Its figures stand in its log before it ends.
        self.child.wait_for(None, PATIENCE).await?;
        PacerFigures::find(&self.child.said()).ok_or_else(|| BenchError::Generator {
            what: "it told no figures".to_owned(),
            tail: self.child.tail(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_was_said() {
        let figures = PacerFigures {
            sent: 7,
            received: 6,
            refused: 1,
            unjudged: 2,
            elapsed_ns: 10,
            first_ns: vec![0, 3],
            rest_ns: vec![3],
        };
        let said = format!("EAL: words\n{PACER_SENDING}\n{PACER_MEASURED}{}\n", figures.to_json());
        assert_eq!(PacerFigures::find(&said), Some(figures));
        assert_eq!(PacerFigures::find("forebay: pacing"), None);
        assert_eq!(PacerFigures::find(&format!("{PACER_MEASURED}{{}}")), None);
    }
}

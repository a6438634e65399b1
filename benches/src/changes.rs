//! A stream of single-rule changes by `Rules.Change`, as a controller makes them: at a given rate, or as fast as the daemon
//! acknowledges them.
//!
//! Each change is a request, and thus a transaction, of its own. Requests are encoded before the clock runs: a controller
//! has machines of its own to do that on. Invariant: what is counted was acknowledged, and is thus durable and in force.

use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_api::change::{self, Groups};
use forebay_api::v1;
use forebay_pipeline::Histogram;
use forebay_pipeline::counters::quantile;
use prost::Message;
use tokio::sync::mpsc;

use crate::daemon::Daemon;
use crate::error::BenchError;

/// Changes that are handed to the connection at once; less than what it sends in one go.
const GROUP_CHANGES: usize = 256;
/// Groups between the sender and the connection.
const QUEUE_GROUPS: usize = 4;
/// The clock of a sleeping task ticks in milliseconds; what became due meanwhile is sent at once.
const TICK: Duration = Duration::from_millis(1);
/// Most rules that are changed as fast as possible, in turns; their changes are encoded beforehand, some 40 MiB of them.
pub(crate) const MOST_STREAMED: u64 = 1 << 17;

/// What came of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub acknowledged: u64,
    pub elapsed: Duration,
    /// How long the changes took from being sent to being acknowledged, nanoseconds, as counts of a [`Histogram`].
    pub answers_ns: Vec<u64>,
}

impl Changes {
    /// Changes acknowledged per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.acknowledged as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The time within which a share of the answers came, nanoseconds; at most an eighth too high.
    pub(crate) fn answer_ns(&self, share: f64) -> u64 {
        quantile(&self.answers_ns, share)
    }
}

/// Rules that are put in turns: each comes once in its first form, then each in its second, then in its first again. So
/// each is a change, as long as the table has none of them when it begins.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    rules: Vec<Bytes>,
}

impl Turns {
    /// The two forms of some rules, in the order in which they come.
    pub(crate) fn new(forms: [impl Iterator<Item = v1::Rule>; 2]) -> Self {
        Self { rules: forms.into_iter().flatten().map(|rule| rule.encode_to_vec().into()).collect() }
    }

    fn requests(self) -> impl Iterator<Item = v1::ChangeRequest> + Send {
        let mut place = 0;
        (1..).map_while(move |sequence| {
            let rule = self.rules.get(place)?.clone();
            place = if place + 1 == self.rules.len() { 0 } else { place + 1 };
            Some(v1::ChangeRequest { sequence, deletes: Vec::new(), puts: vec![rule] })
        })
    }
}

/// Changes rules for `duration`, `rate` of them a second, and waits for every answer.
pub(crate) async fn paced(
    daemon: &Daemon,
    rules: impl Iterator<Item = v1::Rule>,
    rate: u32,
    duration: Duration,
) -> Result<Changes, BenchError> {
    let count = due(rate, duration) as usize;
    let requests: Vec<_> =
        (1..).zip(rules.take(count)).map(|(sequence, rule)| request(sequence, &rule)).collect();
    run(daemon, |groups| send_paced(requests, rate, duration, groups)).await
}

/// Changes rules for `duration` as fast as the daemon acknowledges them, and waits for every answer.
pub(crate) async fn unpaced(
    daemon: &Daemon,
    turns: Turns,
    duration: Duration,
) -> Result<Changes, BenchError> {
    run(daemon, |groups| send_all(turns.requests(), duration, groups)).await
}

fn request(sequence: u64, rule: &v1::Rule) -> v1::ChangeRequest {
    v1::ChangeRequest::new(sequence, Vec::new(), [rule])
}

/// Runs a stream whose requests `send` hands over.
async fn run<S: Future<Output = ()> + Send + 'static>(
    daemon: &Daemon,
    send: impl FnOnce(mpsc::Sender<Vec<v1::ChangeRequest>>) -> S,
) -> Result<Changes, BenchError> {
    let (groups, waiting) = mpsc::channel(QUEUE_GROUPS);
    let sender = tokio::spawn(send(groups));
    let (answers_ns, mut refused) = (Histogram::default(), None);
    let report = change::run_timed(
        &mut daemon.rules_client(),
        Groups::new(waiting),
        |sequence, refusal| {
            refused.get_or_insert_with(|| format!("change {sequence}: {}", refusal.message));
        },
        |wait| answers_ns.record(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX), 1),
    )
    .await;
    sender.abort();
    let what = "change rules";
    let report = report.map_err(|status| daemon.refused(what, &status))?;
    if let Some(refused) = refused {
        return Err(daemon.refused(what, &tonic::Status::unknown(refused)));
    }
    if report.changed != report.requests {
        let (requests, changed) = (report.requests, report.changed);
        return Err(BenchError::Insane(format!("{requests} changes of one rule each changed {changed}")));
    }
    let answers_ns = answers_ns.snapshot();
    Ok(Changes { acknowledged: report.requests, elapsed: report.elapsed, answers_ns })
}

/// Hands requests over as they become due. Fails only where the connection broke, which its other end tells.
async fn send_paced(
    requests: Vec<v1::ChangeRequest>,
    rate: u32,
    duration: Duration,
    groups: mpsc::Sender<Vec<v1::ChangeRequest>>,
) {
    let (start, mut sent, mut requests) = (Instant::now(), 0, requests.into_iter());
    while start.elapsed() < duration {
        let ready = (due(rate, start.elapsed()).saturating_sub(sent) as usize).min(GROUP_CHANGES);
        let group: Vec<_> = requests.by_ref().take(ready).collect();
        sent += group.len() as u64;
        let caught_up = group.len() < GROUP_CHANGES;
        if !group.is_empty() && groups.send(group).await.is_err() {
            return;
        }
        if caught_up {
            tokio::time::sleep(TICK).await;
        }
    }
}

async fn send_all(
    mut requests: impl Iterator<Item = v1::ChangeRequest>,
    duration: Duration,
    groups: mpsc::Sender<Vec<v1::ChangeRequest>>,
) {
    let start = Instant::now();
    while start.elapsed() < duration {
        let group: Vec<_> = requests.by_ref().take(GROUP_CHANGES).collect();
        if group.is_empty() || groups.send(group).await.is_err() {
            return;
        }
    }
}

/// How many changes should have been sent after some time.
fn due(rate: u32, elapsed: Duration) -> u64 {
    (f64::from(rate) * elapsed.as_secs_f64()) as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_come_due_evenly() {
        assert_eq!(due(1000, Duration::ZERO), 1);
        assert_eq!(due(1000, Duration::from_millis(10)), 11);
        assert_eq!(due(1, Duration::from_millis(10)), 1);
    }

    #[test]
    fn answers_are_summed_up() {
        let answers = Histogram::default();
        (1..=100).for_each(|answer| answers.record(answer * 1000, 1));
        let elapsed = Duration::from_millis(500);
        let changes = Changes { acknowledged: 100, elapsed, answers_ns: answers.snapshot() };
        assert!((changes.per_second() - 200.0).abs() < 1e-9);
        for (share, exact) in [(0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let answer = changes.answer_ns(share);
            assert!((exact..=exact * 9 / 8).contains(&answer), "{share}: {answer}");
        }
        assert_eq!(Changes::default().answer_ns(0.5), 0);
    }

    #[test]
    fn forms_take_turns() {
        let rule = |id: &str, port: &str| v1::Rule {
            id: id.to_owned(),
            port: port.to_owned(),
            ..v1::Rule::default()
        };
        let form = |port: &'static str| ["a", "b"].into_iter().map(move |id| rule(id, port));
        let requests: Vec<_> = Turns::new([form("1"), form("2")]).requests().take(6).collect();
        let decoded: Vec<_> = requests
            .iter()
            .map(|request| v1::Rule::decode(request.puts[0].clone()).unwrap())
            .map(|rule| format!("{}{}", rule.id, rule.port))
            .collect();
        assert_eq!(decoded, ["a1", "b1", "a2", "b2", "a1", "b1"]);
        assert_eq!(requests.iter().map(|request| request.sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(Turns::new([form("1").take(0), form("2").take(0)]).requests().count(), 0);
    }

    #[tokio::test]
    async fn requests_are_sent_until_the_time_is_over() {
        let requests: Vec<_> = (1..).zip(std::iter::repeat_n(v1::Rule::default(), 101)).collect();
        let requests = requests.iter().map(|(sequence, rule)| request(*sequence, rule)).collect();
        let (groups, mut waiting) = mpsc::channel(1000);
        send_paced(requests, 1000, Duration::from_millis(100), groups).await;
        let mut sent = Vec::new();
        while let Some(group) = waiting.recv().await {
            sent.extend(group.into_iter().map(|request| request.sequence));
        }
        assert!((50..=101).contains(&sent.len()), "{}", sent.len());
        assert!(sent.iter().copied().eq(1..=sent.len() as u64));
    }
}

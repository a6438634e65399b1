//! A stream of single-rule changes at a given rate, as a controller makes them.
//!
//! This is the one place that knows by which call a change is made: each is a transaction of `Rules.Load` with one rule,
//! and so many are on their way at once as the daemon answers within the time that the rate leaves. Invariant: what is
//! counted was acknowledged, and is thus durable and in force.

use std::time::{Duration, Instant};

use forebay_api::v1;
use forebay_api::v1::rules_client::RulesClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::daemon::Daemon;
use crate::error::BenchError;

/// Changes on their way at once: enough that the daemon never waits for the next; more would only wait for each other.
const MOST_WAITING: usize = 32;
/// The clock of a sleeping task ticks in milliseconds; what became due meanwhile is sent at once.
const TICK: Duration = Duration::from_millis(1);

/// What came of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    pub acknowledged: u64,
    pub elapsed: Duration,
    /// How long each change took from being sent to being acknowledged, nanoseconds, sorted.
    pub answers_ns: Vec<u64>,
}

impl Changes {
    /// Changes acknowledged per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.acknowledged as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The time within which a share of the answers came, nanoseconds.
    pub(crate) fn answer_ns(&self, share: f64) -> u64 {
        let last = self.answers_ns.len().saturating_sub(1);
        let place = (self.answers_ns.len() as f64 * share).ceil() as usize;
        self.answers_ns.get(place.saturating_sub(1).min(last)).copied().unwrap_or(0)
    }
}

/// Changes rules for `duration`, at most `rate` of them a second, and waits for every answer.
pub(crate) async fn stream(
    daemon: &Daemon,
    mut rules: impl Iterator<Item = v1::Rule>,
    rate: u32,
    duration: Duration,
) -> Result<Changes, BenchError> {
    let (start, mut sent, mut waiting) = (Instant::now(), 0_u64, JoinSet::new());
    let mut changes = Changes::default();
    while start.elapsed() < duration {
        let due = due(rate, start.elapsed());
        while sent < due
            && waiting.len() < MOST_WAITING
            && let Some(rule) = rules.next()
        {
            waiting.spawn(change(daemon.rules_client(), rule));
            sent += 1;
        }
        match tokio::time::timeout(TICK, waiting.join_next()).await {
            Ok(Some(answer)) => changes.note(answer, daemon)?,
            // Nothing is on its way.
            Ok(None) => tokio::time::sleep(TICK).await,
            Err(_) => {}
        }
    }
    while let Some(answer) = waiting.join_next().await {
        changes.note(answer, daemon)?;
    }
    changes.elapsed = start.elapsed();
    changes.answers_ns.sort_unstable();
    Ok(changes)
}

impl Changes {
    fn note(
        &mut self,
        answer: Result<Result<(u64, Duration), tonic::Status>, tokio::task::JoinError>,
        daemon: &Daemon,
    ) -> Result<(), BenchError> {
        let answer = answer.unwrap_or_else(|error| Err(tonic::Status::internal(error.to_string())));
        let (changed, took) = answer.map_err(|status| daemon.refused("change a rule", &status))?;
        if changed != 1 {
            return Err(BenchError::Insane(format!("a change of one rule changed {changed}")));
        }
        self.acknowledged += 1;
        self.answers_ns.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        Ok(())
    }
}

/// One change; gives how many rules it changed and how long it took.
async fn change(mut client: RulesClient<Channel>, rule: v1::Rule) -> Result<(u64, Duration), tonic::Status> {
    let start = Instant::now();
    let message = v1::LoadRulesRequest::new([&rule], false);
    let answer = client.load(tokio_stream::once(message)).await?.into_inner();
    Ok((answer.changed, start.elapsed()))
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
        let changes = Changes {
            acknowledged: 100,
            elapsed: Duration::from_millis(500),
            answers_ns: (1..=100).collect(),
        };
        assert!((changes.per_second() - 200.0).abs() < 1e-9);
        assert_eq!((changes.answer_ns(0.5), changes.answer_ns(0.99), changes.answer_ns(1.0)), (50, 99, 100));
        assert_eq!(Changes::default().answer_ns(0.5), 0);
    }
}

//! The thread that makes changes of rules: whatever has come while it was busy is made together.
//!
//! One client that waits for each answer gets a write to the disk for each change; a thousand of them, or one that does not
//! wait, share theirs. The queue is bounded, and so is what a stream may have under way: who sends faster waits.

use super::commit::Committed;
use super::host::Host;
use super::request::{Batch, Outcome};
use forebay_pipeline::memory::give_memory_back;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Batches that wait: one or two of each of some dozen clients.
const QUEUE_BATCHES: usize = 64;
/// Changes after which a group is closed: the rest waits for the next group, and so the first get their answers.
const GROUP_CHANGES: usize = 1 << 14;
/// Changes after which freed memory goes back to the system as soon as nothing waits: some ten MiB.
const CHANGES_GIVEN_BACK: usize = 1 << 15;

struct Job {
    batch: Batch,
    answer: oneshot::Sender<Vec<Outcome>>,
}

/// Where changes are handed in. The thread ends when the last copy is gone and everything is answered.
#[derive(Clone)]
pub struct Committer {
    jobs: mpsc::Sender<Job>,
}

/// The host is stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the daemon is stopping (try again when it runs)")]
pub struct Stopping;

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(host: Arc<Host>) -> std::io::Result<Committer> {
        let (jobs, waiting) = mpsc::channel(QUEUE_BATCHES);
        std::thread::Builder::new().name("committer".into()).spawn(move || run(&host, waiting))?;
        Ok(Committer { jobs })
    }

    /// Hands in a batch; waits while the queue is full. The answer comes when its requests are durable and in force.
    ///
    /// # Errors
    /// The host is stopping.
    pub async fn hand_in(&self, batch: Batch) -> Result<oneshot::Receiver<Vec<Outcome>>, Stopping> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { batch, answer }).await.map_err(|_| Stopping)?;
        Ok(answered)
    }
}

fn run(host: &Host, mut waiting: mpsc::Receiver<Job>) {
    let mut since = 0;
    while let Some(first) = waiting.blocking_recv() {
        let (mut batches, mut answers, mut changes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(Job { batch, answer }) = next {
            changes += batch.len();
            batches.push(batch);
            answers.push(answer);
            next = if changes < GROUP_CHANGES { waiting.try_recv().ok() } else { None };
        }
        let Committed { outcomes, gives_back } = host.commit(batches);
        for (outcomes, answer) in outcomes.into_iter().zip(answers) {
            // A client that has gone away does not want to know.
            let _ = answer.send(outcomes);
        }
        // Twice would find nothing, and yet interrupt every worker once for each piece.
        since += if gives_back { 0 } else { changes };
        while waiting.is_empty() {
            match host.clean_log() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!("the log of rules cannot be cleaned: {error}");
                    break;
                }
            }
        }
        if since >= CHANGES_GIVEN_BACK && waiting.is_empty() {
            give_memory_back();
            since = 0;
        }
    }
}

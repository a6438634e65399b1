//! The client's side of `Rules.Change`: sends requests as fast as the daemon takes them, and matches its replies with them.
//!
//! Requests that are ready together travel together: the connection gathers them into frames, so that one change per
//! request costs little more than many. The invariant: [`run`] returns `Ok` only where each request has been answered.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;
use tonic::transport::Channel;

use crate::v1::rules_client::RulesClient;
use crate::v1::{ChangeReply, ChangeRequest, Refusal};

/// What a stream of changes came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that were answered.
    pub requests: u64,
    /// Of these, the refused ones.
    pub refused: u64,
    /// Rules that were added, replaced by a different one, or deleted.
    pub changed: u64,
    /// Rules that were put and stood there already.
    pub unchanged: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// The longest time from when the connection took a request to its answer.
    pub longest_wait: Duration,
}

/// A stream of requests that arrive in groups: a sender's channel costs less per group than per request.
pub struct Groups {
    groups: mpsc::Receiver<Vec<ChangeRequest>>,
    current: std::vec::IntoIter<ChangeRequest>,
}

impl Groups {
    /// The requests of every group that the channel brings; they end with it.
    pub fn new(groups: mpsc::Receiver<Vec<ChangeRequest>>) -> Groups {
        Groups { groups, current: Vec::new().into_iter() }
    }
}

impl Stream for Groups {
    type Item = ChangeRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ChangeRequest>> {
        loop {
            if let Some(request) = self.current.next() {
                return Poll::Ready(Some(request));
            }
            match std::task::ready!(self.groups.poll_recv(context)) {
                Some(group) => self.current = group.into_iter(),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Requests on their way, oldest first, with when they were sent.
type Sent = Arc<Mutex<VecDeque<(u64, Instant)>>>;

/// Notes what passes.
struct Noted<S> {
    requests: S,
    sent: Sent,
}

impl<S: Stream<Item = ChangeRequest> + Unpin> Stream for Noted<S> {
    type Item = ChangeRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ChangeRequest>> {
        let next = std::task::ready!(Pin::new(&mut self.requests).poll_next(context));
        if let Some(request) = &next {
            self.sent.lock().push_back((request.sequence, Instant::now()));
        }
        Poll::Ready(next)
    }
}

/// Sends requests until their stream ends and every one is answered. `refused` is told of each that was refused: its
/// sequence number and why.
///
/// # Errors
/// The connection broke, or the daemon answered what was not asked: some requests may be in force without having been
/// answered.
pub async fn run(
    client: &mut RulesClient<Channel>,
    requests: impl Stream<Item = ChangeRequest> + Send + Unpin + 'static,
    refused: impl FnMut(u64, Refusal),
) -> Result<Report, Status> {
    run_timed(client, requests, refused, |_| {}).await
}

/// As [`run`]. `waited` is told of each answered request, in order, how long it was on its way: from when the connection
/// took it to its answer.
///
/// # Errors
/// As [`run`].
pub async fn run_timed(
    client: &mut RulesClient<Channel>,
    requests: impl Stream<Item = ChangeRequest> + Send + Unpin + 'static,
    mut refused: impl FnMut(u64, Refusal),
    mut waited: impl FnMut(Duration),
) -> Result<Report, Status> {
    let sent = Sent::default();
    let begun = Instant::now();
    let mut replies = client.change(Noted { requests, sent: sent.clone() }).await?.into_inner();
    let mut report = Report::default();
    while let Some(reply) = replies.message().await? {
        note(&mut report, &reply, &sent, &mut waited)?;
        if let Some(refusal) = reply.refusal {
            report.refused += 1;
            refused(reply.sequence, refusal);
        }
    }
    report.elapsed = begun.elapsed();
    match sent.lock().len() {
        0 => Ok(report),
        unanswered => Err(Status::unknown(format!("{unanswered} changes were not answered"))),
    }
}

fn note(
    report: &mut Report,
    reply: &ChangeReply,
    sent: &Sent,
    waited: &mut impl FnMut(Duration),
) -> Result<(), Status> {
    let now = Instant::now();
    let mut sent = sent.lock();
    let mut last = None;
    for _ in 0..reply.requests {
        let Some((sequence, at)) = sent.pop_front() else { break };
        let wait = now.duration_since(at);
        waited(wait);
        report.longest_wait = report.longest_wait.max(wait);
        last = Some(sequence);
    }
    if last != Some(reply.sequence) {
        let sequence = reply.sequence;
        return Err(Status::data_loss(format!("the daemon answered change {sequence} out of turn")));
    }
    report.requests += reply.requests;
    report.changed += reply.changed;
    report.unchanged += reply.unchanged;
    Ok(())
}

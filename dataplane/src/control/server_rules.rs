//! The `Rules` service: transactions and streams of changes into the committer, listings out of the book.

use super::committer::Committer;
use super::host::HostError;
use super::request::{Batch, Outcome};
use super::rule_error::RuleError;
use super::server::{Service, status};
use crate::counters::MAX_RULES;
use forebay_api::v1;
use std::collections::VecDeque;
use std::hash::RandomState;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Rules that are read from the state at a time for a listing.
const LIST_CHUNK: usize = 1000;
/// Messages that wait for a slow reader of a stream.
const STREAM_BACKLOG: usize = 64;
/// Changes of a stream that travel together: as many as come while the group before is made.
const BATCH_CHANGES: usize = 4096;
/// Batches that a stream may have under way: one that is being made, one that waits for its end, and one that follows.
const BATCHES_UNDER_WAY: usize = 3;

#[tonic::async_trait]
impl v1::rules_server::Rules for Service {
    async fn load(
        &self,
        request: Request<Streaming<v1::LoadRulesRequest>>,
    ) -> Result<Response<v1::LoadRulesResponse>, Status> {
        let mut stream = request.into_inner();
        let mut batch = Batch::new(self.host.fingerprints());
        // A client that goes away ends the stream with an error: nothing has been changed then.
        while let Some(part) = stream.message().await? {
            batch.dry_run |= part.dry_run;
            for rule in part.rules {
                batch.put(&rule)?;
            }
            if batch.len() > MAX_RULES {
                return Err(HostError::Rule(RuleError::TooMany { count: batch.len() }).into());
            }
        }
        batch.end_request(None);
        let counts = self.commit(batch).await?;
        let (changed, unchanged) = (counts.changed as u64, counts.unchanged as u64);
        Ok(Response::new(v1::LoadRulesResponse { changed, unchanged }))
    }

    type ChangeStream = ReceiverStream<Result<v1::ChangeReply, Status>>;

    async fn change(
        &self,
        request: Request<Streaming<v1::ChangeRequest>>,
    ) -> Result<Response<Self::ChangeStream>, Status> {
        let (replies, receiver) = mpsc::channel(STREAM_BACKLOG);
        let (under_way, waiting) = mpsc::channel(BATCHES_UNDER_WAY);
        let fingerprints = self.host.fingerprints();
        tokio::spawn(take_changes(request.into_inner(), fingerprints, self.committer.clone(), under_way));
        tokio::spawn(reply_to_changes(waiting, replies));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRulesRequest>,
    ) -> Result<Response<v1::DeleteRulesResponse>, Status> {
        let mut batch = Batch::new(self.host.fingerprints());
        batch.deletes = request.into_inner().ids;
        batch.end_request(None);
        let deleted = self.commit(batch).await?.changed as u64;
        Ok(Response::new(v1::DeleteRulesResponse { deleted }))
    }

    type ListStream = ReceiverStream<Result<v1::RuleStatus, Status>>;

    async fn list(
        &self,
        request: Request<v1::ListRulesRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let port = request.into_inner().port;
        let ids = self.change(move |host| host.rule_ids(&port)).await?;
        let (sender, receiver) = mpsc::channel(STREAM_BACKLOG);
        let host = self.host.clone();
        tokio::task::spawn_blocking(move || {
            for chunk in ids.chunks(LIST_CHUNK) {
                let statuses = match host.rules(chunk) {
                    Ok(statuses) => statuses,
                    Err(error) => {
                        // The reader has gone away, or is told; there is no third case.
                        let _ = sender.blocking_send(Err(error.into()));
                        return;
                    }
                };
                for status in statuses {
                    if sender.blocking_send(Ok(status)).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get(&self, request: Request<v1::GetRuleRequest>) -> Result<Response<v1::RuleStatus>, Status> {
        let id = request.into_inner().id;
        let found = {
            let id: Arc<str> = id.as_str().into();
            self.change(move |host| host.rules(&[id])).await?
        };
        let missing = || Status::from(HostError::Rule(RuleError::NoRule { id }));
        found.into_iter().next().map(Response::new).ok_or_else(missing)
    }
}

/// A batch of a stream that has been handed in: the sequence numbers of its requests, and where its answer comes from.
/// Without one, the stream ends with this status.
type UnderWay = Result<(Vec<u64>, oneshot::Receiver<Vec<Outcome>>), Status>;

/// Reads a stream of changes. What has arrived is handed in as one batch; what arrives meanwhile becomes the next one.
async fn take_changes(
    mut stream: Streaming<v1::ChangeRequest>,
    fingerprints: RandomState,
    committer: Committer,
    under_way: mpsc::Sender<UnderWay>,
) {
    loop {
        // Room first: while there is none, requests stay with the client.
        let Ok(room) = under_way.reserve().await else { return };
        let mut batch = Batch::new(fingerprints.clone());
        let mut sequences = Vec::new();
        let mut arrived = Some(stream.message().await);
        let mut end = None;
        while let Some(message) = arrived {
            match message {
                Ok(Some(request)) => {
                    sequences.push(request.sequence);
                    add_request(&mut batch, request);
                }
                Ok(None) => end = Some(Ok(())),
                Err(status) => end = Some(Err(status)),
            }
            if end.is_some() || batch.len() >= BATCH_CHANGES {
                break;
            }
            arrived = at_hand(&mut stream).await;
        }
        if !sequences.is_empty() {
            match committer.hand_in(batch).await {
                Ok(answer) => room.send(Ok((sequences, answer))),
                Err(stopping) => return room.send(Err(stopping.into())),
            };
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(status)) => {
                // Who reads the replies has gone away as well, or is told.
                let _ = under_way.send(Err(status)).await;
                return;
            }
        }
    }
}

/// The next message, if it has arrived already.
async fn at_hand(
    stream: &mut Streaming<v1::ChangeRequest>,
) -> Option<Result<Option<v1::ChangeRequest>, Status>> {
    std::future::poll_fn(|context| {
        Poll::Ready(match Pin::new(&mut *stream).poll_next(context) {
            Poll::Ready(message) => Some(message.transpose()),
            Poll::Pending => None,
        })
    })
    .await
}

fn add_request(batch: &mut Batch, request: v1::ChangeRequest) {
    batch.deletes.extend(request.deletes);
    let refusal = request.puts.iter().find_map(|rule| batch.put(rule).err());
    batch.end_request(refusal);
}

/// Answers the requests of a stream in their order: one reply for as many as possible.
async fn reply_to_changes(
    mut under_way: mpsc::Receiver<UnderWay>,
    replies: mpsc::Sender<Result<v1::ChangeReply, Status>>,
) {
    while let Some(batch) = under_way.recv().await {
        let answered = match batch {
            Ok((sequences, answer)) => answer.await.map(|outcomes| (sequences, outcomes)),
            Err(status) => {
                // The reader has gone away, or is told; there is no third case.
                let _ = replies.send(Err(status)).await;
                return;
            }
        };
        let Ok((sequences, outcomes)) = answered else {
            let _ = replies.send(Err(Status::internal("the changes failed unexpectedly"))).await;
            return;
        };
        for reply in gather(&sequences, &outcomes) {
            if replies.send(Ok(reply)).await.is_err() {
                return;
            }
        }
    }
}

/// The replies to requests: those in a row that were carried out share one.
fn gather(sequences: &[u64], outcomes: &[Outcome]) -> VecDeque<v1::ChangeReply> {
    let mut replies: VecDeque<v1::ChangeReply> = VecDeque::new();
    for (sequence, outcome) in sequences.iter().zip(outcomes) {
        let mut reply = match replies.pop_back() {
            Some(last) if last.refusal.is_none() && outcome.is_ok() => last,
            Some(last) => {
                replies.push_back(last);
                v1::ChangeReply::default()
            }
            None => v1::ChangeReply::default(),
        };
        reply.sequence = *sequence;
        reply.requests += 1;
        match outcome {
            Ok(counts) => {
                reply.changed += counts.changed as u64;
                reply.unchanged += counts.unchanged as u64;
            }
            Err(error) => {
                let status = status(error);
                let (code, message) = (status.code() as i32 as u32, status.message().to_owned());
                reply.refusal = Some(v1::Refusal { code, message });
            }
        }
        replies.push_back(reply);
    }
    replies
}

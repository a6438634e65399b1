//! What a server of the control API needs beyond the generated code: to tell a request that ended from one that was
//! broken off.
//!
//! The end of a `Rules.Load` stream commits it. But where a client cancels its call (its process dies, its deadline
//! passes, its user presses ^C), HTTP/2 says so by a stream reset with CANCEL, and both hyper and tonic turn that
//! reset into a regular end of the stream: half a transaction would be committed. The HTTP/2 layer still knows
//! whether the peer's END_STREAM has arrived, so each request body is wrapped in one that asks it. The invariant:
//! a handler that sees the end of its request stream has seen the whole request.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::util::MapRequestLayer;

type Request = http::Request<Body>;

/// The layer that makes every request that is broken off an error (`ABORTED`) for its handler. Each server of the
/// control API has it: `Server::builder().layer(whole_requests())`.
pub fn whole_requests() -> MapRequestLayer<fn(Request) -> Request> {
    MapRequestLayer::new(|request| request.map(|body| Body::new(Whole { body, ended: false })))
}

/// A request body that ends only where its peer ended it.
struct Whole {
    body: Body,
    ended: bool,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let broken_off = || Status::aborted("the request was broken off before its end: nothing has changed");
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.ended = !matches!(frame, Some(Ok(_)));
        Poll::Ready(match frame {
            // The one state in which HTTP/2 has seen END_STREAM and all data before it.
            None if self.body.is_end_stream() => None,
            None => Some(Err(broken_off())),
            // tonic takes this code, too, for a regular end.
            Some(Err(status)) if status.code() == Code::Cancelled => Some(Err(broken_off())),
            other => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::net::UnixListener;
    use tokio::sync::mpsc;
    use tokio_stream::StreamExt as _;
    use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
    use tonic::{Response, Streaming};

    use super::*;
    use crate::client::connect;
    use crate::v1;
    use crate::v1::rules_server::{Rules, RulesServer};

    /// Reports how each request stream ended: the messages before its regular end, or the code of its error.
    struct Reporter(mpsc::UnboundedSender<Result<usize, Code>>);

    #[tonic::async_trait]
    impl Rules for Reporter {
        async fn load(
            &self,
            request: tonic::Request<Streaming<v1::LoadRulesRequest>>,
        ) -> Result<Response<v1::LoadRulesResponse>, Status> {
            let (mut stream, mut messages) = (request.into_inner(), 0);
            loop {
                match stream.message().await {
                    Ok(Some(_)) => messages += 1,
                    Ok(None) => {
                        self.0.send(Ok(messages)).unwrap();
                        return Ok(Response::new(v1::LoadRulesResponse::default()));
                    }
                    Err(status) => {
                        self.0.send(Err(status.code())).unwrap();
                        return Err(status);
                    }
                }
            }
        }

        async fn delete(
            &self,
            _: tonic::Request<v1::DeleteRulesRequest>,
        ) -> Result<Response<v1::DeleteRulesResponse>, Status> {
            Ok(Response::new(v1::DeleteRulesResponse { deleted: 1 }))
        }

        type ChangeStream = tokio_stream::Empty<Result<v1::ChangeReply, Status>>;

        async fn change(
            &self,
            _: tonic::Request<Streaming<v1::ChangeRequest>>,
        ) -> Result<Response<Self::ChangeStream>, Status> {
            Ok(Response::new(tokio_stream::empty()))
        }

        type ListStream = tokio_stream::Empty<Result<v1::RuleStatus, Status>>;

        async fn list(
            &self,
            _: tonic::Request<v1::ListRulesRequest>,
        ) -> Result<Response<Self::ListStream>, Status> {
            Ok(Response::new(tokio_stream::empty()))
        }

        async fn get(
            &self,
            _: tonic::Request<v1::GetRuleRequest>,
        ) -> Result<Response<v1::RuleStatus>, Status> {
            Err(Status::not_found("none"))
        }
    }

    fn serve() -> (mpsc::UnboundedReceiver<Result<usize, Code>>, tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("forebay.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let (report, ends) = mpsc::unbounded_channel();
        let server = tonic::transport::Server::builder()
            .layer(whole_requests())
            .add_service(RulesServer::new(Reporter(report)));
        tokio::spawn(server.serve_with_incoming(listener));
        (ends, directory, socket)
    }

    #[tokio::test]
    async fn a_request_that_is_ended_ends() {
        let (mut ends, _directory, socket) = serve();
        let mut client = connect(&socket).await.unwrap();
        for count in [0, 1, 100] {
            let messages = tokio_stream::iter(vec![v1::LoadRulesRequest::default(); count]);
            client.rules.load(messages).await.unwrap();
            assert_eq!(ends.recv().await, Some(Ok(count)));
        }
        // Unary calls are whole requests as well.
        assert_eq!(
            client.rules.delete(v1::DeleteRulesRequest::default()).await.unwrap().into_inner().deleted,
            1
        );
    }

    #[tokio::test]
    async fn a_request_that_is_cancelled_is_an_error() {
        for (round, messages) in [0, 1, 3, 50].into_iter().cycle().take(40).enumerate() {
            let (mut ends, _directory, socket) = serve();
            let mut client = connect(&socket).await.unwrap();
            let (send, receive) = mpsc::channel(64);
            let pending = ReceiverStream::new(receive).chain(tokio_stream::pending());
            let call = tokio::spawn(async move { client.rules.load(pending).await.map(|_| ()) });
            for _ in 0..messages {
                send.send(v1::LoadRulesRequest::new([&v1::Rule::default()], false)).await.unwrap();
            }
            // Cancelled early and late: before the messages are sent, and long after.
            tokio::time::sleep(Duration::from_millis(round as u64 % 5)).await;
            call.abort();
            let end = tokio::time::timeout(Duration::from_secs(1), ends.recv()).await;
            // Nothing at all where the call never reached the handler, or the handler was dropped first.
            assert!(!matches!(end, Ok(Some(Ok(_)))), "{messages} messages, then a regular end");
        }
    }
}

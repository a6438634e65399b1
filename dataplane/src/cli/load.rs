//! Loading rules: a file of JSON lines becomes one transaction.
//!
//! A thread reads and parses while the connection sends; a short queue between the two bounds the memory. The
//! daemon commits where the request stream ends, so the invariant is: the stream ends only after [`Piece::Commit`].
//! Where the file turns out wrong, the call is dropped while its stream still waits, and the daemon sees an aborted
//! call, never an end.

use std::io::{self, BufRead};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use forebay_api::client::Client;
use forebay_api::rule_json;
use forebay_api::v1::{LoadRulesRequest, LoadRulesResponse, Rule};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;

use super::failure::{Failure, LineProblem};
use super::lines::Lines;

/// Rules in one message: enough that a message's cost vanishes beside its rules', few enough that the daemon sees
/// the first of them soon.
const MESSAGE_RULES: usize = 1000;

/// Bytes of rule lines after which a message is sent whatever their number: far under the message limit.
const MESSAGE_BYTES: usize = 1 << 20;

/// Messages between the reading thread and the connection: one being sent, one ready, two of slack.
const QUEUE_MESSAGES: usize = 4;

/// Bytes read from the file at once.
const READ_BYTES: usize = 256 << 10;

/// What the reading thread hands to the connection.
enum Piece {
    Rules(LoadRulesRequest),
    Commit,
}

/// The request stream: it ends after a commit, and waits for ever where none came.
struct Transaction(mpsc::Receiver<Piece>);

impl Stream for Transaction {
    type Item = LoadRulesRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LoadRulesRequest>> {
        match self.0.poll_recv(context) {
            Poll::Ready(Some(Piece::Rules(request))) => Poll::Ready(Some(request)),
            Poll::Ready(Some(Piece::Commit)) => Poll::Ready(None),
            // The reader is gone without a commit: this call is about to be dropped.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Loads the rules of a file, or of standard input where the file is `-`, as one transaction.
///
/// # Errors
/// The file cannot be read, a line of it is no rule, or the daemon refuses; then nothing has changed.
pub async fn load_file(client: Client, file: &Path, dry_run: bool) -> Result<LoadRulesResponse, Failure> {
    if file == Path::new("-") {
        let input = io::BufReader::with_capacity(READ_BYTES, io::stdin());
        return load(client, "stdin".to_owned(), input, dry_run).await;
    }
    let name = file.display().to_string();
    let opened = std::fs::File::open(file).map_err(|source| Failure::Open { file: name.clone(), source })?;
    load(client, name, io::BufReader::with_capacity(READ_BYTES, opened), dry_run).await
}

/// Loads rules that are in memory already.
///
/// # Errors
/// The daemon refuses; then nothing has changed.
pub async fn load_rules(
    mut client: Client,
    rules: Vec<Rule>,
    dry_run: bool,
) -> Result<LoadRulesResponse, Failure> {
    let request = LoadRulesRequest::new(&rules, dry_run);
    Ok(client.rules.load(tokio_stream::once(request)).await?.into_inner())
}

async fn load(
    mut client: Client,
    file: String,
    input: impl BufRead + Send + 'static,
    dry_run: bool,
) -> Result<LoadRulesResponse, Failure> {
    let (pieces, transaction) = mpsc::channel(QUEUE_MESSAGES);
    let (report, mut reported) = oneshot::channel();
    // A plain thread, not a runtime's: a read of standard input that never returns must not hold up the exit.
    std::thread::Builder::new()
        .name("rule-reader".to_owned())
        .spawn(move || {
            // The receiver is gone only where the daemon has answered already.
            let _ = report.send(read(file, input, dry_run, &pieces));
        })
        .map_err(Failure::Runtime)?;
    let call = client.rules.load(Transaction(transaction));
    tokio::pin!(call);
    tokio::select! {
        read = &mut reported => match read {
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(())) => Ok(call.await?.into_inner()),
            Err(_) => Err(Failure::Runtime(io::Error::other("the rule reader stopped"))),
        },
        // The daemon refuses a rule without waiting for the rest of the file.
        answer = &mut call => Ok(answer?.into_inner()),
    }
}

/// Reads all lines and hands them on, the commit last.
fn read(
    file: String,
    input: impl BufRead,
    dry_run: bool,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), Failure> {
    let mut lines = Lines::new(input);
    loop {
        let (rules, end) = match read_message(&mut lines) {
            Ok(read) => read,
            Err(problem) => return Err(Failure::Line { file, line: lines.number(), problem }),
        };
        if !rules.is_empty()
            && pieces.blocking_send(Piece::Rules(LoadRulesRequest { rules, dry_run })).is_err()
        {
            return Ok(());
        }
        if end {
            let _ = pieces.blocking_send(Piece::Commit);
            return Ok(());
        }
    }
}

/// Reads the rules of one message; true where they are the last.
fn read_message(lines: &mut Lines<impl BufRead>) -> Result<(Vec<Bytes>, bool), LineProblem> {
    // One allocation for the rules of a message, which then share it.
    let (mut encoded, mut ends) = (Vec::new(), Vec::with_capacity(MESSAGE_RULES));
    let mut end = false;
    while ends.len() < MESSAGE_RULES && encoded.len() < MESSAGE_BYTES {
        let Some(line) = lines.next_line()? else {
            end = true;
            break;
        };
        rule_json::encode_rule(line, &mut encoded)?;
        ends.push(encoded.len());
    }
    let encoded = Bytes::from(encoded);
    let begins = std::iter::once(0).chain(ends.iter().copied());
    Ok((begins.zip(&ends).map(|(begin, end)| encoded.slice(begin..*end)).collect(), end))
}

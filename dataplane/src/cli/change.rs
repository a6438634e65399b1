//! `forebay rule change`: a stream of changes from JSON lines, each a transaction of its own.
//!
//! A thread reads and parses while the connection sends. Lines that arrive together travel together, and a line that
//! arrives alone is sent at once: a controller that pipes its changes into this command has each in force within
//! milliseconds.

use std::io::{self, BufReader, Read};
use std::path::Path;

use forebay_api::change::{Groups, Report, run};
use forebay_api::client::Client;
use forebay_api::rule_json;
use forebay_api::v1::{ChangeRequest, Refusal};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::failure::{Failure, LineProblem};
use super::lines::Lines;
use super::{Form, Out, write_json};

/// Changes in one group: enough that handing it over costs little for each, few enough that the first is soon sent.
const GROUP_CHANGES: usize = 256;
/// Groups between the reading thread and the connection.
const QUEUE_GROUPS: usize = 4;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Refusals that are shown: a file that does not fit the host at all shall not fill the screen.
const SHOWN_REFUSALS: u64 = 20;

type Input = BufReader<Box<dyn Read + Send>>;

/// Streams the changes of a file, or of standard input where the file is `-`, and shows what came of them. A change that
/// the daemon refuses does not hold up those after it.
///
/// # Errors
/// The file cannot be read, a line of it is no change (those before it have been made), the connection broke, or some
/// change was refused.
pub async fn stream_file(
    mut client: Client,
    file: &Path,
    form: Form,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let stdin = file == Path::new("-");
    let name = if stdin { "stdin".to_owned() } else { file.display().to_string() };
    let input: Box<dyn Read + Send> = if stdin {
        Box::new(io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(|source| Failure::Open { file: name.clone(), source })?)
    };
    let (groups, waiting) = mpsc::channel(QUEUE_GROUPS);
    let (report, read_to_end) = oneshot::channel();
    let source = name.clone();
    // A plain thread, not a runtime's: a read of standard input that never returns must not hold up the exit.
    std::thread::Builder::new()
        .name("change-reader".to_owned())
        .spawn(move || {
            // The receiver is gone only where the connection broke.
            let _ = report.send(read(&source, BufReader::with_capacity(READ_BYTES, input), &groups));
        })
        .map_err(Failure::Runtime)?;
    let mut shown = 0;
    let done = run(&mut client.rules, Groups::new(waiting), |line, refusal: Refusal| {
        shown += 1;
        if shown <= SHOWN_REFUSALS {
            eprintln!("forebay: {name}:{line}: {}", refusal.message.replace(char::is_control, " "));
        }
    })
    .await?;
    show(&done, form, out)?;
    match read_to_end.await {
        Ok(Ok(())) if done.refused == 0 => Ok(()),
        Ok(Ok(())) => Err(Failure::ChangesRefused { count: done.refused }),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::Runtime(io::Error::other("the change reader stopped"))),
    }
}

/// Reads all lines and hands them on; each request has the number of its line.
fn read(file: &str, input: Input, groups: &mpsc::Sender<Vec<ChangeRequest>>) -> Result<(), Failure> {
    let mut lines = Lines::new(input);
    let mut group = Vec::with_capacity(GROUP_CHANGES);
    loop {
        let next = next_change(&mut lines);
        let end = !matches!(next, Ok(Some(_)));
        let problem = match next {
            Ok(change) => {
                group.extend(change);
                None
            }
            Err(problem) => Some(problem),
        };
        if end || group.len() == GROUP_CHANGES || !lines.has_more() {
            let full = std::mem::replace(&mut group, Vec::with_capacity(GROUP_CHANGES));
            if !full.is_empty() && groups.blocking_send(full).is_err() {
                return Ok(());
            }
        }
        match problem {
            Some(problem) => {
                return Err(Failure::Line { file: file.to_owned(), line: lines.number(), problem });
            }
            None if end => return Ok(()),
            None => {}
        }
    }
}

fn next_change(lines: &mut Lines<Input>) -> Result<Option<ChangeRequest>, LineProblem> {
    let Some(line) = lines.next_line()? else { return Ok(None) };
    let mut request = ChangeRequest::default();
    if let Some(rule) = inner(line, "\"put\"") {
        let mut encoded = Vec::with_capacity(rule.len());
        rule_json::encode_rule(rule, &mut encoded)?;
        request.puts.push(encoded.into());
    } else {
        let id = inner(line, "\"delete\"").and_then(|id| serde_json::from_str(id).ok());
        request.deletes.push(id.ok_or(LineProblem::NoChange)?);
    }
    request.sequence = lines.number();
    Ok(Some(request))
}

/// The value of an object whose only key is this one; the text of the value is not looked at.
fn inner<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let inside = line.trim().strip_prefix('{')?.strip_suffix('}')?;
    Some(inside.trim_start().strip_prefix(key)?.trim_start().strip_prefix(':')?.trim())
}

#[derive(Serialize)]
struct Shown {
    requests: u64,
    changed: u64,
    unchanged: u64,
    refused: u64,
    elapsed_ns: u64,
    changes_per_second: u64,
    longest_wait_ns: u64,
}

fn show(report: &Report, form: Form, out: &mut Out<'_>) -> Result<(), Failure> {
    let Report { requests, refused, changed, unchanged, elapsed, longest_wait } = *report;
    let changes_per_second = (requests as f64 / elapsed.as_secs_f64().max(1e-9)) as u64;
    if form.json {
        let (elapsed_ns, longest_wait_ns) = (elapsed.as_nanos() as u64, longest_wait.as_nanos() as u64);
        let shown =
            Shown { requests, changed, unchanged, refused, elapsed_ns, changes_per_second, longest_wait_ns };
        write_json(out, &shown)?;
    } else {
        writeln!(out, "{changed} changed, {unchanged} unchanged, {refused} refused")?;
        let wait = longest_wait.as_secs_f64() * 1e3;
        writeln!(out, "{changes_per_second} changes per second, the longest wait {wait:.1} ms")?;
    }
    Ok(())
}

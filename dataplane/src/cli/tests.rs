//! The commands against a daemon of cardboard on a real Unix socket: what arrives there, what is shown, which exit
//! status follows.

use std::path::Path;
use std::sync::Arc;

use forebay_api::rule_json::parse_rule;
use forebay_api::v1::rules_server::{Rules, RulesServer};
use forebay_api::v1::{
    ChangeReply, ChangeRequest, DeleteRulesRequest, DeleteRulesResponse, GetRuleRequest, ListRulesRequest,
    LoadRulesRequest, LoadRulesResponse, Refusal, Rule, RuleStatus,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// How the transactions of the cardboard daemon ended.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Committed(usize),
    Aborted,
}

#[derive(Clone, Default)]
struct Cardboard {
    rules: Arc<Mutex<Vec<Rule>>>,
    ends: Arc<Mutex<Vec<End>>>,
    largest_message: Arc<Mutex<usize>>,
}

#[tonic::async_trait]
impl Rules for Cardboard {
    async fn load(
        &self,
        request: Request<Streaming<LoadRulesRequest>>,
    ) -> Result<Response<LoadRulesResponse>, Status> {
        // Counts an abort unless the stream has ended: also where tonic drops this future.
        struct Guard(Arc<Mutex<Vec<End>>>, End);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.lock().push(self.1.clone());
            }
        }
        let mut guard = Guard(Arc::clone(&self.ends), End::Aborted);
        let (mut stream, mut staged) = (request.into_inner(), Vec::new());
        while let Some(message) = stream.message().await? {
            let mut largest = self.largest_message.lock();
            *largest = (*largest).max(message.rules.len());
            staged.extend(message.rules.iter().map(|rule| Rule::decode(&rule[..]).unwrap()));
            if staged.iter().any(|rule| rule.id == "refused") {
                return Err(Status::invalid_argument(
                    "rule \"refused\": port: no port \"vm9\" (see: forebay port list)",
                ));
            }
        }
        guard.1 = End::Committed(staged.len());
        let changed = staged.len() as u64;
        self.rules.lock().extend(staged);
        Ok(Response::new(LoadRulesResponse { changed, unchanged: 0 }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRulesRequest>,
    ) -> Result<Response<DeleteRulesResponse>, Status> {
        let ids = request.into_inner().ids;
        let mut rules = self.rules.lock();
        for id in &ids {
            if !rules.iter().any(|rule| rule.id == *id) {
                return Err(Status::not_found(format!(
                    "rule \"{id}\": none of that id (see: forebay rule list)"
                )));
            }
        }
        rules.retain(|rule| !ids.contains(&rule.id));
        Ok(Response::new(DeleteRulesResponse { deleted: ids.len() as u64 }))
    }

    type ChangeStream = tokio_stream::Iter<std::vec::IntoIter<Result<ChangeReply, Status>>>;

    async fn change(
        &self,
        request: Request<Streaming<ChangeRequest>>,
    ) -> Result<Response<Self::ChangeStream>, Status> {
        let mut stream = request.into_inner();
        let mut replies = Vec::new();
        while let Some(ChangeRequest { sequence, deletes, puts }) = stream.message().await? {
            let missing = deletes.iter().any(|id| !self.rules.lock().iter().any(|rule| rule.id == *id));
            let mut reply = ChangeReply { sequence, requests: 1, ..ChangeReply::default() };
            match missing {
                true => reply.refusal = Some(Refusal { code: 5, message: "no such rule".into() }),
                false => {
                    reply.changed = (deletes.len() + puts.len()) as u64;
                    let mut rules = self.rules.lock();
                    rules.retain(|rule| !deletes.contains(&rule.id));
                    rules.extend(puts.iter().map(|rule| Rule::decode(&rule[..]).unwrap()));
                }
            }
            replies.push(Ok(reply));
        }
        Ok(Response::new(tokio_stream::iter(replies)))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<RuleStatus, Status>>>;

    async fn list(&self, _: Request<ListRulesRequest>) -> Result<Response<Self::ListStream>, Status> {
        let rules = self.rules.lock().clone();
        let rules: Vec<_> = rules
            .into_iter()
            .map(|rule| Ok(RuleStatus { rule: Some(rule), packets: 7, bytes: 700 }))
            .collect();
        Ok(Response::new(tokio_stream::iter(rules)))
    }

    async fn get(&self, request: Request<GetRuleRequest>) -> Result<Response<RuleStatus>, Status> {
        let id = request.into_inner().id;
        let rule = self.rules.lock().iter().find(|rule| rule.id == id).cloned();
        rule.map(|rule| Response::new(RuleStatus { rule: Some(rule), packets: 7, bytes: 700 }))
            .ok_or_else(|| Status::not_found(format!("rule \"{id}\": none of that id")))
    }
}

/// A cardboard daemon that serves until its directory is dropped with the test's runtime.
fn serve() -> (Cardboard, tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("forebay.sock");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let daemon = Cardboard::default();
    let server = tonic::transport::Server::builder()
        .layer(forebay_api::server::whole_requests())
        .add_service(RulesServer::new(daemon.clone()));
    tokio::spawn(server.serve_with_incoming(listener));
    (daemon, directory, socket)
}

/// Runs the words of a command line; what it wrote, or its exit status and error line.
async fn forebay(socket: &Path, words: &[&str]) -> Result<String, (u8, String)> {
    let cli = Cli::try_parse_from(["forebay"].iter().chain(words)).unwrap();
    let Command::Control(command) = cli.command else { panic!("no control command: {words:?}") };
    let mut out = Vec::new();
    match execute(socket, command, &mut out).await {
        Ok(()) => Ok(String::from_utf8(out).unwrap()),
        Err(failure) => Err((failure.exit_status(), failure.to_string())),
    }
}

fn rule_line(number: usize) -> String {
    format!("{{\"id\":\"r{number}\",\"port\":\"vm1\",\"match\":{{}},\"action\":\"drop\"}}\n")
}

/// Waits until the daemon has seen the end of a transaction.
async fn first_end(daemon: &Cardboard) -> Option<End> {
    for _ in 0..500 {
        if let Some(end) = daemon.ends.lock().first().cloned() {
            return Some(end);
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    None
}

#[tokio::test]
async fn a_file_is_one_transaction_in_messages_of_bounded_size() {
    let (daemon, directory, socket) = serve();
    let file = directory.path().join("rules.jsonl");
    let lines: String = (0..4321).map(rule_line).collect();
    std::fs::write(&file, lines).unwrap();
    let said = forebay(&socket, &["rule", "load", file.to_str().unwrap()]).await.unwrap();
    assert_eq!(said, "4321 changed, 0 unchanged\n");
    assert_eq!(*daemon.ends.lock(), [End::Committed(4321)]);
    assert_eq!(*daemon.largest_message.lock(), 1000);
    let said =
        forebay(&socket, &["rule", "load", file.to_str().unwrap(), "--dry-run", "--json"]).await.unwrap();
    assert_eq!(said, "{\"changed\":4321,\"unchanged\":0,\"dry_run\":true}\n");
}

#[tokio::test]
async fn a_wrong_line_is_named_and_aborts_the_transaction() {
    let (daemon, directory, socket) = serve();
    let file = directory.path().join("rules.jsonl");
    let mut lines: String = (0..2500).map(rule_line).collect();
    lines.push_str(
        "\n{\"id\":\"e2\",\"port\":\"vm1\",\"match\":{\"dst_port\":\"8999-8000\"},\"action\":\"drop\"}\n",
    );
    std::fs::write(&file, lines).unwrap();
    let (status, error) = forebay(&socket, &["rule", "load", file.to_str().unwrap()]).await.unwrap_err();
    assert_eq!(status, 2);
    let place = format!("{}:2502: rule \"e2\": match.dst_port: \"8999-8000\" is not a port", file.display());
    assert!(error.starts_with(&place), "{error}");
    // The daemon has either seen an abort, or nothing of the call yet; a commit it must never see.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!daemon.ends.lock().iter().any(|end| matches!(end, End::Committed(_))), "{:?}", daemon.ends);
    assert!(daemon.rules.lock().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_aborts_the_transaction() {
    let (daemon, directory, socket) = serve();
    // A named pipe that is open for writing and never ends.
    let pipe = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let words_pipe = pipe.clone();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let words = ["rule", "load", words_pipe.to_str().unwrap()];
            tokio::time::timeout(std::time::Duration::from_millis(500), forebay(&socket, &words)).await
        })
    });
    let mut writer = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe))
        .await
        .unwrap()
        .unwrap();
    let lines: String = (0..1500).map(rule_line).collect();
    writer.write_all(lines.as_bytes()).unwrap();
    assert_eq!(first_end(&daemon).await, Some(End::Aborted));
    assert!(client.join().unwrap().is_err(), "the load ended by itself");
    assert!(daemon.rules.lock().is_empty());
}

#[tokio::test]
async fn what_the_daemon_refuses_is_said_in_its_words() {
    let (_daemon, directory, socket) = serve();
    let rule = r#"{"id":"refused","port":"vm9","match":{},"action":"drop"}"#;
    let refused = (2, "rule \"refused\": port: no port \"vm9\" (see: forebay port list)".to_owned());
    assert_eq!(forebay(&socket, &["rule", "add", rule]).await.unwrap_err(), refused);
    let file = directory.path().join("rules.jsonl");
    std::fs::write(&file, rule).unwrap();
    assert_eq!(forebay(&socket, &["rule", "load", file.to_str().unwrap()]).await.unwrap_err(), refused);
    let (status, error) = forebay(&socket, &["rule", "delete", "none"]).await.unwrap_err();
    assert_eq!((status, error.as_str()), (1, "rule \"none\": none of that id (see: forebay rule list)"));
    assert_eq!(forebay(&socket, &["rule", "show", "none"]).await.unwrap_err().0, 1);
    let (status, error) = forebay(&socket, &["stats"]).await.unwrap_err();
    assert_eq!(
        (status, error.as_str()),
        (1, "the daemon refused: Operation is not implemented or not supported")
    );
}

#[tokio::test]
async fn rules_are_shown_and_can_be_loaded_back() {
    let (daemon, directory, socket) = serve();
    let rule = r#"{"id":"e1","port":"vm1","match":{"dst":"10.1.0.2"},"action":{"deliver":{"port":"vm2"}}}"#;
    assert_eq!(forebay(&socket, &["rule", "add", rule]).await.unwrap(), "1 changed, 0 unchanged\n");
    let listed = forebay(&socket, &["rule", "list"]).await.unwrap();
    assert_eq!(
        listed,
        "ID  FROM  PRIORITY  MATCH            ACTION       PACKETS  BYTES\n\
         e1  vm1          0  dst 10.1.0.2/32  deliver vm2        7    700\n"
    );
    let json = forebay(&socket, &["rule", "list", "--json"]).await.unwrap();
    assert_eq!(json, forebay(&socket, &["rule", "show", "e1", "--json"]).await.unwrap());
    let file = directory.path().join("rules.jsonl");
    std::fs::write(&file, json).unwrap();
    forebay(&socket, &["rule", "load", file.to_str().unwrap(), "--json"]).await.unwrap();
    assert_eq!(*daemon.rules.lock(), [parse_rule(rule).unwrap(), parse_rule(rule).unwrap()]);
    assert!(forebay(&socket, &["rule", "show", "e1"]).await.unwrap().contains("match     dst 10.1.0.2/32\n"));
    assert_eq!(forebay(&socket, &["rule", "delete", "e1"]).await.unwrap(), "1 deleted\n");
}

#[tokio::test]
async fn changes_are_streamed_one_by_one() {
    let (daemon, directory, socket) = serve();
    let file = directory.path().join("changes.jsonl");
    let put = |number| format!("{{\"put\":{}}}\n", rule_line(number).trim());
    let mut lines: String = (0..1000).map(put).collect();
    lines.push_str("\n { \"delete\" : \"r7\" } \n{\"delete\":\"none\"}\n{\"delete\":\"r\\u0038\"}\n");
    std::fs::write(&file, &lines).unwrap();
    let words = ["rule", "change", file.to_str().unwrap()];
    let refused = forebay(&socket, &words).await.unwrap_err();
    assert_eq!(refused, (1, "1 changes were refused, the others are in force".to_owned()));
    assert_eq!(daemon.rules.lock().len(), 998);
    assert!(daemon.rules.lock().iter().all(|rule| rule.id != "r7" && rule.id != "r8"));
    std::fs::write(&file, put(1) + &put(2)).unwrap();
    let said = forebay(&socket, &words).await.unwrap();
    assert!(said.starts_with("2 changed, 0 unchanged, 0 refused\n"), "{said}");
    assert!(said.contains(" changes per second, the longest wait "), "{said}");
    std::fs::write(&file, put(1) + "{\"delete\":5}\n" + &put(2)).unwrap();
    let (status, error) = forebay(&socket, &words).await.unwrap_err();
    assert_eq!(status, 2);
    assert!(error.contains(":2: not a change (write {\"put\":{…}} or {\"delete\":\"ID\"})"), "{error}");
}

#[tokio::test]
async fn wrong_words_are_wrong_without_a_daemon() {
    let nowhere = Path::new("/nonexistent/forebay.sock");
    assert_eq!(forebay(nowhere, &["rule", "add", "{"]).await.unwrap_err().0, 2);
    assert_eq!(forebay(nowhere, &["port", "add", "{\"name\":1}"]).await.unwrap_err().0, 2);
    let (status, error) = forebay(nowhere, &["port", "list"]).await.unwrap_err();
    assert!(status == 1 && error.contains("is forebay running?"), "{error}");
}

#[tokio::test]
async fn a_missing_file_is_a_wrong_file() {
    let (daemon, _directory, socket) = serve();
    let (status, error) = forebay(&socket, &["rule", "load", "/nonexistent/rules.jsonl"]).await.unwrap_err();
    assert!(status == 2 && error.starts_with("/nonexistent/rules.jsonl: No such file"), "{error}");
    assert!(daemon.ends.lock().is_empty());
}

#[test]
fn words_that_clap_refuses_become_one_line() {
    let line = |words: &[&str]| {
        let error = Cli::try_parse_from(["forebay"].iter().chain(words)).unwrap_err();
        one_line(&error.to_string())
    };
    assert_eq!(
        line(&["run"]),
        "the following required arguments were not provided: --config <FILE> (see: forebay --help)"
    );
    let unknown = line(&["stats", "--jsn"]);
    assert!(
        unknown.starts_with("unexpected argument '--jsn' found; tip: a similar argument exists: '--json'"),
        "{unknown}"
    );
}

#[test]
fn the_definition_of_the_commands_is_sound() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    let cli =
        Cli::try_parse_from(["forebay", "rule", "list", "--socket", "/x.sock", "--port", "vm1"]).unwrap();
    assert_eq!(cli.socket, Path::new("/x.sock"));
}

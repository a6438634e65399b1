//! The control socket from outside: a daemon on `null:` devices, asked by gRPC clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use forebay_api::{change, client, v1};
use forebay_dataplane::control::segment::Entry;
use forebay_dataplane::control::store::Store;
use prost::Message;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// A daemon; ends with the test.
struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Daemon {
        Daemon::start_with(|_| ())
    }

    /// Starts with what `prepare` leaves in the state directory.
    fn start_with(prepare: impl FnOnce(&Path)) -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        prepare(&directory.path().join("state"));
        let [state, socket] = ["state", "s.sock"].map(|name| directory.path().join(name));
        let text = format!(
            "[host]\nname = \"t\"\nstate = {state:?}\n[control]\nsocket = {socket:?}\n\
             [dpdk]\nhugepages = \"off\"\nmemory_mib = 128\n[workers]\ncores = \"0\"\n\
             [[port]]\nname = \"up\"\nkind = \"uplink\"\ndevice = \"null:\"\nipv4 = \"192.0.2.1/24\"\n\
             [[port]]\nname = \"vm1\"\nkind = \"vf\"\ndevice = \"null:\"\nmac = \"02:00:00:00:01:01\"\nip = [\"10.1.0.1\"]\n"
        );
        std::fs::write(directory.path().join("host.toml"), text).unwrap();
        let child = run(directory.path());
        Daemon { child, directory }
    }

    /// Kills the daemon, as by a crash, and starts it again.
    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = run(self.directory.path());
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s.sock")
    }
}

/// Starts a daemon and waits until it is ready.
fn run(directory: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["run", "--config"])
        .arg(directory.join("host.toml"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let said: Vec<String> = lines.take_while(|line| line != "forebay: ready").collect();
    assert!(child.try_wait().unwrap().is_none(), "the daemon ended: {said:?}");
    child
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn services(socket: &Path) -> Vec<String> {
    let mut reflection = ServerReflectionClient::new(client::channel(socket).await.unwrap());
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let question = ServerReflectionRequest { host: String::new(), message_request };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
    match answers.message().await.unwrap() {
        Some(ServerReflectionResponse {
            message_response: Some(MessageResponse::ListServicesResponse(list)),
            ..
        }) => list.service.into_iter().map(|service| service.name).collect(),
        other => panic!("not a list of services: {other:?}"),
    }
}

#[tokio::test]
async fn reflection_names_every_service() {
    let daemon = Daemon::start();
    let names = services(&daemon.socket()).await;
    for service in ["Ports", "Rules", "Stats", "Flows", "Traps"].map(|name| format!("forebay.v1.{name}")) {
        assert!(names.contains(&service), "{service} is not among {names:?}");
    }
}

#[tokio::test]
async fn a_wrong_rule_in_a_load_changes_nothing() {
    let daemon = Daemon::start();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    let rule = |id: &str, port: &str| v1::Rule {
        id: id.into(),
        port: port.into(),
        action: Some(v1::Action { kind: Some(v1::action::Kind::Drop(v1::Drop {})) }),
        ..v1::Rule::default()
    };
    let load = |rules: Vec<v1::Rule>| tokio_stream::once(v1::LoadRulesRequest::new(&rules, false));
    let error = client.rules.load(load(vec![rule("a", "vm1"), rule("b", "nowhere")])).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert_eq!(error.message(), "rule \"b\": port: there is no port \"nowhere\" (see: forebay port list)");
    let count = async |client: &mut client::Client| {
        client.stats.get(v1::GetStatsRequest::default()).await.unwrap().into_inner().rules
    };
    assert_eq!(count(&mut client).await, 0);
    let done = client.rules.load(load(vec![rule("a", "vm1"), rule("b", "vm1")])).await.unwrap().into_inner();
    assert_eq!((done.changed, done.unchanged), (2, 0));
    let again = client.rules.load(load(vec![rule("a", "vm1"), rule("b", "vm1")])).await.unwrap().into_inner();
    assert_eq!((again.changed, again.unchanged), (0, 2));
    assert_eq!(count(&mut client).await, 2);
}

#[tokio::test]
async fn a_port_that_rules_name_cannot_be_removed() {
    let daemon = Daemon::start();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    let spec = v1::PortSpec {
        name: "vm2".into(),
        kind: v1::PortKind::Vf.into(),
        device: "null:".into(),
        mac: "02:00:00:00:01:02".into(),
        ip: vec!["10.1.0.2".into()],
        ..v1::PortSpec::default()
    };
    let add = || v1::AddPortRequest { port: Some(spec.clone()) };
    assert!(client.ports.add(add()).await.unwrap().into_inner().changed);
    assert!(!client.ports.add(add()).await.unwrap().into_inner().changed);
    let deliver = v1::Deliver { port: "vm2".into(), ..v1::Deliver::default() };
    let rule = v1::Rule {
        id: "d".into(),
        port: "vm1".into(),
        action: Some(v1::Action { kind: Some(v1::action::Kind::Deliver(deliver)) }),
        ..v1::Rule::default()
    };
    let load = v1::LoadRulesRequest::new([&rule], false);
    client.rules.load(tokio_stream::once(load)).await.unwrap();
    let remove = || v1::RemovePortRequest { name: "vm2".into() };
    let error = client.ports.remove(remove()).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("the first is \"d\""), "{}", error.message());
    client.rules.delete(v1::DeleteRulesRequest { ids: vec!["d".into()] }).await.unwrap();
    client.ports.remove(remove()).await.unwrap();
    assert!(client.ports.get(v1::GetPortRequest { name: "vm2".into() }).await.is_err());
}

fn drop_rule(id: &str, port: &str, priority: u32) -> v1::Rule {
    v1::Rule {
        id: id.into(),
        port: port.into(),
        priority,
        action: Some(v1::Action { kind: Some(v1::action::Kind::Drop(v1::Drop {})) }),
        ..v1::Rule::default()
    }
}

/// Every rule of the daemon: id and priority.
async fn rules(client: &mut client::Client) -> Vec<(String, u32)> {
    let mut list = client.rules.list(v1::ListRulesRequest::default()).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(status) = list.message().await.unwrap() {
        let rule = status.rule.unwrap();
        found.push((rule.id, rule.priority));
    }
    found
}

#[tokio::test]
async fn each_request_of_a_stream_is_a_transaction() {
    let daemon = Daemon::start();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    let put = |sequence, rules: &[v1::Rule]| v1::ChangeRequest::new(sequence, Vec::new(), rules);
    let requests = vec![
        put(10, &[drop_rule("a", "vm1", 1), drop_rule("b", "vm1", 1)]),
        put(20, &[drop_rule("a", "vm1", 9), drop_rule("c", "nowhere", 1)]),
        v1::ChangeRequest::new(30, vec!["a".into()], [&drop_rule("c", "vm1", 3)]),
        v1::ChangeRequest::new(40, vec!["b".into(), "none".into()], []),
        put(50, &[v1::Rule::default()]),
        put(60, &[drop_rule("b", "vm1", 1)]),
        v1::ChangeRequest::new(70, vec!["c".into()], [&drop_rule("c", "vm1", 7), &drop_rule("c", "vm1", 8)]),
    ];
    let mut refused = Vec::new();
    let refuse = |sequence, refusal: v1::Refusal| refused.push((sequence, refusal.code, refusal.message));
    let report = change::run(&mut client.rules, tokio_stream::iter(requests), refuse).await.unwrap();
    assert_eq!((report.requests, report.refused, report.unchanged), (7, 3, 1));
    let codes: Vec<(u64, u32)> = refused.iter().map(|(sequence, code, _)| (*sequence, *code)).collect();
    assert_eq!(codes, [(20, 3), (40, 5), (50, 3)]);
    assert!(refused[1].2.contains("\"none\""), "{refused:?}");
    assert_eq!(rules(&mut client).await, [("b".to_owned(), 1), ("c".to_owned(), 8)]);
}

#[tokio::test]
async fn what_a_stream_changed_is_there_after_a_kill() {
    let mut daemon = Daemon::start();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    let number = |sequence: u64| drop_rule(&format!("r{:04}", sequence % 3000), "vm1", sequence as u32);
    // Three rounds over the same rules: the log outgrows them and is cleaned.
    let requests: Vec<_> = (1..=9000)
        .map(|sequence| v1::ChangeRequest::new(sequence, Vec::new(), [&number(sequence)]))
        .collect();
    let mut deletes: Vec<_> = (0..1000)
        .map(|index| v1::ChangeRequest::new(10_000 + index, vec![format!("r{index:04}")], []))
        .collect();
    let all = tokio_stream::iter([requests, std::mem::take(&mut deletes)].concat());
    let report = change::run(&mut client.rules, all, |_, _| panic!("refused")).await.unwrap();
    assert_eq!((report.requests, report.changed), (10_000, 10_000));
    let before = rules(&mut client).await;
    assert_eq!(before.len(), 2000);
    assert!(before.iter().all(|(id, priority)| *id == number(u64::from(*priority)).id && *priority > 6000));
    daemon.restart();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    assert_eq!(rules(&mut client).await, before);
    let stats = client.stats.get(v1::GetStatsRequest::default()).await.unwrap().into_inner();
    assert_eq!(stats.rules, 2000);
}

#[tokio::test]
async fn a_rule_that_cannot_be_read_stays_in_the_file() {
    // Of a newer program: it says what to do in words that this one does not know.
    let unreadable = v1::Rule { id: "x".into(), port: "vm1".into(), ..v1::Rule::default() };
    let mut daemon = Daemon::start_with(|state| {
        let store = Store::open(state).unwrap();
        let mut change = store.change();
        change.rows.put(&unreadable.encode_to_vec());
        for priority in 1..=9000 {
            change.rows.put(&canonical(drop_rule("a", "vm1", priority)));
        }
        store.write(&change).unwrap();
    });
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    assert_eq!(rules(&mut client).await, [("a".to_owned(), 9000)]);
    // Each change cleans a piece of the log.
    for number in 1..=12 {
        let load = v1::LoadRulesRequest::new([&drop_rule("b", "vm1", number)], false);
        client.rules.load(tokio_stream::once(load)).await.unwrap();
    }
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let store = Store::open(&daemon.directory.path().join("state")).unwrap();
    let mut ids = Vec::new();
    let see = |_, entry: Entry<'_>| {
        if let Entry::Put(rule) = entry {
            ids.push(v1::Rule::decode(rule).unwrap().id);
        }
    };
    store.replay(see).unwrap();
    let count = |wanted: &str| ids.iter().filter(|id| *id == wanted).count();
    assert_eq!(count("x"), 1);
    assert!(count("a") >= 1 && ids.len() < 5000, "{} entries", ids.len());
}

/// The rule as the daemon stores it.
fn canonical(mut rule: v1::Rule) -> Vec<u8> {
    forebay_api::rule_check::canonical(&mut rule).unwrap();
    rule.encode_to_vec()
}

/// A UDP frame of vm2.
fn frame(source_port: u16, payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 1, 2], [2, 0, 0, 0, 1, 1])
        .ipv4([10, 1, 0, 2], [10, 1, 0, 1], 64)
        .udp(source_port, 5000)
        .write(&mut out, &vec![0; payload])
        .unwrap();
    out
}

/// A capture file of these frames.
fn pcap(frames: &[&[u8]]) -> Vec<u8> {
    let words = [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65_535, 1];
    let mut file: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    for frame in frames {
        let length = frame.len() as u32;
        file.extend([0, 0, length, length].into_iter().flat_map(u32::to_le_bytes));
        file.extend(*frame);
    }
    file
}

async fn flows(client: &mut client::Client, port: &str, limit: u32) -> Result<Vec<v1::Flow>, tonic::Status> {
    let mut list = client.flows.list(v1::ListFlowsRequest { port: port.into(), limit }).await?.into_inner();
    let mut found = Vec::new();
    while let Some(flow) = list.message().await? {
        found.push(flow);
    }
    Ok(found)
}

#[tokio::test]
async fn flows_are_listed_with_what_decided_about_them() {
    let daemon = Daemon::start();
    let mut client = client::connect(&daemon.socket()).await.unwrap();
    assert_eq!(flows(&mut client, "", 0).await.unwrap(), []);
    // A tenant that sends three packets of one flow and one of another, over and over.
    let (busy, quiet) = (frame(4001, 100), frame(4002, 50));
    let file = daemon.directory.path().join("vm2.pcap");
    std::fs::write(&file, pcap(&[&busy, &quiet, &busy, &busy])).unwrap();
    let spec = v1::PortSpec {
        name: "vm2".into(),
        kind: v1::PortKind::Vf.into(),
        device: format!("pcap:{},infinite_rx=1", file.display()),
        mac: "02:00:00:00:01:02".into(),
        ip: vec!["10.1.0.2".into()],
        ..v1::PortSpec::default()
    };
    client.ports.add(v1::AddPortRequest { port: Some(spec) }).await.unwrap();
    let source_port = Some(v1::PortRange { first: 4001, last: 4001 });
    let udp = v1::Match { proto: Some(17), src_port: source_port, ..v1::Match::default() };
    let rule = v1::Rule { r#match: Some(udp), ..drop_rule("a", "vm2", 1) };
    client.rules.load(tokio_stream::once(v1::LoadRulesRequest::new([&rule], false))).await.unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let listed = loop {
        let listed = flows(&mut client, "vm2", 0).await.unwrap();
        let decided = |flow: &v1::Flow| !flow.outdated && !flow.drop.is_empty() && flow.packets > 1000;
        if listed.len() == 2 && listed.iter().all(decided) {
            break listed;
        }
        assert!(std::time::Instant::now() < deadline, "{listed:?}");
    };
    for (flow, (port, bytes, rule, drop)) in listed
        .iter()
        .zip([(4001, busy.len() as u64, "a", "rule_drop"), (4002, quiet.len() as u64, "", "no_rule")])
    {
        let expected = v1::Flow {
            worker: "worker0".into(),
            port: "vm2".into(),
            src_mac: "02:00:00:00:01:02".into(),
            dst_mac: "02:00:00:00:01:01".into(),
            src: "10.1.0.2".into(),
            dst: "10.1.0.1".into(),
            proto: 17,
            src_port: Some(port),
            dst_port: Some(5000),
            packets: flow.packets,
            bytes: flow.packets * bytes,
            idle_ms: flow.idle_ms,
            rule: rule.into(),
            drop: drop.into(),
            ..v1::Flow::default()
        };
        assert_eq!(*flow, expected);
        assert!(flow.idle_ms < 1000, "{flow:?}");
    }
    // The busiest alone; another port's; listings at the same time.
    let one = flows(&mut client, "", 1).await.unwrap();
    assert_eq!(one.iter().map(|flow| flow.src_port).collect::<Vec<_>>(), [Some(4001)]);
    assert_eq!(flows(&mut client, "vm1", 0).await.unwrap(), []);
    let listing = |mut client: client::Client| async move { flows(&mut client, "vm2", 0).await };
    let together: Vec<_> = (0..8).map(|_| tokio::spawn(listing(client.clone()))).collect();
    for listing in together {
        assert_eq!(listing.await.unwrap().unwrap().len(), 2);
    }
    // Wrong words.
    let error = flows(&mut client, "vm9", 0).await.unwrap_err();
    assert_eq!(error.message(), "there is no port \"vm9\" (see: forebay port list)");
    let error = flows(&mut client, "", 100_001).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert_eq!(error.message(), "limit = 100001: too many flows (write 1 to 100000)");
}

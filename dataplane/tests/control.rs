//! The control socket from outside: a daemon on `null:` devices, asked by gRPC clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use forebay_api::{client, v1};
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
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("host.toml");
        let [state, socket] = ["state", "s.sock"].map(|name| directory.path().join(name));
        let text = format!(
            "[host]\nname = \"t\"\nstate = {state:?}\n[control]\nsocket = {socket:?}\n\
             [dpdk]\nhugepages = \"off\"\nmemory_mib = 128\n[workers]\ncores = \"0\"\n\
             [[port]]\nname = \"up\"\nkind = \"uplink\"\ndevice = \"null:\"\nipv4 = \"192.0.2.1/24\"\n\
             [[port]]\nname = \"vm1\"\nkind = \"vf\"\ndevice = \"null:\"\nmac = \"02:00:00:00:01:01\"\nip = [\"10.1.0.1\"]\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["run", "--config"])
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said: Vec<String> = lines.take_while(|line| line != "forebay: ready").collect();
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended: {said:?}");
        Daemon { child, directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s.sock")
    }
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
    for service in ["forebay.v1.Ports", "forebay.v1.Rules", "forebay.v1.Stats", "forebay.v1.Traps"] {
        assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
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
    let load = |rules| tokio_stream::once(v1::LoadRulesRequest { rules, dry_run: false });
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
    let load = v1::LoadRulesRequest { rules: vec![rule], dry_run: false };
    client.rules.load(tokio_stream::once(load)).await.unwrap();
    let remove = || v1::RemovePortRequest { name: "vm2".into() };
    let error = client.ports.remove(remove()).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("the first is \"d\""), "{}", error.message());
    client.rules.delete(v1::DeleteRulesRequest { ids: vec!["d".into()] }).await.unwrap();
    client.ports.remove(remove()).await.unwrap();
    assert!(client.ports.get(v1::GetPortRequest { name: "vm2".into() }).await.is_err());
}

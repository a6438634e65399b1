//! The daemon under test: this program, started with a config file in a folder of its own.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forebay_api::client::{self, Client};
use forebay_api::v1;
use forebay_pipeline::cores;

use crate::child::{OwnChild, Waited};
use crate::cpu_time;
use crate::error::BenchError;
use crate::scenario::Scenario;

/// What the daemon says when every port passes traffic.
const READY: &str = "forebay: ready";
/// How long the start may take: some hundred milliseconds, unless the machine is busy.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Without huge pages DPDK touches all of its memory at the start: 64 MiB a second on a very busy machine.
const START_MIB_PER_SECOND: u64 = 64;
/// How long an answer may take: a millisecond, unless the machine is busy.
const CALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a million rules may take to load or to list.
const RULES_PATIENCE: Duration = Duration::from_secs(300);
/// Rules in one message.
const MESSAGE_RULES: usize = 1000;

/// A running daemon with the scenario's ports and rules.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: OwnChild,
    client: Client,
}

/// What all daemons of a benchmark have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub scenario: &'a Scenario,
    /// The packets to receive.
    pub packets: &'a Path,
    pub cores: &'a [usize],
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
}

impl Setup<'_> {
    fn config(&self, folder: &Path) -> String {
        format!(
            "[host]\nname = \"bench\"\nstate = \"{folder}/state\"\n\n[control]\nsocket = \"{folder}/socket\"\n\n\
             [dpdk]\nhugepages = \"{}\"\nmemory_mib = {}\n\n\
             [workers]\ncores = \"{}\"\nlayout = \"fused\"\nidle = \"busy-poll\"\n\n{}",
            if self.hugepages { "required" } else { "off" },
            self.scenario.memory_mib(self.hugepages),
            cores::format(self.cores),
            self.scenario.port_tables(self.packets),
            folder = folder.display(),
        )
    }
}

impl Daemon {
    /// Starts a daemon in a folder that exists and is empty, and loads its rules.
    pub(crate) async fn start(setup: Setup<'_>, folder: &Path) -> Result<Self, BenchError> {
        let config = folder.join("host.toml");
        let written = std::fs::write(&config, setup.config(folder));
        written.map_err(|source| BenchError::File { path: config.clone(), source })?;
        let program = std::env::current_exe();
        let program =
            program.map_err(|source| BenchError::System { what: "find this program's file", source })?;
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(&config);
        // Its log is shown in one line of ours.
        command.env("NO_COLOR", "1");
        let mut child = OwnChild::start(&mut command, &folder.join("log"), false)?;
        let patience = START_PATIENCE
            + Duration::from_secs(setup.scenario.memory_mib(setup.hugepages) / START_MIB_PER_SECOND);
        match child.wait_for(Some(READY), patience).await? {
            Waited::Said => {}
            Waited::Ended(status) => return Err(BenchError::Died { status, tail: child.tail() }),
            Waited::Neither => return Err(BenchError::NotReady { waited: patience, tail: child.tail() }),
        }
        let client = client::connect(&folder.join("socket")).await?;
        let mut daemon = Self { child, client };
        daemon.load(setup.scenario).await?;
        Ok(daemon)
    }

    async fn load(&mut self, scenario: &Scenario) -> Result<(), BenchError> {
        let rules: Vec<v1::Rule> = scenario.rules().collect();
        let count = rules.len() as u64;
        let messages: Vec<_> =
            rules.chunks(MESSAGE_RULES).map(|rules| v1::LoadRulesRequest::new(rules, false)).collect();
        let mut client = self.client.rules.clone();
        let call = client.load(tokio_stream::iter(messages));
        let loaded = self.answer("load the rules", RULES_PATIENCE, call).await?.into_inner();
        if loaded.changed != count {
            return Err(BenchError::Insane(format!("of {count} rules {} were loaded", loaded.changed)));
        }
        Ok(())
    }

    /// Every counter of the ports.
    pub(crate) async fn stats(&self) -> Result<v1::GetStatsResponse, BenchError> {
        let mut client = self.client.stats.clone();
        let call = client.get(v1::GetStatsRequest::default());
        Ok(self.answer("tell its counters", CALL_PATIENCE, call).await?.into_inner())
    }

    /// Every counter of the workers.
    pub(crate) async fn pipeline(&self) -> Result<v1::GetPipelineResponse, BenchError> {
        let mut client = self.client.stats.clone();
        let call = client.pipeline(v1::GetPipelineRequest {});
        Ok(self.answer("tell its workers' figures", CALL_PATIENCE, call).await?.into_inner())
    }

    /// Nanoseconds that each of its threads has run for, by name.
    pub(crate) fn cpu_time(&self) -> HashMap<String, u64> {
        cpu_time::of_threads(self.child.id())
    }

    /// How many rules have seen a packet.
    pub(crate) async fn rules_hit(&self) -> Result<u32, BenchError> {
        let mut client = self.client.rules.clone();
        self.answer("list its rules", RULES_PATIENCE, async {
            let mut stream = client.list(v1::ListRulesRequest::default()).await?.into_inner();
            let mut hit = 0;
            while let Some(rule) = stream.message().await? {
                hit += u32::from(rule.packets > 0);
            }
            Ok(hit)
        })
        .await
    }

    async fn answer<T>(
        &self,
        what: &'static str,
        patience: Duration,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, BenchError> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                let message = status.message().to_owned();
                Err(BenchError::Refused { what, message, tail: format!("({})", self.child.tail()) })
            }
            Err(_) => Err(BenchError::Slow { what, waited: patience, tail: self.child.tail() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    #[test]
    fn the_config_names_what_was_asked_for() {
        let flows = Flows { count: 1, rules: 1, frame_bytes: 64, ipv6: false };
        let scenario = Scenario { direction: Direction::Encap, flows };
        let setup = Setup {
            scenario: &scenario,
            packets: Path::new("/tmp/b/p.pcap"),
            cores: &[3, 1],
            hugepages: false,
        };
        let text = setup.config(Path::new("/tmp/b/run"));
        for line in [
            "state = \"/tmp/b/run/state\"",
            "socket = \"/tmp/b/run/socket\"",
            "hugepages = \"off\"",
            "cores = \"1,3\"",
            "layout = \"fused\"",
            "idle = \"busy-poll\"",
            "device = \"pcap:/tmp/b/p.pcap,infinite_rx=1\"",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}

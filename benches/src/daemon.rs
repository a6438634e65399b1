//! The daemon under test: this program, started with a config file in a folder of its own.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use forebay_api::client::{self, Client};
use forebay_api::v1;
use forebay_api::v1::rules_client::RulesClient;
use forebay_pipeline::cores;
use tonic::transport::Channel;

use crate::child::{OwnChild, Waited};
use crate::cpu_time;
use crate::error::BenchError;
use crate::feed::{self, Feed};
use crate::instructions::Instructions;
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
    instructions: Option<Instructions>,
    /// Who sends to it, where that is another process.
    _generator: Option<OwnChild>,
}

/// What all daemons of a benchmark have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup<'a> {
    pub scenario: &'a Scenario,
    /// Where the packets to receive are.
    pub packets: &'a Path,
    pub cores: &'a [usize],
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
    /// What workers do without packets, and the added latency that they may cause, microseconds; otherwise they poll.
    pub idle: Option<(&'a str, u32)>,
}

impl Setup<'_> {
    fn config(&self, folder: &Path) -> String {
        let (idle, latency_us) = self.idle.unwrap_or(("busy-poll", 50));
        format!(
            "[host]\nname = \"bench\"\nstate = \"{folder}/state\"\n\n[control]\nsocket = \"{folder}/socket\"\n\n\
             [dpdk]\nhugepages = \"{}\"\nmemory_mib = {}\n\n\
             [workers]\ncores = \"{}\"\nlayout = \"fused\"\nidle = \"{idle}\"\n\
             max_added_latency_us = {latency_us}\nflow_cache_entries = {}\n\n{}",
            if self.hugepages { "required" } else { "off" },
            self.scenario.memory_mib(self.hugepages),
            cores::format(self.cores),
            self.scenario.cache_entries,
            self.scenario.port_tables(self.packets, folder),
            folder = folder.display(),
        )
    }
}

impl Daemon {
    /// Starts a daemon in a folder that exists and is empty, and loads its rules.
    pub(crate) async fn start(setup: Setup<'_>, folder: &Path) -> Result<Self, BenchError> {
        let daemon = Self::launch(setup, folder).await?;
        daemon.load(setup.scenario).await?;
        Ok(daemon)
    }

    /// Starts a daemon without rules in a folder that exists and is empty.
    pub(crate) async fn launch(setup: Setup<'_>, folder: &Path) -> Result<Self, BenchError> {
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
        let generator = match setup.scenario.feed {
            Feed::Memif => Some(feed::generator(setup.scenario, setup.packets, folder, setup.cores).await?),
            Feed::Pcap | Feed::Memory | Feed::Paced => None,
        };
        let mut daemon = Self { child, client, instructions: None, _generator: generator };
        let pipeline = daemon.pipeline().await?;
        let workers: Vec<_> = pipeline.workers.iter().map(|worker| worker.name.as_str()).collect();
        // Not every machine has the counter.
        daemon.instructions = Instructions::of_threads(daemon.child.id(), &workers).ok();
        Ok(daemon)
    }

    async fn load(&self, scenario: &Scenario) -> Result<(), BenchError> {
        let (wanted, changed) =
            (scenario.rule_count(), self.load_rules(Messages { rules: scenario.rules() }).await?);
        if changed != wanted {
            return Err(BenchError::Insane(format!("of {wanted} rules {changed} were loaded")));
        }
        Ok(())
    }

    /// Loads rules as one transaction; gives how many were added or changed.
    pub(crate) async fn load_rules(
        &self,
        messages: impl IntoIterator<Item = v1::LoadRulesRequest, IntoIter: Send + 'static>,
    ) -> Result<u64, BenchError> {
        let mut client = self.client.rules.clone();
        let call = client.load(tokio_stream::iter(messages));
        Ok(self.answer("load the rules", RULES_PATIENCE, call).await?.into_inner().changed)
    }

    /// Every counter of the ports.
    pub(crate) async fn stats(&self) -> Result<v1::GetStatsResponse, BenchError> {
        let mut client = self.client.stats.clone();
        let call = client.get(v1::GetStatsRequest::default());
        Ok(self.answer("tell its counters", CALL_PATIENCE, call).await?.into_inner())
    }

    /// Packets that some ports received so far.
    pub(crate) async fn received(&self, ports: &[String]) -> Result<u64, BenchError> {
        let stats = self.stats().await?;
        let named = stats.ports.iter().filter(|port| ports.contains(&port.name));
        Ok(named.filter_map(|port| port.counters.as_ref()).map(|counters| counters.rx_packets).sum())
    }

    /// Every counter of the workers.
    pub(crate) async fn pipeline(&self) -> Result<v1::GetPipelineResponse, BenchError> {
        let mut client = self.client.stats.clone();
        let call = client.pipeline(v1::GetPipelineRequest {});
        Ok(self.answer("tell its workers' figures", CALL_PATIENCE, call).await?.into_inner())
    }

    /// A client of its rules.
    pub(crate) fn rules_client(&self) -> RulesClient<Channel> {
        self.client.rules.clone()
    }

    /// Its process id.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Nanoseconds that each of its threads has run for, by name.
    pub(crate) fn cpu_time(&self) -> HashMap<String, u64> {
        cpu_time::of_threads(self.child.id())
    }

    /// Nanoseconds that each of its threads has waited for a core, by name.
    pub(crate) fn waiting_time(&self) -> HashMap<String, u64> {
        cpu_time::waiting_of_threads(self.child.id())
    }

    /// Instructions of its workers so far, where the machine counts them.
    pub(crate) fn instructions(&self) -> Option<u64> {
        self.instructions.as_ref()?.read()
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
            Ok(Err(status)) => Err(self.refused(what, &status)),
            Err(_) => Err(BenchError::Slow { what, waited: patience, tail: self.child.tail() }),
        }
    }
}

impl Daemon {
    /// That it did not do what it was asked for.
    pub(crate) fn refused(&self, what: &'static str, status: &tonic::Status) -> BenchError {
        let message = status.message().to_owned();
        BenchError::Refused { what, message, tail: format!("({})", self.child.tail()) }
    }
}

/// Rules in messages, each made when it is asked for.
pub(crate) struct Messages<I> {
    pub rules: I,
}

impl<I: Iterator<Item = v1::Rule>> Iterator for Messages<I> {
    type Item = v1::LoadRulesRequest;

    fn next(&mut self) -> Option<Self::Item> {
        let rules: Vec<_> = self.rules.by_ref().take(MESSAGE_RULES).collect();
        (!rules.is_empty()).then(|| v1::LoadRulesRequest::new(&rules, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::Feed;
    use crate::flows::Flows;
    use crate::scenario::Direction;

    #[test]
    fn the_config_names_what_was_asked_for() {
        let flows = Flows::plain(1, 1, 64);
        let scenario =
            Scenario { direction: Direction::Encap, flows, lanes: 2, cache_entries: 4096, feed: Feed::Pcap };
        let setup = Setup {
            scenario: &scenario,
            packets: Path::new("/tmp/b"),
            cores: &[3, 1],
            hugepages: false,
            idle: None,
        };
        let text = setup.config(Path::new("/tmp/b/run"));
        for line in [
            "state = \"/tmp/b/run/state\"",
            "socket = \"/tmp/b/run/socket\"",
            "hugepages = \"off\"",
            "cores = \"1,3\"",
            "layout = \"fused\"",
            "idle = \"busy-poll\"",
            "flow_cache_entries = 4096",
            "device = \"pcap:/tmp/b/packets0.pcap,infinite_rx=1\"",
            "device = \"pcap:/tmp/b/packets1.pcap,infinite_rx=1\"",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn messages_hold_a_thousand_rules_and_none_is_lost() {
        let rules = (0..2500).map(|number| v1::Rule { id: number.to_string(), ..v1::Rule::default() });
        let lengths: Vec<_> = Messages { rules }.map(|message| message.rules.len()).collect();
        assert_eq!(lengths, [1000, 1000, 500]);
    }
}

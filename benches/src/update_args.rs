//! The words of `forebay bench update`, and the checked plan that they become.

use std::time::Duration;

use clap::Args;

use crate::args::{MOST, SHARED_TUNNELS, seconds, tunnels_on, usual_scenario, worker_cores};
use crate::error::BenchError;
use crate::flows;
use crate::scenario::Scenario;

/// What changes of rules are measured with.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Rules that are loaded, and then all replaced
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    rules: u32,
    /// Flows of the traffic
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
    flows: u32,
    /// Ports of tenants, which the rules and the flows are given to in turn: the first has a device, the others are behind
    /// VLAN tags of it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(flows::MOST_PORTS)))]
    ports: u16,
    /// Tunnels, each to its own remote and with its own network, that the rules share [default: 1000, or as many as there
    /// are rules; on several cores a network for each rule, one remote]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=flows::MOST_TUNNELS))]
    tunnels: Option<u32>,
    /// Changes of single rules that are asked for each second
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    changes_per_second: u32,
    /// Core of the worker [default: the first but 0]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Seconds that single rules are changed for at that rate, then as fast as they are acknowledged, and seconds that
    /// nothing changes before
    #[arg(long, value_name = "S", default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    /// Runs; what is reported is their median, least and greatest
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// How changes of rules are measured.
#[derive(Clone, Debug)]
pub(crate) struct UpdatePlan {
    pub scenario: Scenario,
    pub cores: Vec<usize>,
    pub changes_per_second: u32,
    pub duration: Duration,
    pub runs: u32,
    pub json: bool,
}

impl UpdateArgs {
    /// Checks what the parser cannot.
    pub(crate) fn plan(&self) -> Result<UpdatePlan, BenchError> {
        let cores = worker_cores(self.cores.as_deref())?;
        let ports = usize::from(self.ports) * cores.len();
        if ports > usize::from(flows::MOST_PORTS) {
            return Err(BenchError::ManyPorts {
                ports: self.ports,
                count: cores.len(),
                most: flows::MOST_PORTS,
            });
        }
        let mut scenario = usual_scenario(self.flows, self.rules, cores.len() as u8);
        scenario.flows.ports = self.ports;
        scenario.flows.tunnels = match (self.tunnels, cores.len()) {
            (None, 1) => Some(SHARED_TUNNELS.min(self.rules)),
            (tunnels, _) => tunnels_on(tunnels, &cores)?,
        };
        Ok(UpdatePlan {
            scenario,
            cores,
            changes_per_second: self.changes_per_second,
            duration: Duration::from_secs_f64(self.seconds),
            runs: self.runs,
            json: self.json,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn an_update_has_a_million_rules_and_a_rate() {
        #[derive(Debug, Parser)]
        struct Words {
            #[command(flatten)]
            args: UpdateArgs,
        }
        let plan = |words: &[&str]| {
            let words = Words::try_parse_from(std::iter::once("bench").chain(words.iter().copied()));
            words.map_err(|error| error.to_string())?.args.plan().map_err(|error| error.to_string())
        };
        let usual = plan(&[]).unwrap();
        assert_eq!(
            (usual.scenario.flows.rules, usual.changes_per_second, usual.runs),
            (1_000_000, 10_000, 3)
        );
        assert_eq!((usual.scenario.flows.ports, usual.scenario.flows.tunnels), (1, Some(1000)));
        let named = plan(&["--rules", "10", "--ports", "7", "--changes-per-second", "5", "--seconds", "0.2"])
            .unwrap();
        assert_eq!((named.scenario.flows.rules, named.changes_per_second), (10, 5));
        assert_eq!(named.duration, Duration::from_millis(200));
        assert_eq!((named.scenario.flows.ports, named.scenario.flows.tunnels), (7, Some(10)));
        assert_eq!(plan(&["--tunnels", "3"]).unwrap().scenario.flows.tunnels, Some(3));
        assert!(plan(&["--ports", "4096"]).unwrap_err().contains("invalid value"));
        assert!(plan(&["--changes-per-second", "0"]).unwrap_err().contains("invalid value"));
    }
}

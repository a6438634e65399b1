//! What `forebay top` shows, computed from two samples: the pipelines as in `forebay pipeline show`, and the rates of the
//! ports. The same figures are drawn and written as JSON.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;

use forebay_api::port_json::kind_to_text;
use forebay_api::v1::{GetPipelineResponse, GetStatsResponse, PortCounters, PortStats};
use serde::Serialize;

use crate::cli::pipeline_view::{PipelineView, rounded, share};

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// What the daemon said at one moment.
pub struct Sample {
    pub stats: GetStatsResponse,
    pub pipeline: GetPipelineResponse,
    pub at: Instant,
}

/// What is shown of a host over an interval.
#[derive(Serialize)]
pub struct TopView<'a> {
    pub host: &'a str,
    pub uptime_ns: u64,
    pub rules: u64,
    pub buffers: u64,
    pub buffers_in_use: u64,
    #[serde(flatten)]
    pub pipeline: PipelineView<'a>,
    pub ports: BTreeMap<&'a str, PortRates<'a>>,
}

/// What passes through a port.
#[derive(Serialize)]
pub struct PortRates<'a> {
    pub kind: &'static str,
    pub rx_packets_per_second: f64,
    pub rx_bits_per_second: f64,
    pub tx_packets_per_second: f64,
    pub tx_bits_per_second: f64,
    pub drops_per_second: f64,
    /// The reason of the most drops; null where nothing was dropped.
    pub top_drop_reason: Option<&'a str>,
}

/// What ports are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Name,
    Received,
    Dropped,
}

impl Order {
    pub fn next(self) -> Self {
        match self {
            Self::Name => Self::Received,
            Self::Received => Self::Dropped,
            Self::Dropped => Self::Name,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Received => "rx",
            Self::Dropped => "drops",
        }
    }
}

impl<'a> TopView<'a> {
    /// The difference of two samples; the averages since the start where there is one only, or where the daemon has started
    /// again in between.
    pub fn new(before: Option<&Sample>, after: &'a Sample) -> Self {
        let before = before.filter(|before| before.stats.uptime_ns <= after.stats.uptime_ns);
        let since = before.map_or(0, |before| before.stats.uptime_ns);
        // The daemon's own clock: right however long the answer took.
        let interval_ns = after.stats.uptime_ns.saturating_sub(since);
        let watched = before.map(|before| (&before.pipeline, after.at.saturating_duration_since(before.at)));
        let earlier = |port: &PortStats| {
            let known = before?.stats.ports.iter().find(|known| known.name == port.name)?;
            known.counters.as_ref()
        };
        let ports = after.stats.ports.iter();
        Self {
            host: &after.stats.host,
            uptime_ns: after.stats.uptime_ns,
            rules: after.stats.rules,
            buffers: after.stats.buffers,
            buffers_in_use: after.stats.buffers_in_use,
            pipeline: PipelineView::new(watched, &after.pipeline),
            ports: ports
                .map(|port| (port.name.as_str(), PortRates::new(earlier(port), port, interval_ns)))
                .collect(),
        }
    }

    /// The ports in this order: of rates, the highest first.
    pub fn ports_by(&self, order: Order) -> Vec<(&'a str, &PortRates<'a>)> {
        let mut ports: Vec<_> = self.ports.iter().map(|(name, rates)| (*name, rates)).collect();
        // The sort is stable: ports alike stay in the order of their names.
        ports.sort_by(|(_, one), (_, other)| match order {
            Order::Name => Ordering::Equal,
            Order::Received => other.rx_packets_per_second.total_cmp(&one.rx_packets_per_second),
            Order::Dropped => other.drops_per_second.total_cmp(&one.drops_per_second),
        });
        ports
    }
}

impl<'a> PortRates<'a> {
    fn new(before: Option<&PortCounters>, after: &'a PortStats, interval_ns: u64) -> Self {
        let kind = kind_to_text(after.kind());
        let Some(counters) = after.counters.as_ref() else { return Self::none(kind) };
        // A port that was removed and added again counts from zero.
        let before = before.filter(|before| {
            before.rx_packets <= counters.rx_packets && before.tx_packets <= counters.tx_packets
        });
        let per_second = |count: u64| {
            share(count, interval_ns).map_or(0.0, |rate| rounded(rate * NANOSECONDS_PER_SECOND as f64))
        };
        let rate =
            |of: fn(&PortCounters) -> u64| per_second(of(counters).saturating_sub(before.map_or(0, of)));
        let dropped = counters.drops.iter().map(|(reason, packets)| {
            let known = before.and_then(|before| before.drops.get(reason)).copied();
            (reason.as_str(), packets.saturating_sub(known.unwrap_or(0)))
        });
        let dropped: Vec<_> = dropped.filter(|(_, packets)| *packets > 0).collect();
        Self {
            kind,
            rx_packets_per_second: rate(|counters| counters.rx_packets),
            rx_bits_per_second: rate(|counters| counters.rx_bytes.saturating_mul(8)),
            tx_packets_per_second: rate(|counters| counters.tx_packets),
            tx_bits_per_second: rate(|counters| counters.tx_bytes.saturating_mul(8)),
            drops_per_second: per_second(
                dropped.iter().fold(0, |sum: u64, (_, packets)| sum.saturating_add(*packets)),
            ),
            top_drop_reason: dropped.iter().max_by_key(|(_, packets)| *packets).map(|(reason, _)| *reason),
        }
    }

    fn none(kind: &'static str) -> Self {
        Self {
            kind,
            rx_packets_per_second: 0.0,
            rx_bits_per_second: 0.0,
            tx_packets_per_second: 0.0,
            tx_bits_per_second: 0.0,
            drops_per_second: 0.0,
            top_drop_reason: None,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cli::pipeline_view::tests::sample as pipeline_sample;
    use forebay_api::v1::PortKind;
    use std::time::Duration;

    /// What was counted `scale` seconds after the start: of each port so much a second.
    pub fn sample(scale: u64) -> Sample {
        let port = |name: &str, packets: u64, no_rule: u64| PortStats {
            name: name.into(),
            kind: PortKind::Vf.into(),
            counters: Some(PortCounters {
                rx_packets: packets * scale,
                rx_bytes: 125 * packets * scale,
                tx_packets: 5 * scale,
                tx_bytes: 500 * scale,
                drops: [("malformed".to_owned(), scale), ("no_rule".to_owned(), no_rule * scale)].into(),
                ..Default::default()
            }),
            conservation: None,
        };
        Sample {
            stats: GetStatsResponse {
                host: "host-a".into(),
                ports: vec![port("vm1", 10, 0), port("vm2", 1000, 0), port("vm3", 100, 40)],
                buffers: 4096,
                buffers_in_use: 512,
                rules: 7,
                uptime_ns: scale * NANOSECONDS_PER_SECOND,
                ..Default::default()
            },
            pipeline: pipeline_sample(scale),
            at: Instant::now() + Duration::from_secs(scale),
        }
    }

    #[test]
    fn rates_are_those_of_the_interval() {
        let (before, after) = (sample(2), sample(4));
        let view = TopView::new(Some(&before), &after);
        let port = &view.ports["vm3"];
        assert_eq!((port.rx_packets_per_second, port.rx_bits_per_second), (100.0, 100_000.0));
        assert_eq!((port.tx_packets_per_second, port.tx_bits_per_second), (5.0, 4000.0));
        assert_eq!((port.drops_per_second, port.top_drop_reason), (41.0, Some("no_rule")));
        assert_eq!(view.ports["vm1"].top_drop_reason, Some("malformed"));
        assert_eq!(view.pipeline.workers[0].stages[0].packets, 200);
        let still = TopView::new(Some(&after), &after);
        assert_eq!(
            (still.ports["vm1"].rx_packets_per_second, still.ports["vm1"].top_drop_reason),
            (0.0, None)
        );
    }

    #[test]
    fn a_first_sample_and_one_of_a_daemon_that_started_again_are_averages() {
        let (before, after) = (sample(9), sample(3));
        for view in [TopView::new(None, &after), TopView::new(Some(&before), &after)] {
            assert_eq!(view.ports["vm2"].rx_packets_per_second, 1000.0);
            assert_eq!(view.pipeline.interval_ns, 3_000_000_000);
        }
    }

    #[test]
    fn a_port_that_came_again_counts_from_zero() {
        let (before, mut after) = (sample(9), sample(10));
        after.stats.ports[1] = sample(1).stats.ports[1].clone();
        let view = TopView::new(Some(&before), &after);
        assert_eq!(view.ports["vm2"].rx_packets_per_second, 1000.0);
    }

    #[test]
    fn ports_are_sorted_as_asked() {
        let after = sample(1);
        let view = TopView::new(None, &after);
        let names = |order| view.ports_by(order).iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(names(Order::Name), ["vm1", "vm2", "vm3"]);
        assert_eq!(names(Order::Received), ["vm2", "vm3", "vm1"]);
        assert_eq!(names(Order::Dropped), ["vm3", "vm1", "vm2"]);
        assert_eq!(Order::Name.next().next().next(), Order::Name);
    }
}

//! How many packets of new flows have to stand in a file that is received for ever, so that a given number of flows
//! begins each second.
//!
//! The file comes again and again, and its new flows with it. They are new each time, because there are several times as
//! many as places that a worker has for them beside the flows that go on: of flows that brought one packet, the daemon
//! forgets the one that it saw longest ago.

use crate::args::{LEAST_CACHE_ENTRIES, MOST};
use crate::error::BenchError;
use crate::sequence::Sequence;

/// New flows for each place that is left for them: none is still known when it comes again, however unevenly the cache's
/// sets are filled. At least half as many where the file would be too long.
const FLOWS_PER_PLACE: u64 = 4;
/// Beyond half of all packets, the flows that go on are no longer the traffic.
const MOST_SHARE: f64 = 0.5;

/// Places that a worker gets: those of the flows that go on, and an eighth more.
pub(crate) fn cache_entries(flows: u32) -> u32 {
    (flows + flows / 8 + 1).next_power_of_two().max(LEAST_CACHE_ENTRIES)
}

/// A sequence in which `wanted` flows a second begin when `rate` packets a second are received.
///
/// # Errors
/// The file would have to be longer than it can be.
pub(crate) fn sequence(
    established: Sequence,
    cache_entries: u32,
    wanted: u32,
    rate: f64,
) -> Result<Sequence, BenchError> {
    let share = (f64::from(wanted) / rate.max(1.0)).clamp(1e-6, MOST_SHARE);
    let places = u64::from(cache_entries.next_power_of_two().saturating_sub(established.flows).max(1));
    let longest = MOST as u64;
    // At most half of the longest file, as the share is.
    let fitting = (longest as f64 * share) as u64;
    let new_flows = (places * FLOWS_PER_PLACE).min(fitting);
    if new_flows < places * FLOWS_PER_PLACE / 2 {
        let least = (places * FLOWS_PER_PLACE / 2) as f64 / longest as f64 * rate;
        let packets = ((places * FLOWS_PER_PLACE / 2) as f64 / share) as u64;
        let most = longest as u32;
        return Err(BenchError::NewFlows { wanted, flows: established.flows, rate, packets, most, least });
    }
    let others = new_flows as f64 * (1.0 / share - 1.0);
    let passes = (others / f64::from(established.flows.max(1))).round().max(1.0) as u32;
    Ok(Sequence { passes, new_flows: new_flows as u32, ..established })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Sizes;

    #[test]
    fn the_share_follows_the_rate() {
        for (flows, wanted, rate) in [(1000, 1_000_000, 8e6), (1000, 100_000, 8e6), (100_000, 1_000_000, 8e6)]
        {
            let established = Sequence::new(flows, Sizes::Fixed(64), false);
            let entries = cache_entries(flows);
            let sequence = sequence(established, entries, wanted, rate).unwrap();
            let began = sequence.new_share() * rate / f64::from(wanted);
            assert!((0.85..1.15).contains(&began), "{flows} {wanted}: {began} of what was asked for");
            assert!(sequence.new_flows >= 2 * (entries - flows), "{sequence:?}");
            assert!(i64::from(sequence.packets()) <= MOST + i64::from(flows), "{sequence:?}");
        }
    }

    #[test]
    fn at_most_half_of_the_packets_begin_a_flow() {
        let established = Sequence::new(1000, Sizes::Fixed(64), false);
        let sequence = sequence(established, cache_entries(1000), 10_000_000, 1e6).unwrap();
        assert!((sequence.new_share() - 0.5).abs() < 0.05, "{sequence:?}");
    }

    #[test]
    fn what_cannot_be_new_again_is_refused() {
        let established = Sequence::new(100_000, Sizes::Fixed(64), false);
        let error = sequence(established, cache_entries(100_000), 1, 8e6).unwrap_err();
        assert!(error.to_string().starts_with("--new-flows-per-second 1: beside 100000 flows"), "{error}");
        assert!(cache_entries(1) >= 64 && cache_entries(100_000) == 131_072);
    }
}

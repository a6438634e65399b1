//! What `forebay bench --feed memory` needs of the dataplane: a worker that is fed in this process.

use forebay_benches::{MemoryFeed, MemoryFigures, MemorySetup, Problem};
use forebay_dataplane::feed::{Direction, Feed, Flows, Setup};
use forebay_sriov::Hugepages;

struct InProcess(Feed);

impl MemoryFeed for InProcess {
    fn step(&mut self) -> Result<(), Problem> {
        Ok(self.0.step()?)
    }

    fn figures(&self) -> MemoryFigures {
        let figures = self.0.figures();
        let path = figures.path.into_iter().map(|(name, cycles)| (name, false, cycles));
        let io = figures.io.into_iter().map(|(name, cycles)| (name, true, cycles));
        MemoryFigures { stages: path.chain(io).collect(), packets: figures.packets }
    }
}

/// Makes a feed on the calling thread, which belongs to the feed's core from then on.
///
/// # Errors
/// There is no such core, or what a [`Feed`] needs is not to be had.
pub fn make_feed(setup: &MemorySetup) -> Result<Box<dyn MemoryFeed>, Problem> {
    super::generator::pin(setup.core)?;
    let feed = Feed::new(&Setup {
        direction: if setup.decap { Direction::Decapsulate } else { Direction::Encapsulate },
        flows: if setup.all_new { Flows::New } else { Flows::Known(setup.flows) },
        rules: setup.rules,
        ipv6: setup.ipv6,
        frame_bytes: setup.frame_bytes,
        cache_flows: setup.cache_entries as usize,
        hugepages: if setup.hugepages { Hugepages::Required } else { Hugepages::Off },
    })?;
    Ok(Box::new(InProcess(feed)))
}

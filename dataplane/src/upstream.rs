//! Whether more packets have entered the pipeline behind those that a later stage has finished.
//!
//! Every packet that a front receives gets the next number of its port; the newest one is the front's own count of received
//! packets, which anybody may read. Through the ring a packet takes the number that was the newest when its burst was
//! complete: so a difference means that packets came after that burst. Numbers are counted modulo 2^16, which is far more
//! than a front can be ahead by.

use crate::action::PortId;
use crate::counters::WorkerTally;
use std::sync::Arc;

/// What a back knows of one of its fronts.
pub struct Upstream {
    front: Arc<WorkerTally>,
    /// The port and number of the last packet that came from it.
    last: Option<(PortId, u16)>,
}

impl Upstream {
    /// Of the front that counts there. Nothing has come from it.
    pub fn new(front: Arc<WorkerTally>) -> Upstream {
        Upstream { front, last: None }
    }

    /// A packet of this port and number has come.
    #[inline(always)]
    pub fn came(&mut self, port: PortId, sequence: u16) {
        self.last = Some((port, sequence));
    }

    /// Packets of the same port that the front has received behind the last that came from it. Some may have gone to other
    /// workers, or nowhere.
    #[inline(always)]
    pub fn behind(&self) -> usize {
        let Some((port, sequence)) = self.last else { return 0 };
        let newest =
            self.front.ports.get(port.index()).map_or(0, |counters| counters.rx_packets.get() as u16);
        usize::from(newest.wrapping_sub(sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_entered_behind_the_last_packet_is_counted() {
        let tally = Arc::new(WorkerTally::new(4).unwrap());
        let (one, other) = (PortId(1), PortId(2));
        let mut upstream = Upstream::new(tally.clone());
        tally.ports[1].rx_packets.add(70_000);
        assert_eq!(upstream.behind(), 0, "nothing came");
        upstream.came(one, 70_000_u64 as u16);
        assert_eq!(upstream.behind(), 0, "it was the last");
        tally.ports[2].rx_packets.add(5);
        assert_eq!(upstream.behind(), 0, "another port's");
        tally.ports[1].rx_packets.add(3);
        assert_eq!(upstream.behind(), 3);
        upstream.came(other, 4);
        assert_eq!(upstream.behind(), 1);
        upstream.came(PortId(9), 0);
        assert_eq!(upstream.behind(), 0, "a port that nobody counts");
    }
}

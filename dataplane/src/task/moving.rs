//! Receive queues that go from one worker to another, without losing or overtaking a packet.
//!
//! The worker that gives a queue stops polling it, waits until whatever it had received from it has left the host (the rings that it
//! passed packets on through say so), and hands the queue itself to the other one, through a ring of one place. Meanwhile
//! packets wait in the queue. So at every moment a queue has one user, and a flow's packets are all sent by the one before the
//! other receives the next.

use super::part::{Marks, Part};
use forebay_pipeline::batch::Batch;
use forebay_pipeline::ring::{RingConsumer, RingProducer};
use forebay_pipeline::tsc;
use forebay_sriov::RxQueue;
use std::time::Duration;

/// How long a queue that is to go is still polled while packets wait for a next hop here, which they would be overtaken at: as
/// long as an answer takes in most networks. One that never comes must not keep the queue here.
const WAITING_PATIENCE: Duration = Duration::from_millis(20);
/// How long others may take to work on what came from the queue before. They are stuck if it takes longer: a ring holds some
/// 100 us of work. The queue stays then, and is polled again before it is full where packets come one after another.
const DONE_PATIENCE: Duration = Duration::from_millis(20);

enum Step {
    /// Packets wait for a next hop.
    Waiting,
    /// It is not polled any more; what came from it is on its way to here.
    Leaving(RxQueue, Marks),
}

struct Giving {
    device: u16,
    queue: u16,
    to: RingProducer<RxQueue>,
    step: Step,
    /// When the step began, by the time-stamp counter.
    since: u64,
}

/// The queues of one worker that come or go.
#[derive(Default)]
pub struct Moving {
    giving: Vec<Giving>,
    taking: Vec<RingConsumer<RxQueue>>,
    arrived: Batch<RxQueue>,
}

impl Moving {
    /// This queue is to go.
    pub fn give(&mut self, device: u16, queue: u16, to: RingProducer<RxQueue>) {
        self.giving.push(Giving { device, queue, to, step: Step::Waiting, since: tsc::now() });
    }

    /// A queue will come from there.
    pub fn take(&mut self, from: RingConsumer<RxQueue>) {
        self.taking.push(from);
    }

    /// Nothing comes or goes.
    #[inline(always)]
    pub fn is_over(&self) -> bool {
        self.giving.is_empty() && self.taking.is_empty()
    }

    /// Takes the next step of each. True while one is to be looked at again soon.
    #[cold]
    pub fn go_on(&mut self, part: &mut Part) -> bool {
        let now = tsc::now();
        self.giving.retain_mut(|giving| giving.go_on(part, now));
        let Moving { taking, arrived, .. } = self;
        taking.retain_mut(|from| {
            // Asked before it is found empty: what was pushed before the end is found.
            let ended = from.is_abandoned();
            let came = from.pop(arrived);
            came == 0 && !ended
        });
        if let Some(receive) = part.receive() {
            arrived.drain(..).for_each(|queue| receive.attach(queue));
        }
        arrived.clear();
        !self.is_over()
    }
}

impl Giving {
    /// False when it is over.
    fn go_on(&mut self, part: &mut Part, now: u64) -> bool {
        let patience = |since: u64, patience: Duration| {
            tsc::to_ns(now.saturating_sub(since)) < patience.as_nanos() as u64
        };
        if let Step::Waiting = self.step {
            if part.waiting() > 0 && patience(self.since, WAITING_PATIENCE) {
                return true;
            }
            let found = part.receive().and_then(|receive| receive.detach_queue(self.device, self.queue));
            // A queue that is not here cannot go; whoever waits for it sees the ring end.
            let Some(queue) = found else { return false };
            self.step = Step::Leaving(queue, part.marks());
            self.since = now;
        }
        let Step::Leaving(_, marks) = &self.step else { return false };
        let is_done = part.is_done_with(marks);
        if !is_done && patience(self.since, DONE_PATIENCE) {
            return true;
        }
        if let Step::Leaving(queue, _) = std::mem::replace(&mut self.step, Step::Waiting) {
            let mut queue = Batch::from_iter([queue]);
            if is_done && !self.to.is_abandoned() {
                self.to.push(&mut queue);
            }
            // Those it went to are stuck, or the other worker is gone: it stays.
            if let Some(receive) = part.receive() {
                queue.drain(..).for_each(|queue| receive.attach(queue));
            }
        }
        false
    }
}

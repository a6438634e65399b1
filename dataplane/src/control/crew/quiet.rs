//! Moments in which nothing is on its way: what makes it safe to send flows another way.
//!
//! Workers that receive are told to let nothing in; what they have let in before passes on, and the rings say when. Meanwhile packets
//! wait in the queues of the devices. It takes some ten microseconds where no core is overloaded.

use super::{Crew, Link};
use crate::task::Command;
use forebay_pipeline::tsc;
use std::time::{Duration, Instant};

/// How long workers may take to do as they are told, and what is on its way to be sent: all rings full are some milliseconds of work.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks, busily at first: a worker takes some microseconds, and packets are waiting.
const LOOK_INTERVAL: Duration = Duration::from_micros(20);
const BUSY_LOOKS: Duration = Duration::from_micros(200);

/// Something that must not be on its way any more is: a worker is stuck.
#[derive(Debug, thiserror::Error)]
#[error("worker {worker:?} has not come to rest within {} ms (stuck? see: forebay pipeline show)", .waited.as_millis())]
pub struct Restless {
    /// The worker.
    pub worker: String,
    /// How long was waited.
    pub waited: Duration,
}

/// Waits until `is_done`. False where that takes too long.
pub(super) fn wait(mut is_done: impl FnMut() -> bool, patience: Duration) -> bool {
    let start = Instant::now();
    loop {
        if is_done() {
            return true;
        }
        let waited = start.elapsed();
        if waited > patience {
            return false;
        }
        if waited < BUSY_LOOKS {
            // The workers may need this very core.
            std::thread::yield_now();
        } else {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Crew {
    /// Makes a change while none of the packets that these pipelines have received is on its way.
    ///
    /// # Errors
    /// It did not come to that; nothing was changed.
    pub(super) fn while_quiet<T>(
        &mut self,
        lines: &[usize],
        change: impl FnOnce(&mut Crew) -> T,
    ) -> Result<T, Restless> {
        // Those that poll its queues, too, while it has lent its last core.
        let holders =
            |line: &usize| self.queues_of_line(*line).map(|(.., holder)| holder).collect::<Vec<_>>();
        let mut heads: Vec<usize> =
            lines.iter().flat_map(|line| self.heads(*line).into_iter().chain(holders(line))).collect();
        heads.sort_unstable();
        heads.dedup();
        let began = tsc::now();
        heads.iter().for_each(|head| self.send(*head, Command::Pause(true)));
        let result = self.obeyed(&heads).and_then(|()| self.settled(lines));
        let result = result.map(|()| {
            let result = change(self);
            let members: Vec<usize> = self.members.iter().map(|member| member.number).collect();
            // What the workers were told is done before the next packet comes.
            let obeyed = self.obeyed(&members);
            if let Err(late) = obeyed {
                tracing::warn!("{late}");
            }
            result
        });
        heads.iter().for_each(|head| self.send(*head, Command::Pause(false)));
        tracing::debug!("packets waited for {} us", tsc::to_ns(tsc::now().saturating_sub(began)) / 1000);
        result
    }

    /// Waits until these workers have done what they were told.
    pub(super) fn obeyed(&self, numbers: &[usize]) -> Result<(), Restless> {
        for member in self.members.iter().filter(|member| numbers.contains(&member.number)) {
            let mark = member.commands.mark();
            if !wait(|| member.commands.is_done_with(mark), PATIENCE) {
                return Err(Restless { worker: member.worker.name().to_owned(), waited: PATIENCE });
            }
        }
        Ok(())
    }

    /// Waits until the rings of these pipelines are empty and what came out of them is done with: the rings between stages in their
    /// order, then those to workers that have a transmit queue.
    fn settled(&self, lines: &[usize]) -> Result<(), Restless> {
        let mut links: Vec<(&Link, usize)> = self
            .links
            .iter()
            .filter_map(|link| {
                let from = self.members.iter().find(|member| member.number == link.from)?;
                lines
                    .contains(&from.line)
                    .then_some((link, if link.is_inner { from.group } else { usize::MAX }))
            })
            .collect();
        links.sort_by_key(|(_, depth)| *depth);
        for (link, _) in links {
            let mark = link.status.pushed();
            if !wait(|| link.status.done() >= mark, PATIENCE) {
                let late = self.members.iter().find(|member| member.number == link.to);
                let worker = late.map_or_else(String::new, |member| member.worker.name().to_owned());
                return Err(Restless { worker, waited: PATIENCE });
            }
        }
        Ok(())
    }
}

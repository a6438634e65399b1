//! Instructions that the workers execute, by the processor's own counter. Unlike cycles they do not depend on the mood of
//! the machine; many virtual machines have no such counter, and then there is no figure.

use std::fs;
use std::io;
use std::sync::Mutex;

use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// The counters of some threads.
#[derive(Debug)]
pub(crate) struct Instructions {
    counters: Mutex<Vec<Counter>>,
}

impl Instructions {
    /// Begins to count for the threads of a process that have one of the names.
    ///
    /// # Errors
    /// The machine has no such counter, or does not lend it; or there is no such thread.
    pub(crate) fn of_threads(process_id: u32, names: &[&str]) -> io::Result<Self> {
        let mut counters = Vec::new();
        for folder in fs::read_dir(format!("/proc/{process_id}/task"))?.flatten() {
            let name = fs::read_to_string(folder.path().join("comm")).unwrap_or_default();
            let thread = folder.file_name().to_str().and_then(|number| number.parse().ok());
            if let (true, Some(thread)) = (names.contains(&name.trim()), thread) {
                let mut builder = Builder::new(Hardware::INSTRUCTIONS);
                let mut counter = builder.observe_pid(thread).any_cpu().build()?;
                counter.enable()?;
                counters.push(counter);
            }
        }
        if counters.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { counters: Mutex::new(counters) })
    }

    /// Instructions of all threads so far.
    pub(crate) fn read(&self) -> Option<u64> {
        let mut counters = self.counters.lock().ok()?;
        counters.iter_mut().try_fold(0_u64, |sum, counter| Some(sum + counter.read().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_counted_where_the_machine_can() {
        assert!(Instructions::of_threads(std::process::id(), &["nobody"]).is_err());
        assert!(Instructions::of_threads(u32::MAX, &["nobody"]).is_err());
        let own = fs::read_to_string("/proc/thread-self/comm").unwrap();
        // A machine without the counter says so; one that has it counts on.
        if let Ok(instructions) = Instructions::of_threads(std::process::id(), &[own.trim()]) {
            let before = instructions.read().unwrap();
            assert_eq!((0..100_000_u64).map(std::hint::black_box).sum::<u64>(), 4_999_950_000);
            assert!(instructions.read().unwrap() > before);
        }
    }
}

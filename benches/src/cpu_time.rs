//! How much of the processors' time a daemon had, and whether a worker had its core to itself. The time-stamp counter runs on while another thread has the core, so on a
//! shared machine cycles per packet contain the others' time; the kernel's own account tells how much.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// Nanoseconds that each thread of a process has run for, by thread name. Empty where the kernel keeps no such account;
/// threads of the same name are one.
pub(crate) fn of_threads(process_id: u32) -> HashMap<String, u64> {
    account(process_id, 0)
}

/// Nanoseconds that each thread of a process was ready to run while others had its core, as [`of_threads`] has them.
pub(crate) fn waiting_of_threads(process_id: u32) -> HashMap<String, u64> {
    account(process_id, 1)
}

fn account(process_id: u32, place: usize) -> HashMap<String, u64> {
    let mut threads = HashMap::new();
    let Ok(folders) = fs::read_dir(format!("/proc/{process_id}/task")) else { return threads };
    for folder in folders.flatten() {
        let read = |file| fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        // Time on a core, time waiting for one, number of turns: Documentation/scheduler/sched-stats.rst.
        let time = read("schedstat").split_whitespace().nth(place).and_then(|word| word.parse::<u64>().ok());
        if let Some(time_ns) = time {
            *threads.entry(read("comm").trim().to_owned()).or_default() += time_ns;
        }
    }
    threads
}

/// The kernel counts the time of a process in hundredths of a second (`USER_HZ`), on every architecture that we know.
const TICK: Duration = Duration::from_millis(10);

/// How long a process has run for but for the threads of these names: the time of threads that have ended is in it. `None`
/// where the kernel does not tell.
pub(crate) fn without_threads(process_id: u32, names: &[String]) -> Option<Duration> {
    let threads = of_threads(process_id);
    let without: u64 = names.iter().map(|name| threads.get(name).copied()).sum::<Option<u64>>()?;
    let text = fs::read_to_string(format!("/proc/{process_id}/stat")).ok()?;
    // Behind the name, which may contain anything, from the third field on: proc_pid_stat(5).
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let whole = TICK * (ticks()? + ticks()?);
    Some(whole.saturating_sub(Duration::from_nanos(without)))
}

/// The share of `elapsed_ns` that a thread ran for between two accounts; `None` where either does not know it.
pub(crate) fn share(
    older: &HashMap<String, u64>,
    newer: &HashMap<String, u64>,
    thread: &str,
    elapsed_ns: f64,
) -> Option<f64> {
    let ran_ns = newer.get(thread)?.saturating_sub(*older.get(thread)?);
    // The two clocks are not read at the same moment.
    (elapsed_ns > 0.0).then(|| (ran_ns as f64 / elapsed_ns).min(1.0))
}

/// What to say of workers that had so little of their cores that the other figures mislead.
pub(crate) fn warning(share: f64) -> Option<String> {
    // Interrupts and the kernel's own threads take less than a twentieth of a core that is left alone.
    (share < 0.95).then(|| {
        format!(
            "a worker had only {:.0} % of its core: the rest went to other threads, and counts as cycles here",
            100.0 * share
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_spinning_thread_is_seen_running() {
        let spin = std::thread::Builder::new().name("spinner".to_owned());
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let spinner = spin
            .spawn(move || while wait.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {})
            .unwrap();
        let account = || of_threads(std::process::id());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !account().contains_key("spinner") && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (start, before) = (Instant::now(), account());
        let mut ran = None;
        while ran.is_none_or(|share| share == 0.0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            ran = share(&before, &account(), "spinner", start.elapsed().as_nanos() as f64);
        }
        drop(go);
        spinner.join().unwrap();
        assert!(ran.is_some_and(|share| share > 0.0 && share <= 1.0), "{ran:?}");
    }

    #[test]
    fn a_process_runs_for_longer_than_without_its_threads() {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        let begun = Instant::now();
        let whole = || without_threads(std::process::id(), &[]).unwrap();
        let before = whole();
        while whole() < before + 3 * TICK && begun.elapsed() < Duration::from_secs(20) {}
        assert!(whole() >= before + 3 * TICK);
        // The kernel keeps 15 bytes of a thread's name.
        let name = name.chars().take(15).collect::<String>();
        let without = without_threads(std::process::id(), &[name]).unwrap();
        assert!(without <= whole());
        assert_eq!(without_threads(std::process::id(), &["no such thread".to_owned()]), None);
        assert_eq!(without_threads(u32::MAX, &[]), None);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let account = |ran_ns| HashMap::from([("worker0".to_owned(), ran_ns)]);
        assert_eq!(share(&account(100), &account(150), "worker0", 100.0), Some(0.5));
        assert_eq!(share(&account(100), &account(300), "worker0", 100.0), Some(1.0));
        assert_eq!(share(&account(100), &account(150), "worker1", 100.0), None);
        assert_eq!(share(&account(100), &account(150), "worker0", 0.0), None);
        assert!(of_threads(u32::MAX).is_empty() && waiting_of_threads(u32::MAX).is_empty());
        assert_eq!(warning(0.96), None);
        assert!(warning(0.4).unwrap().starts_with("a worker had only 40 % of its core"));
    }
}

//! The calls to the operating system that the standard library lacks: a thread's timer slack, and its cores.

/// Asks that sleeps of the calling thread end on time, not up to 50 us late: by default Linux lets a timer of an
/// ordinary thread slip by that much to save wake-ups, which is more than a whole nap. Says whether it took effect;
/// if not, naps are longer, nothing else changes.
#[allow(unsafe_code)]
pub(crate) fn precise_sleep() -> bool {
    const SLACK_NS: libc::c_ulong = 1;
    // SAFETY: PR_SET_TIMERSLACK takes one number, reads or writes no memory of ours, and changes only the calling
    // thread's scheduling.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NS) == 0 }
}

/// Lets the calling thread, and those that it starts from now on, run on these cores only. Says whether it took effect.
#[allow(unsafe_code)]
pub(crate) fn stay_on(cores: &[usize]) -> bool {
    // SAFETY: a CPU set is a plain array of bits, and all zeros is the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for core in cores.iter().filter(|core| **core < libc::CPU_SETSIZE as usize) {
        // SAFETY: the core is below the number of bits in the set.
        unsafe { libc::CPU_SET(*core, &mut set) };
    }
    // SAFETY: the kernel reads as many bytes as the set has, and changes only the calling thread (0).
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_and_its_children_stay_where_they_are_told() {
        let cores =
            || core_affinity::get_core_ids().unwrap().into_iter().map(|core| core.id).collect::<Vec<_>>();
        let all = cores();
        let there = move || {
            assert!(stay_on(&all[..1]));
            (cores(), std::thread::spawn(cores).join().unwrap(), all[0], stay_on(&[]))
        };
        let (own, childs, first, nowhere) = std::thread::spawn(there).join().unwrap();
        assert_eq!((own, childs, nowhere), (vec![first], vec![first], false));
    }

    #[test]
    fn sets_the_slack_of_this_thread() {
        assert!(precise_sleep());
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        let tid = link.file_name().unwrap().to_str().unwrap().to_owned();
        let slack = std::fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).unwrap();
        assert_eq!(slack.trim(), "1");
    }
}

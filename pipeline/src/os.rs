//! The one call to the operating system that the standard library lacks: the timer slack of a thread.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_the_slack_of_this_thread() {
        assert!(precise_sleep());
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        let tid = link.file_name().unwrap().to_str().unwrap().to_owned();
        let slack = std::fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).unwrap();
        assert_eq!(slack.trim(), "1");
    }
}

//! The calls to the operating system that the standard library lacks: a thread's timer slack and its cores, and the ways
//! to sleep: on a futex, and on file descriptors, both to the nanosecond.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::bell::MAX_WATCHED;

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

/// Sleeping until a word changes. The word itself belongs to the caller.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Futex;

#[cfg(not(loom))]
impl Futex {
    pub(crate) fn new() -> Self {
        Self
    }

    /// Sleeps while the word is `expected`, until somebody wakes or the time is over; may end for no reason.
    #[allow(unsafe_code)]
    pub(crate) fn wait(&self, word: &AtomicU32, expected: u32, most: Duration) {
        let most = timespec(most);
        // SAFETY: the kernel reads the word, which is aligned and lives as long as the call, and the time; it writes
        // nothing. An error is a wake-up for no reason.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                expected,
                &raw const most,
            );
        }
    }

    /// Wakes who sleeps on the word.
    #[allow(unsafe_code)]
    pub(crate) fn wake(&self, word: &AtomicU32) {
        // SAFETY: the kernel takes the address as a key and reads nothing.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
        }
    }
}

/// A descriptor that is readable after [`signal_event`] until [`clear_event`]; none if the process has no more of them.
#[allow(unsafe_code)]
pub(crate) fn event_descriptor() -> Option<OwnedFd> {
    // SAFETY: takes two numbers and makes a descriptor, which is nobody else's.
    unsafe {
        let descriptor = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor))
    }
}

/// Makes an event descriptor readable.
#[allow(unsafe_code)]
pub(crate) fn signal_event(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight bytes are read from `one`. It fails only where the count is at its end: then it is readable.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

/// Makes an event descriptor unreadable.
#[allow(unsafe_code)]
pub(crate) fn clear_event(event: &OwnedFd) {
    let mut count = 0_u64;
    // SAFETY: eight bytes are written to `count`. It fails, without waiting, only where there is nothing to clear.
    unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
}

/// Sleeps until one of the descriptors is readable or the time is over; may end for no reason. Says whether the first one
/// is readable. A negative number stands for none.
#[allow(unsafe_code)]
pub(crate) fn poll_readable(descriptors: &[RawFd], most: Duration) -> bool {
    let wanted = |&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut polled: ArrayVec<libc::pollfd, { MAX_WATCHED + 1 }> =
        descriptors.iter().map(wanted).take(MAX_WATCHED + 1).collect();
    let most = timespec(most);
    // SAFETY: the kernel writes `revents` of as many entries as there are, and reads the time; no signal mask is given.
    let ready = unsafe {
        libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, &raw const most, ptr::null())
    };
    ready > 0 && polled.first().is_some_and(|first| first.revents != 0)
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    }
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

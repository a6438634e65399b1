//! The calls to the operating system that the standard library lacks: a thread's timer slack and its cores, and the ways
//! to sleep: on a futex, and on file descriptors, both to the nanosecond.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arrayvec::ArrayVec;

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

/// A descriptor for [`signal_event`]; none if the process has no more of them.
#[allow(unsafe_code)]
pub(crate) fn event_descriptor() -> Option<OwnedFd> {
    // SAFETY: takes two numbers and makes a descriptor, which is nobody else's.
    unsafe {
        let descriptor = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor))
    }
}

/// Writes to an event descriptor.
#[allow(unsafe_code)]
pub(crate) fn signal_event(event: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight bytes are read from `one`. It fails only where the count is at its end, which is 2^64 writes away.
    unsafe { libc::write(event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
}

/// What about a descriptor ends a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// That it can be read.
    Readable,
    /// That it is written to, whether or not it could be read before.
    Event,
}

/// A list of descriptors that the kernel waits for; none if the process has no more of them.
#[allow(unsafe_code)]
pub(crate) fn event_list() -> Option<OwnedFd> {
    // SAFETY: takes a number and makes a descriptor, which is nobody else's.
    unsafe {
        let descriptor = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        (descriptor >= 0).then(|| OwnedFd::from_raw_fd(descriptor))
    }
}

/// Puts a descriptor on a list, unless it stands there. Says whether it does now.
#[allow(unsafe_code)]
pub(crate) fn add_event(list: &OwnedFd, descriptor: RawFd, trigger: Trigger) -> bool {
    let edge = if trigger == Trigger::Event { libc::EPOLLET } else { 0 };
    let mut event = libc::epoll_event { events: (libc::EPOLLIN | edge) as u32, u64: descriptor as u64 };
    // SAFETY: the kernel reads the event. With a number that is no descriptor it fails.
    let added =
        unsafe { libc::epoll_ctl(list.as_raw_fd(), libc::EPOLL_CTL_ADD, descriptor, &raw mut event) == 0 };
    added || io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST)
}

/// Takes a descriptor off a list; one that has been closed is off it already.
#[allow(unsafe_code)]
pub(crate) fn remove_event(list: &OwnedFd, descriptor: RawFd) {
    // SAFETY: two numbers, and no event, which the kernel does not read here.
    unsafe { libc::epoll_ctl(list.as_raw_fd(), libc::EPOLL_CTL_DEL, descriptor, ptr::null_mut()) };
}

/// Sleeps until something happens to a descriptor of the list or the time is over; may end for no reason. Gives the
/// descriptors that something happened to, `N` at most.
#[allow(unsafe_code)]
pub(crate) fn wait_for_events<const N: usize>(list: &OwnedFd, most: Duration) -> ArrayVec<RawFd, N> {
    let (list, time) = (list.as_raw_fd(), timespec(most));
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; N];
    let (to, room) = (events.as_mut_ptr(), N as libc::c_int);
    // SAFETY: the kernel writes as many events as there are and reads the time; no signal mask is given.
    let mut ready = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            list,
            to,
            room,
            &raw const time,
            ptr::null::<libc::sigset_t>(),
            size_of::<u64>(),
        )
    };
    if ready < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        // Linux before 5.11: the other call knows whole milliseconds only, so another one waits.
        let mut polled = libc::pollfd { fd: list, events: libc::POLLIN, revents: 0 };
        // SAFETY: the kernel writes one `revents`, reads the time, and then writes as many events as there are.
        ready = unsafe {
            libc::ppoll(&raw mut polled, 1, &raw const time, ptr::null());
            libc::epoll_wait(list, to, room, 0).into()
        };
    }
    let ready = usize::try_from(ready).unwrap_or(0);
    events.iter().take(ready).map(|event| event.u64 as RawFd).collect()
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    }
}

/// Makes the number of one descriptor another name of the file of the other.
#[cfg(all(test, not(loom)))]
#[allow(unsafe_code)]
pub(crate) fn become_copy(one: &OwnedFd, other: &OwnedFd) {
    // SAFETY: two descriptors that are open; the first is closed and opened again, which its owner cannot tell.
    assert!(unsafe { libc::dup2(other.as_raw_fd(), one.as_raw_fd()) } >= 0);
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

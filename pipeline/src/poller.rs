//! Sleeping on file descriptors with one system call a sleep.
//!
//! The kernel keeps the list of what is waited for (epoll), so that a sleep that waits for the same as the one before says
//! nothing of it again. Descriptors are waited for in one of two ways: files that are readable while they hold something,
//! and event descriptors that are written to each time; of the latter the writing itself ends the sleep, so that nobody
//! has to read them empty.
//!
//! A file that is closed leaves the kernel's list without a word, and its number may be another file's by then. So the list is
//! gone through anew every [`RENEWAL`]: what is known is left as it is, what is new is waited for.
//! Invariant: a sleep ends when something happens to what it waits for, or after [`RENEWAL`] where the number of a descriptor
//! was given to another file meanwhile. What cannot be waited for makes sleeps short.

use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use arrayvec::ArrayVec;

use crate::bell::MAX_WATCHED;
use crate::os::{self, Trigger};
use crate::tsc;

/// A bell's own descriptor, and those of devices.
pub(crate) const MOST: usize = MAX_WATCHED + 1;

/// Where a descriptor cannot be waited for, who waits for it looks by itself as often.
const DEAF_SLEEP: Duration = Duration::from_millis(1);

/// Between two times that the kernel is told what to wait for though nothing is known to have changed: a handful of
/// system calls that cost nothing at this rate.
const RENEWAL: Duration = Duration::from_millis(100);

/// A descriptor, and what about it ends a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) descriptor: RawFd,
    pub(crate) trigger: Trigger,
}

/// What one thread sleeps on.
#[derive(Debug, Default)]
pub(crate) struct Poller {
    epoll: Option<OwnedFd>,
    /// What the kernel waits for.
    known: ArrayVec<Watched, MOST>,
    /// Whether some of these it cannot wait for.
    is_deaf: bool,
    /// When the kernel was last told.
    told_at: u64,
}

impl Poller {
    /// Sleeps until something happens to one of the descriptors or the time is over; may end for no reason.
    pub(crate) fn sleep(&mut self, wanted: &ArrayVec<Watched, MOST>, most: Duration) {
        let now = tsc::now();
        if *wanted != self.known || now.saturating_sub(self.told_at) > tsc::from_duration(RENEWAL) {
            self.tell(wanted, now);
        }
        let most = if self.is_deaf { most.min(DEAF_SLEEP) } else { most };
        let Some(epoll) = &self.epoll else {
            std::thread::sleep(most);
            return;
        };
        let is_wanted = |descriptor| wanted.iter().any(|watched| watched.descriptor == descriptor);
        if !os::wait_for_events::<MOST>(epoll, most).into_iter().all(is_wanted) {
            // A file that was closed here lives on elsewhere: without its number it cannot be taken out.
            self.forget();
        }
    }

    #[cold]
    fn tell(&mut self, wanted: &ArrayVec<Watched, MOST>, now: u64) {
        self.told_at = now;
        if self.epoll.is_none() {
            self.epoll = os::event_list();
        }
        let Some(epoll) = &self.epoll else {
            self.is_deaf = true;
            return;
        };
        for gone in self.known.iter().filter(|known| !wanted.contains(known)) {
            os::remove_event(epoll, gone.descriptor);
        }
        let refused =
            wanted.iter().filter(|watched| !os::add_event(epoll, watched.descriptor, watched.trigger));
        self.is_deaf = refused.count() > 0;
        self.known.clone_from(wanted);
    }

    #[cold]
    fn forget(&mut self) {
        self.epoll = None;
        self.known.clear();
    }

    /// Whether the kernel waits for this descriptor.
    #[cfg(all(test, not(loom)))]
    fn knows(&self, descriptor: RawFd) -> bool {
        self.known.iter().any(|known| known.descriptor == descriptor)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    fn watched(descriptor: &impl AsRawFd, trigger: Trigger) -> Watched {
        Watched { descriptor: descriptor.as_raw_fd(), trigger }
    }

    /// Whether a sleep on these ends before its time.
    fn is_woken(poller: &mut Poller, wanted: &[Watched]) -> bool {
        let (wanted, start) = (wanted.iter().copied().collect(), Instant::now());
        poller.sleep(&wanted, SHORT);
        start.elapsed() < SHORT
    }

    #[test]
    fn an_event_descriptor_wakes_once_for_each_time_that_it_is_written_to() {
        let (mut poller, event) = (Poller::default(), os::event_descriptor().unwrap());
        let wanted = [watched(&event, Trigger::Event)];
        assert!(!is_woken(&mut poller, &wanted));
        for _ in 0..3 {
            os::signal_event(&event);
            assert!(is_woken(&mut poller, &wanted));
            assert!(!is_woken(&mut poller, &wanted), "nobody has read it, and nobody has to");
        }
        // Between two sleeps, and several times.
        os::signal_event(&event);
        os::signal_event(&event);
        assert!(is_woken(&mut poller, &wanted));
        // To be told again changes nothing.
        std::thread::sleep(RENEWAL);
        assert!(!is_woken(&mut poller, &wanted));
        os::signal_event(&event);
        assert!(is_woken(&mut poller, &wanted));
    }

    #[test]
    fn a_file_wakes_for_as_long_as_it_is_readable() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (mut poller, event) = (Poller::default(), os::event_descriptor().unwrap());
        let wanted = [watched(&event, Trigger::Event), watched(&reader, Trigger::Readable)];
        assert!(!is_woken(&mut poller, &wanted));
        writer.write_all(b"x").unwrap();
        assert!(is_woken(&mut poller, &wanted) && is_woken(&mut poller, &wanted));
        // Nobody waits for it any more.
        assert!(!is_woken(&mut poller, &wanted[..1]) && !poller.knows(reader.as_raw_fd()));
        assert!(is_woken(&mut poller, &wanted));
    }

    #[test]
    fn a_number_that_becomes_another_files_is_found_out() {
        let mut poller = Poller::default();
        let event = os::event_descriptor().unwrap();
        let wanted = [watched(&event, Trigger::Event)];
        assert!(!is_woken(&mut poller, &wanted));
        let other = os::event_descriptor().unwrap();
        os::become_copy(&event, &other);
        std::thread::sleep(RENEWAL);
        assert!(!is_woken(&mut poller, &wanted));
        os::signal_event(&other);
        assert!(is_woken(&mut poller, &wanted));
    }

    #[test]
    fn a_file_that_lives_on_elsewhere_wakes_nobody_for_long() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let (mut poller, event) = (Poller::default(), os::event_descriptor().unwrap());
        let elsewhere = reader.try_clone().unwrap();
        let wanted = [watched(&event, Trigger::Event), watched(&reader, Trigger::Readable)];
        assert!(!is_woken(&mut poller, &wanted));
        drop(reader);
        writer.write_all(b"x").unwrap();
        assert!(is_woken(&mut poller, &wanted[..1]), "the kernel still waits for it");
        assert!(!is_woken(&mut poller, &wanted[..1]));
        drop(elsewhere);
    }

    #[test]
    fn what_cannot_be_waited_for_makes_sleeps_short() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        for descriptor in [file.as_raw_fd(), -1] {
            let wanted = [Watched { descriptor, trigger: Trigger::Readable }].into_iter().collect();
            let (mut poller, start) = (Poller::default(), Instant::now());
            poller.sleep(&wanted, LONG);
            assert!(start.elapsed() < LONG / 2, "{descriptor}");
        }
    }
}

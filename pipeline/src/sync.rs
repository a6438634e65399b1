//! What `publish` and `bell` are built of, so that loom can stand in for it when it checks their protocols. The reference
//! counts belong to that: who drops the last reference is what is to be checked.

#[cfg(not(loom))]
pub(crate) use std::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;

#[cfg(not(loom))]
pub(crate) use crate::os::Futex;

#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// loom's mutex with the face of `parking_lot`'s.
#[cfg(loom)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<loom::sync::MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// Lets others run while the caller waits: a real sleep, or a step of loom's scheduler.
#[cfg(not(loom))]
pub(crate) fn pause(duration: std::time::Duration) {
    std::thread::sleep(duration);
}

#[cfg(loom)]
pub(crate) fn pause(_duration: std::time::Duration) {
    loom::thread::yield_now();
}

/// A futex as the kernel promises it, but for its time: a sleep that nobody ends is what the model is to find.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Futex {
    lock: loom::sync::Mutex<()>,
    woken: loom::sync::Condvar,
}

#[cfg(loom)]
impl Futex {
    pub(crate) fn new() -> Self {
        Self { lock: loom::sync::Mutex::new(()), woken: loom::sync::Condvar::new() }
    }

    pub(crate) fn wait(&self, word: &AtomicU32, expected: u32, _most: std::time::Duration) {
        let mut guard = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while word.load(Ordering::Relaxed) == expected {
            guard = self.woken.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    pub(crate) fn wake(&self, _word: &AtomicU32) {
        let _guard = self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.woken.notify_all();
    }
}

//! What `publish` is built of, so that loom can stand in for it when it checks the protocol. The reference counts
//! belong to that: who drops the last reference is what is to be checked.

#[cfg(not(loom))]
pub(crate) use std::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;

#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};

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

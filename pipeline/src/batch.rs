//! The batch: the unit in which items pass through stages and rings.
//!
//! It lives in the task that works on it and is reused, so that moving a batch costs no allocation.

/// Most items in a batch. 64 because a batch is two receive bursts of the usual 32, and because 64 pointers are eight
/// cache lines: they stay in the first-level cache beside the headers that the stages touch.
pub const BATCH: usize = 64;

/// Up to [`BATCH`] items, in order.
pub type Batch<T> = arrayvec::ArrayVec<T, BATCH>;

/// What stages work on: a batch, or something that holds one beside what else travels with it.
pub trait Items {
    /// The number of items in it.
    fn count(&self) -> usize;
}

impl<T> Items for Batch<T> {
    #[inline(always)]
    fn count(&self) -> usize {
        self.len()
    }
}

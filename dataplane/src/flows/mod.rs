//! The first tier of lookup: what was decided about a flow, found again by exact match.

pub mod cache;
pub mod key;
pub mod listing;
pub mod record;
pub mod shape;

//! Rules: what users write ([`rule`]), how packets are compared with them ([`key`], [`table`]), and the slow, obvious
//! table that the fast one must agree with ([`reference`]).

mod entry;
pub mod key;
mod packing;
pub mod pattern;
pub mod reference;
pub mod rule;
mod shard;
pub mod table;
mod tuple;

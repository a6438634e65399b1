//! Rules: what users write ([`rule`]), how packets are compared with them ([`key`], [`table`]), and the slow, obvious
//! table that the fast one must agree with ([`reference`]).

mod best;
mod boxes;
mod entry;
pub mod key;
mod ladder;
mod packing;
pub mod pattern;
pub mod reference;
mod root;
pub mod rule;
mod shard;
pub mod table;
mod tree;
mod tree_build;
mod tuple;
mod tuple_build;

//! The dataplane of Forebay: rule tables, encapsulations, the stages of the packet path, and the control side of a host.
//!
//! The way of a packet is in [`stages`]; what the stages look at is published as a [`snapshot`]; who may change it is in
//! [`control`]. [`wire`] and [`rules`] know neither devices nor threads. [`feed`] runs a whole worker in the caller's thread,
//! to be measured.

pub mod action;
pub mod config;
pub mod control;
pub mod counters;
pub mod daemon;
pub mod doctor;
pub mod feed;
pub mod flows;
pub mod rules;
pub mod snapshot;
pub mod stages;
pub mod task;
pub mod upstream;
pub mod wire;

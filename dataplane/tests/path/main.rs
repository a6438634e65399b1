//! The packet path under attack: what a worker makes of every byte that tenants and the underlay can send.
//!
//! The real stages run in the real task, between ring devices (see [`harness`]). Frames are made and taken apart by
//! etherparse and by hand, never by the code under test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod conservation;
mod egress;
mod flows;
mod frames;
mod harness;
mod host;
mod hostile;
mod ingress;
mod moving;
mod neighbours;
mod panic;
mod rules;
mod split;
mod spoofing;
mod too_big;

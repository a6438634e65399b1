//! Rules: what users write ([`rule`]), how packets are compared with them ([`key`], [`table`]), and the slow, obvious
//! table that the fast one must agree with ([`reference`]).

pub mod key;
pub mod pattern;
pub mod reference;
pub mod rule;
pub mod table;

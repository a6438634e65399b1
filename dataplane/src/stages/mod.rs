//! The stages of the packet path: recall, admit, classify, transform, dispatch.
//!
//! A stage never removes a packet from its batch; it writes its [`parcel::Verdict`], and stages behind it leave alone what is
//! decided. Only [`dispatch`] lets packets go, each in exactly one way, and counts it: so nothing disappears uncounted.

pub mod admit;
pub mod classify;
pub mod dispatch;
mod express;
pub mod inbox;
pub mod ledger;
pub mod parcel;
pub mod parking;
pub mod recall;
pub mod receive;
pub mod spread;
pub mod transform;
pub mod underlay;
pub mod vlan;

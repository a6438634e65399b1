//! The control API of a Forebay host: the protobuf services of package `forebay.v1`, the client that speaks to them
//! over the control socket, what a server of them needs, and the JSON form of rules and ports.
//!
//! Everything that acts on a dataplane goes through here, and every value that enters it is checked by the one set
//! of validators in [`validate`]: the command line checks before it sends, the daemon checks what it received.
//! The invariant: a rule or port that [`rule_check::canonical`] or [`port_check::canonical`] has passed is in the
//! one canonical spelling, so two of them mean the same exactly where they are equal.

pub mod change;
pub mod client;
mod json;
pub mod mac;
pub mod port_check;
pub mod port_json;
mod request;
pub mod rule_check;
pub mod rule_json;
pub mod rule_view;
pub mod server;
pub mod spec_error;
pub mod validate;

/// The generated types, clients and servers of package `forebay.v1`; documented in the proto.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("forebay.v1");
    pub use crate::request::{ChangeRequest, LoadRulesRequest};
}

/// The compiled proto as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/forebay.v1.descriptors"));

/// The largest gRPC message that the client and the daemon accept, in bytes. The largest that our own client sends
/// is one rule line beyond 1 MiB; a list of ten thousand ports takes some 10 MiB; 64 MiB leaves room, and still
/// bounds what a peer can make us allocate.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

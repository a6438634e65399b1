//! The control side: who may change what the workers see, and what it does with what they report.
//!
//! [`host`] holds everything together: ports ([`ports`]), rules ([`book`]), what survives a restart ([`store`]) and the
//! workers ([`crew`]). The [`steward`] is the thread that listens to the workers. [`server`] puts the host on the
//! control socket.

pub mod book;
pub mod crew;
pub mod host;
pub mod metrics;
pub mod notice;
pub mod ports;
pub mod resolver;
pub mod routes;
pub mod server;
pub mod steward;
pub mod store;
pub mod tunnels;
mod view;

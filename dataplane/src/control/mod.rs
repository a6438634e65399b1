//! The control side: who may change what the workers see, and what it does with what they report.
//!
//! [`host`] holds everything together: ports ([`ports`]), rules ([`book`]), what survives a restart ([`store`]) and the
//! workers ([`crew`]). Changes of rules ([`request`]) are gathered by the [`committer`] and made together ([`commit`]) at the
//! [`desk`]. The [`steward`] is the thread that listens to the workers. [`server`] puts the host on the
//! control socket.

pub mod baselines;
pub mod book;
pub mod commit;
pub mod committer;
pub mod crew;
pub mod desk;
pub mod flows;
mod functions;
pub mod host;
pub mod metrics;
pub mod names;
pub mod notice;
pub mod ports;
pub mod record;
pub mod request;
pub mod resolver;
pub mod routes;
pub mod rule_check;
pub mod rule_error;
mod rule_id;
pub mod segment;
pub mod server;
mod server_flows;
mod server_rules;
pub mod steward;
pub mod store;
pub mod tables;
pub mod tunnels;
mod view;

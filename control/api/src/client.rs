//! The client: one connection over the control socket, and the services on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::MAX_MESSAGE_BYTES;
use crate::v1::flows_client::FlowsClient;
use crate::v1::ports_client::PortsClient;
use crate::v1::rules_client::RulesClient;
use crate::v1::stats_client::StatsClient;
use crate::v1::traps_client::TrapsClient;
use crate::v1::workers_client::WorkersClient;

/// Where the daemon's control socket is unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/forebay/forebay.sock";

/// The clients of the services, over one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The ports of the host.
    pub ports: PortsClient<Channel>,
    /// The rules of the host.
    pub rules: RulesClient<Channel>,
    /// What the host counts.
    pub stats: StatsClient<Channel>,
    /// What the workers remember of flows.
    pub flows: FlowsClient<Channel>,
    /// The threads that move packets.
    pub workers: WorkersClient<Channel>,
    /// What the host traps.
    pub traps: TrapsClient<Channel>,
}

/// The control socket did not take the connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No daemon listens there.
    #[error(
        "control socket {socket}: {source} (is forebay running? start it with: forebay run --config FILE, or name its \
         socket with --socket)", socket = socket.display()
    )]
    NotRunning {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon may listen there, but not to this user.
    #[error(
        "control socket {socket}: permission denied (run as root, or as a member of the socket's group)",
        socket = socket.display()
    )]
    Denied {
        /// The socket's path.
        socket: PathBuf,
    },
    /// The path cannot be a socket's, or the system is out of something.
    #[error("control socket {socket}: {source} (name the daemon's socket with --socket)", socket = socket.display())]
    Io {
        /// The socket's path.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something listens there, but it does not speak gRPC.
    #[error("control socket {socket}: it does not answer as a forebay daemon does ({source})", socket = socket.display())]
    Protocol {
        /// The socket's path.
        socket: PathBuf,
        /// What the transport said.
        source: tonic::transport::Error,
    },
}

/// Connects to the daemon behind a Unix socket: the clients of its services.
///
/// # Errors
/// As [`channel`].
pub async fn connect(socket: &Path) -> Result<Client, ConnectError> {
    let channel = channel(socket).await?;
    Ok(Client {
        ports: PortsClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        rules: RulesClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        stats: StatsClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        flows: FlowsClient::new(channel.clone()),
        workers: WorkersClient::new(channel.clone()),
        traps: TrapsClient::new(channel),
    })
}

/// Connects to the daemon behind a Unix socket: the channel, for services of other packages. A connection that is lost
/// later is made again by the next call.
///
/// # Errors
/// The socket does not exist, nobody listens on it, or this user may not use it.
pub async fn channel(socket: &Path) -> Result<Channel, ConnectError> {
    // The first connection is made here, so that its error is the system's own; the channel then takes it over.
    let first = UnixStream::connect(socket).await.map_err(|source| refused(socket, source))?;
    let first = Arc::new(Mutex::new(Some(first)));
    let path: Arc<Path> = socket.into();
    let connector = service_fn(move |_| {
        let first = first.lock().take();
        let path = Arc::clone(&path);
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(&path).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // gRPC wants an authority; over a Unix socket nobody reads it.
    Endpoint::from_static("http://forebay")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Protocol { socket: socket.to_owned(), source })
}

fn refused(socket: &Path, source: io::Error) -> ConnectError {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::NotRunning { socket, source }
        }
        io::ErrorKind::PermissionDenied => ConnectError::Denied { socket },
        _ => ConnectError::Io { socket, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_daemon_is_named_with_its_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("none.sock");
        let error = connect(&socket).await.unwrap_err().to_string();
        assert!(error.contains(&socket.display().to_string()), "{error}");
        assert!(error.contains("is forebay running? start it with: forebay run --config FILE"), "{error}");
        // A socket that nobody listens on any more says the same.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(matches!(connect(&socket).await, Err(ConnectError::NotRunning { .. })));
    }

    #[test]
    fn a_denied_user_is_told_so() {
        let error = refused(Path::new("/x.sock"), io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(
            error.to_string(),
            "control socket /x.sock: permission denied (run as root, or as a member of the socket's group)"
        );
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_no_socket() {
        let error = connect(Path::new(&format!("/tmp/{}", "x".repeat(200)))).await.unwrap_err();
        assert!(matches!(error, ConnectError::Io { .. }), "{error}");
    }
}

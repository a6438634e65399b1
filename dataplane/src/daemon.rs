//! `forebay run` and `forebay check`: from the config file to a host that passes traffic, and back down on a signal.

use crate::config::{self, Config, Problems};
use crate::control::allocator::AllocatorThread;
use crate::control::committer::Committer;
use crate::control::host::{Host, HostError};
use crate::control::metrics;
use crate::control::server::Service;
use crate::control::steward::Steward;
use forebay_api::v1;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// The words or the file are wrong.
const EXIT_WRONG: u8 = 2;
/// The control socket: owner and group may use it.
const SOCKET_MODE: u32 = 0o660;
/// What a client may send before it must wait for us: a millisecond or two of a load, and no more than some ten thousand
/// changes of a stream, since what waits here is what a change waits for.
const WINDOW_BYTES: u32 = 1 << 20;
/// The longest HTTP/2 frame that we take: the default of 16 KiB costs 60 frames a message of a load.
const FRAME_BYTES: u32 = 1 << 20;
/// How long open calls may take to end when the host stops.
const CALLS_TIMEOUT: Duration = Duration::from_millis(500);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("control socket {}: {source} (set control.socket to a path that this user can create)", path.display())]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("control socket {}: another forebay answers there (stop it, or set control.socket to another path)", path.display())]
    SocketTaken { path: PathBuf },
    #[error("metrics address {address}: {source} (set control.metrics to a free address)")]
    Metrics { address: std::net::SocketAddr, source: std::io::Error },
    #[error("{what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("control server: {0}")]
    Server(#[from] tonic::transport::Error),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

/// Runs a host in the foreground until SIGTERM or SIGINT. Prints `forebay: ready` on stderr once every port passes traffic.
pub fn run(path: &Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(problems) => return report(&problems, false),
    };
    forebay_pipeline::cores::leave_to_workers(&config.worker_cores());
    let filter = tracing_subscriber::EnvFilter::try_from_env("FOREBAY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says everything that is wrong with a config file; exit status 2 where something is.
pub fn check(path: &Path, json: bool) -> ExitCode {
    match config::load(path) {
        Ok(_) if json => {
            println!("[]");
            ExitCode::SUCCESS
        }
        Ok(config) => {
            let (ports, workers) = (config.ports.len(), config.worker_cores().len());
            println!("{}: good ({ports} ports, {workers} workers)", path.display());
            ExitCode::SUCCESS
        }
        Err(problems) => report(&problems, json),
    }
}

fn report(problems: &Problems, json: bool) -> ExitCode {
    match serde_json::to_string(problems) {
        Ok(text) if json => println!("{text}"),
        _ => eprintln!("{problems}"),
    }
    ExitCode::from(EXIT_WRONG)
}

fn serve(config: &Config) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The control side shares the machine with the workers: two threads keep a long listing from blocking a change.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("control threads"))?;
    runtime.block_on(async {
        // Signals and sockets first: what is wrong with them should not cost a started DPDK.
        let mut terminate = signal(SignalKind::terminate()).map_err(system("signal handler"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signal handler"))?;
        let listener = bind_socket(&config.control.socket).await?;
        let metrics = bind_metrics(config).await?;
        let (host, ends) = tokio::task::block_in_place(|| Host::start(config))?;
        let steward = Steward::start(host.clone(), ends).map_err(system("steward thread"))?;
        let committer = Committer::start(host.clone()).map_err(system("committer thread"))?;
        let allocator = AllocatorThread::start(host.clone()).map_err(system("allocator thread"))?;
        let service = Service::new(host.clone(), committer, config, steward.trapped());
        if let Some(listener) = metrics {
            tokio::spawn(metrics::serve(listener, host.clone()));
        }
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut server = tokio::spawn(serve_control(service, listener, async move {
            // A dropped sender means the same.
            let _ = stopped.await;
        }));
        announce();
        let mut result = Ok(());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = &mut server => result = ended.unwrap_or(Ok(())),
        }
        tracing::info!("stopping");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        // Refused from now on; what is being changed ends first.
        let _ = std::fs::remove_file(&config.control.socket);
        drop(stop);
        if result.is_ok() {
            let _ = tokio::time::timeout(CALLS_TIMEOUT, server).await;
        }
        tokio::task::block_in_place(|| {
            drop(allocator);
            drop(steward);
            host.stop();
        });
        result
    })
}

async fn serve_control(
    service: Service,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    // Both versions of the protocol: tools of some years ago know the older one only.
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(forebay_api::FILE_DESCRIPTOR_SET)
    };
    let (newer, older) = match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(newer), Ok(older)) => (Some(newer), Some(older)),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!("reflection is off: {error}");
            (None, None)
        }
    };
    // The end of a load commits it, so a call that is broken off must not look like one that ended.
    let server = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .layer(forebay_api::server::whole_requests())
        .add_service(v1::ports_server::PortsServer::new(service.clone()))
        .add_service(
            v1::rules_server::RulesServer::new(service.clone())
                .max_decoding_message_size(forebay_api::MAX_MESSAGE_BYTES),
        )
        .add_service(v1::stats_server::StatsServer::new(service.clone()))
        .add_service(v1::flows_server::FlowsServer::new(service.clone()))
        .add_service(v1::workers_server::WorkersServer::new(service.clone()))
        .add_service(v1::traps_server::TrapsServer::new(service))
        .add_optional_service(newer)
        .add_optional_service(older);
    Ok(server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop).await?)
}

/// Binds the control socket. A socket that nobody answers on is a dead daemon's, and is replaced.
async fn bind_socket(path: &Path) -> Result<UnixListener, DaemonError> {
    let error = |source| DaemonError::Socket { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(error)?;
    }
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if UnixStream::connect(path).await.is_ok() {
            return Err(DaemonError::SocketTaken { path: path.to_owned() });
        }
        if metadata.file_type().is_socket() {
            std::fs::remove_file(path).map_err(error)?;
        }
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(error)?;
    Ok(listener)
}

async fn bind_metrics(config: &Config) -> Result<Option<TcpListener>, DaemonError> {
    let Some(address) = config.control.metrics else { return Ok(None) };
    TcpListener::bind(address).await.map(Some).map_err(|source| DaemonError::Metrics { address, source })
}

/// Tells whoever waits that every port passes traffic.
fn announce() {
    // Whoever started us may have closed stderr; that is no reason to stop.
    let _ = writeln!(std::io::stderr(), "forebay: ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

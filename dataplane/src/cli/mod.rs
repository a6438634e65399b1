//! The command line: what the words mean, and which function does them.
//!
//! Exit status: 0 done, 1 it failed, 2 the words or the file are wrong. An error is one line on standard error.

mod bench;
mod change;
mod doctor;
mod failure;
mod flow;
mod generator;
mod lines;
mod load;
mod pacer;
mod pipeline;
mod pipeline_view;
mod port;
mod rule;
mod rule_text;
mod stats;
mod table;
#[cfg(test)]
mod tests;
mod top;
mod vf;
mod worker;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use forebay_api::client::{self, DEFAULT_SOCKET};

use self::failure::Failure;

/// The host dataplane of a multi-tenant cloud.
#[derive(Debug, Parser)]
#[command(name = "forebay", version, arg_required_else_help = true)]
struct Cli {
    /// The control socket of the daemon.
    #[arg(long, global = true, env = "FOREBAY_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Run {
        /// The config file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Show every error of a config file.
    Check {
        /// The config file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        form: Form,
    },
    /// Look at this machine: what stands in the way, and the command that mends it. Needs no daemon.
    Doctor(doctor::DoctorArgs),
    /// Show, create, bind and release SR-IOV virtual functions of this machine.
    #[command(subcommand)]
    Vf(vf::VfCommand),
    /// Run the benchmark harness.
    Bench(Box<forebay_benches::BenchArgs>),
    /// Send packets for the benchmark harness, which starts this itself.
    #[command(name = forebay_benches::GENERATOR_COMMAND, hide = true)]
    BenchGenerator(generator::GeneratorArgs),
    /// Send packets at a rate and measure how long they take, for the benchmark harness, which starts this itself.
    #[command(name = forebay_benches::PACER_COMMAND, hide = true)]
    BenchPacer(pacer::PacerArgs),
    #[command(flatten)]
    Control(Control),
}

/// The commands that speak to the daemon.
#[derive(Debug, Subcommand)]
enum Control {
    /// Load, add, delete and show rules.
    #[command(subcommand)]
    Rule(rule::RuleCommand),
    /// Show, add and remove ports.
    #[command(subcommand)]
    Port(port::PortCommand),
    /// Show the flows that pass.
    #[command(subcommand)]
    Flow(flow::FlowCommand),
    /// Show every counter, with the conservation equation per port and for the host.
    Stats {
        /// Only this port.
        #[arg(long, value_name = "PORT")]
        port: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Show how the workers spend their time.
    #[command(subcommand)]
    Pipeline(pipeline::PipelineCommand),
    /// Watch pipelines, workers, queues and ports live.
    Top(top::TopArgs),
    /// Show, add and remove workers while packets flow.
    #[command(subcommand)]
    Worker(worker::WorkerCommand),
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Args)]
struct Form {
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

/// Where an answer is written to.
type Out<'a> = dyn io::Write + 'a;

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return wrong_words(&error),
    };
    match cli.command {
        Command::Run { config } => forebay_dataplane::daemon::run(&config),
        Command::Check { config, form } => forebay_dataplane::daemon::check(&config, form.json),
        Command::Doctor(args) => doctor::main(&args),
        Command::Vf(command) => vf::main(command),
        Command::Bench(args) => forebay_benches::run(*args, bench::make_feed),
        Command::BenchGenerator(args) => generator::main(&args),
        Command::BenchPacer(args) => pacer::main(&args),
        Command::Control(command) => control(&cli.socket, command),
    }
}

/// Help and versions are answers; the rest becomes one line.
fn wrong_words(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => {
            eprintln!("forebay: {}", one_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}

/// What clap says above its usage, in one line.
fn one_line(text: &str) -> String {
    let said =
        text.split("Usage:").next().unwrap_or(text).split("For more information").next().unwrap_or(text);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let paragraphs = said.split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ")
    });
    let paragraphs: Vec<String> = paragraphs.filter(|paragraph| !paragraph.is_empty()).collect();
    format!("{} (see: forebay --help)", paragraphs.join("; "))
}

fn control(socket: &Path, command: Control) -> ExitCode {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::Runtime)
        .and_then(|runtime| {
            let mut out = io::BufWriter::new(io::stdout().lock());
            runtime.block_on(execute(socket, command, &mut out))?;
            Ok(out.flush()?)
        });
    status_of(done)
}

/// The exit status of a command; why it was not done goes to standard error.
fn status_of(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough, as in `forebay rule list | head`.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("forebay: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

/// Does one command against the daemon behind `socket`.
async fn execute(socket: &Path, command: Control, out: &mut Out<'_>) -> Result<(), Failure> {
    match command {
        Control::Rule(command) => rule::execute(socket, command, out).await,
        Control::Port(command) => port::execute(socket, command, out).await,
        Control::Flow(command) => flow::execute(client::connect(socket).await?, command, out).await,
        Control::Stats { port, form } => {
            let client = client::connect(socket).await?;
            stats::show(client, port.unwrap_or_default(), form, out).await
        }
        Control::Pipeline(command) => {
            let client = client::connect(socket).await?;
            pipeline::execute(client, command, out).await
        }
        Control::Top(args) => top::execute(socket, args, out).await,
        Control::Worker(command) => worker::execute(client::connect(socket).await?, command, out).await,
    }
}

/// Writes a value as one line of JSON.
fn write_json(out: &mut Out<'_>, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

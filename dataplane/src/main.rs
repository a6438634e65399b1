//! The `forebay` binary: the daemon, and the commands that speak to it over the control socket.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}

//! The config file: from text to checked values, or to everything that is wrong with it.
//!
//! A file is read whole: every error is reported at once, each with line, key, value and remedy. What comes out is
//! typed and valid, so that nothing behind this module validates again. Ports from the control socket pass the same
//! checks. `docs/configuration.md` tells users each key with its type, default and limits.

mod cores;
mod device;
mod document;
mod model;
mod neighbors;
mod object;
mod pipeline;
mod pipelines;
mod port;
mod problem;
mod reader;
mod siblings;
mod spec;
mod suggest;
#[cfg(test)]
mod tests;
mod value;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use cores::Machine;

pub use model::{
    Config, Control, Device, Dpdk, Host, Hugepages, Idle, Ipv4Interface, Ipv6Interface, Layout,
    MAIN_PIPELINE, PathStage, Pipeline, Port, PortKind, StageGroup, Traps, Uplink, Vf, WhenFull, Workers,
};
pub use problem::{Problem, Problems};
pub use spec::{port_beside, port_from_spec, port_to_spec};

/// The largest config file: 8192 ports of 1 KiB, twice. More is another file, or one that never ends.
const FILE_MAX_BYTES: u64 = 16 << 20;

/// Reads and checks a config file, against this machine: its cores must be online here.
///
/// # Errors
/// The file cannot be read, or everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = read(path).map_err(|problems| problems.in_file(path))?;
    parse(&text).map_err(|problems| problems.in_file(path))
}

/// Checks the text of a config file, against this machine: its cores must be online here.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Config, Problems> {
    document::read(text, &Machine::this())
}

fn read(path: &Path) -> Result<String, Problems> {
    let fail = |line, problem: String, remedy| Problems::new(vec![Problem::of_file(line, problem, remedy)]);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(
        |error| {
            let remedy = "name a config file that exists and that you may read: --config FILE";
            fail(None, format!("cannot read it: {error}"), remedy)
        },
    )?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        let problem = format!("larger than {} MiB, which no config file is", FILE_MAX_BYTES >> 20);
        return Err(fail(None, problem, "name a config file: --config FILE"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
        fail(Some(line), "not UTF-8 text".to_string(), "save the file as UTF-8")
    })
}

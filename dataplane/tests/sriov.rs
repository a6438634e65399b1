//! Virtual functions: `tests/sriov/run.py` in the guest with emulated SR-IOV hardware of `scripts/sriov-guest`.
//!
//! Where that guest cannot be had the test passes, and says why in the file that `FOREBAY_TEST_SKIPS` names.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::{Command, Stdio};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const GUEST: &str = "scripts/sriov-guest";

/// Several times what it takes on two busy cores.
const LIMIT_SECONDS: &str = "330";

fn guest() -> Command {
    let mut guest = Command::new(GUEST);
    guest.current_dir(WORKSPACE).stdin(Stdio::null());
    guest
}

/// Why there is no guest, or none.
fn obstacle() -> Option<String> {
    match guest().arg("--fetch").output() {
        Ok(done) if done.status.success() => None,
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            Some(said.lines().last().unwrap_or("no reason given").to_owned())
        }
        Err(error) => Some(format!("{GUEST}: {error}")),
    }
}

#[test]
fn two_hosts_on_virtual_functions() {
    if let Some(reason) = obstacle() {
        println!("skipped: {reason}");
        if let Some(path) = std::env::var_os("FOREBAY_TEST_SKIPS") {
            let mut skips = OpenOptions::new().append(true).create(true).open(path).unwrap();
            writeln!(skips, "sriov: {reason}").unwrap();
        }
        return;
    }
    let forebay = env!("CARGO_BIN_EXE_forebay");
    let words = ["--limit", LIMIT_SECONDS, "python3", "dataplane/tests/sriov/run.py", "--forebay", forebay];
    let status = guest().args(words).status().unwrap();
    assert!(status.success(), "{GUEST} {}: {status}", words.join(" "));
}

//! Real daemons in network namespaces against kernels and scapy: one test for each scenario of `tests/interop/run.py`.
//!
//! The scenarios are Python, because scapy is the oracle; they run here so that the same command runs every test.
//! A scenario that cannot run on this machine passes, and says why; `run.py` notes it in the file that
//! `FOREBAY_TEST_SKIPS` names.

use std::process::{Command, Stdio};

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const RUNNER: &str = "dataplane/tests/interop/run.py";

/// The runner's exit status where the machine lacks something.
const SKIPPED: i32 = 77;

/// Runs one scenario; its output goes where the test's own goes, so that it is there even if the test is ended.
fn run(scenario: &str) {
    let status = Command::new("python3")
        .args([RUNNER, scenario, "--forebay", env!("CARGO_BIN_EXE_forebay")])
        .current_dir(WORKSPACE)
        .stdin(Stdio::null())
        .status();
    let code = status.as_ref().ok().and_then(std::process::ExitStatus::code);
    if code == Some(SKIPPED) {
        println!("{scenario}: skipped, see above");
        return;
    }
    assert!(code == Some(0), "{scenario}: {RUNNER} ended with {status:?}");
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const SCENARIOS: &[&str] = &[$(stringify!($name)),*];

        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
    };
}

scenarios! {
    hostile
    isolation
    kernel_vxlan_v4
    kernel_vxlan_v6
    kill9_rules
    layouts
    mtu
    neighbours
    path_mtu
    restart
    scapy_diff
    two_hosts_v4
    two_hosts_v6
    vhost_guest
    vlan_ports
    workers_move
}

#[test]
fn every_scenario_has_a_test() {
    let listed = Command::new("python3").args([RUNNER, "--list"]).current_dir(WORKSPACE).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().collect::<Vec<_>>(), SCENARIOS);
}

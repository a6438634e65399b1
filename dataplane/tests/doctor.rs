//! `forebay doctor` as a process: what it prints of this machine, and which exit status follows.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn doctor(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay")).arg("doctor").args(words).output().unwrap()
}

fn report(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The findings of a report that failed.
fn failed(report: &serde_json::Value) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().unwrap();
    let failed = findings.iter().filter(|finding| finding["level"] == "fail");
    failed.map(|finding| (text(&finding["name"]), text(&finding["object"]))).collect()
}

#[test]
fn the_exit_status_says_whether_something_failed() {
    let output = doctor(&["--json"]);
    let failures = failed(&report(&output)).len();
    assert_eq!(report(&output)["failed"].as_u64(), Some(failures as u64));
    assert_eq!(output.status.code(), Some(i32::from(failures > 0)));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("host.toml");
    let config =
        "[[port]]\nname = 'up'\nkind = 'uplink'\ndevice = 'pci:ffff:ff:1f.7'\nipv4 = '192.0.2.1/24'\n";
    std::fs::write(&file, config).unwrap();
    let words = ["--config", file.to_str().unwrap()];
    let output = doctor(&[&words[..], &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(failed(&report(&output)).contains(&("port_device".into(), "up".into())));
    let output = doctor(&words);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("ffff:ff:1f.7: no such PCI function\n      -> see: lspci"), "{text}");

    std::fs::write(&file, "[[port]]\nname = 'up'\n").unwrap();
    let output = doctor(&words);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("host.toml") && text.contains("kind"), "{text}");
    assert_eq!(doctor(&["--confg", "x"]).status.code(), Some(2));
}

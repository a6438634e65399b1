//! The benchmark harness in its shortest form: it starts daemons, and its figures have the promised names. What they are
//! decides nothing here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use serde_json::Value;

fn bench(words: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .arg("bench")
        .args(words.split_whitespace())
        .args(["--seconds", "0.2", "--runs", "1", "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bench {words}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn assert_numbers(json: &Value, keys: &[&str]) {
    for key in keys {
        assert!(json[key].is_number(), "{key} is not a number in {json}");
    }
}

#[test]
fn encap_counts_every_packet() {
    let json = bench("encap --flows 100 --rules 10 --imix --random");
    assert_numbers(&json, &["packets_per_second", "path_cycles_per_packet", "io_cycles_per_packet"]);
    assert_numbers(&json["latency_ns"], &["p50", "p99", "p999", "max"]);
    assert_eq!((&json["lost_packets"], &json["imix"]), (&Value::from(0), &Value::from(true)));
    assert!(
        json.as_object().unwrap().contains_key("instructions_per_packet"),
        "null where nothing counts them"
    );
}

#[test]
fn jumbo_frames_and_tunnels_over_ipv6_lose_nothing() {
    let json = bench("decap --flows 20 --rules 20 --tunnels 5 --size 9000 --ipv6 --underlay ipv6");
    assert_eq!((&json["lost_packets"], &json["size_bytes"]), (&Value::from(0), &Value::from(9000)));
    assert_eq!((&json["tunnels"], &json["underlay"]), (&Value::from(5), &Value::from("ipv6")));
}

#[test]
fn changes_of_rules_lose_no_packet() {
    let json = bench("update --rules 1000 --flows 100 --ports 7 --changes-per-second 20");
    assert_numbers(&json, &["changes_per_second", "load_seconds", "table_bytes", "worst_burst_ns"]);
    assert_numbers(&json, &["stream_changes_per_second", "worst_burst_ns_streaming", "load_peak_bytes"]);
    assert_eq!((&json["ports"], &json["tunnels"]), (&Value::from(7), &Value::from(1000)));
    for lost in ["lost_packets_idle", "lost_packets_replacing", "lost_packets", "lost_packets_streaming"] {
        assert_eq!(json[lost], 0, "{json}");
    }
    assert!(json["changes_per_second"].as_u64().unwrap() > 0, "{json}");
}

#[test]
fn a_worker_is_fed_from_memory() {
    let json = bench("decap --feed memory --flows 100 --rules 10 --size 200");
    assert_numbers(&json, &["path_cycles_per_packet", "io_cycles_per_packet", "round_cycles_per_packet"]);
    assert_numbers(&json["stages"], &["receive", "admit", "classify", "transform", "dispatch", "transmit"]);
    assert_eq!((&json["feed"], &json["size_bytes"]), (&Value::from("memory"), &Value::from(200)));
}

#[test]
fn another_process_sends_and_nothing_is_lost() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: the packet generator needs a core of its own");
        return;
    }
    let json = bench("encap --feed memif --flows 100 --rules 10 --imix");
    assert_numbers(&json, &["packets_per_second", "path_cycles_per_packet", "packets_per_call"]);
    assert_eq!((&json["lost_packets"], &json["feed"]), (&Value::from(0), &Value::from("memif")));
}

#[test]
fn idle_workers_lose_nothing_under_any_policy() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: the process that paces needs a core of its own");
        return;
    }
    let json = bench("idle --no-ovs --policy last-packet,interrupt,sleep:30 --pps 2000 --burst 8");
    let policies = json["policies"].as_array().unwrap();
    let names: Vec<_> = policies.iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["busy-poll", "last-packet", "interrupt", "sleep:30"]);
    for policy in policies {
        assert_numbers(policy, &["cpu_percent", "added_p99_ns", "packets_per_second"]);
        assert_numbers(policy, &["path_cycles_per_packet", "io_cycles_per_packet", "unjudged_packets"]);
        assert_numbers(&policy["stages"], &["receive", "recall", "transmit"]);
        assert_numbers(&policy["latency_ns"], &["p50", "p99", "p999", "max"]);
        assert_eq!(policy["lost_packets"], 0, "{policy}");
        assert!(policy["packets_per_second"].as_u64().unwrap() > 0, "{policy}");
    }
}

#[test]
fn loads_of_idle_workers_are_measured_by_one_command() {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: the process that paces needs a core of its own");
        return;
    }
    let json = bench("idle --no-ovs --policy last-packet --loads none,10k,saturation");
    let loads = json["loads"].as_array().unwrap();
    let names: Vec<_> = loads.iter().map(|load| load["load"].as_str().unwrap()).collect();
    assert_eq!(names, ["none", "10k", "saturation"]);
    assert_eq!(loads[0]["policies"][1]["packets_per_second"], 0, "{json}");
    for (load, goals) in loads.iter().zip([1, 3, 1]) {
        let last_packet = &load["policies"][1];
        assert_eq!(last_packet["policy"], "last-packet");
        assert_eq!(last_packet["goals"].as_array().unwrap().len(), goals, "{last_packet}");
    }
    assert_eq!(json["ovs_missing"], "left out by --no-ovs");
}

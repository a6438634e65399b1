//! Tests of whole files: lines, texts, and that everything wrong is said at once.

mod pipelines;
mod ports;
mod robustness;

use super::cores::Machine;
use super::*;

/// The example that users see first.
const EXAMPLE: &str = r#"[host]
name  = "host-a"
state = "/var/lib/forebay"            # rules survive a restart here; created if missing

[control]
socket  = "/run/forebay/forebay.sock" # mode 0660
metrics = "127.0.0.1:9464"            # Prometheus, optional

[dpdk]
hugepages  = "auto"                   # auto | required | off
memory_mib = 512

[[port]]
name   = "uplink0"
kind   = "uplink"
device = "af_packet:und0"
ipv4   = "192.0.2.1/24"
ipv6   = "2001:db8::1/64"
gateway = "192.0.2.254"               # optional
mtu    = 1600                         # optional, default 1500

[[port]]
name   = "vm1"
kind   = "vf"
device = "tap:vm1"
mac    = "02:00:00:00:01:01"
ip     = ["10.1.0.1", "fd00:1::1"]
gateway_mac = "02:00:00:00:00:fe"
trap   = ["dhcp"]

[workers]
cores  = "1-3"
layout = "fused"
idle   = "last-packet"
max_added_latency_us = 50
flow_cache_entries = 65536
"#;

fn read(text: &str) -> Result<Config, Problems> {
    document::read(text, &Machine { cores: vec![0, 1, 2, 3], host_name: "kernel-name".into() })
}

/// The lines of the report.
fn report(text: &str) -> Vec<String> {
    match read(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.to_string().lines().map(str::to_string).collect(),
    }
}

/// A tenant's port with further lines, of which the first is line 7.
fn vf(more: &str) -> String {
    format!(
        "[[port]]\nname = 'vm1'\nkind = 'vf'\ndevice = 'tap:vm1'\nmac = '02:00:00:00:01:01'\nip = ['10.1.0.1']\n{more}\n"
    )
}

#[test]
fn the_example_is_read() {
    let config = read(EXAMPLE).unwrap();
    assert_eq!(config.host, Host { name: "host-a".into(), state: "/var/lib/forebay".into() });
    assert_eq!(config.control.socket.to_str(), Some("/run/forebay/forebay.sock"));
    assert_eq!(config.control.metrics, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(config.dpdk, Dpdk { hugepages: Hugepages::Auto, memory_mib: 512 });
    let workers = Workers {
        cores: vec![1, 2, 3],
        layout: Layout::Fused,
        idle: Idle::LastPacket,
        max_added_latency_us: 50,
        flow_cache_entries: 65_536,
    };
    assert_eq!(config.workers, workers);
    let uplink = Uplink {
        ipv4: Some(Ipv4Interface { addr: "192.0.2.1".parse().unwrap(), prefix_len: 24 }),
        ipv6: Some(Ipv6Interface { addr: "2001:db8::1".parse().unwrap(), prefix_len: 64 }),
        gateway4: Some("192.0.2.254".parse().unwrap()),
        gateway6: None,
        neighbors: Vec::new(),
    };
    let vf = Vf {
        ip: vec!["10.1.0.1/32".parse().unwrap(), "fd00:1::1/128".parse().unwrap()],
        gateway_mac: Some("02:00:00:00:00:fe".parse().unwrap()),
        traps: Traps { dhcp: true, ..Traps::default() },
    };
    let uplink0 = Port {
        name: "uplink0".into(),
        device: Device::Dpdk("af_packet:und0".into()),
        mtu: 1600,
        mac: None,
        kind: PortKind::Uplink(uplink),
    };
    let vm1 = Port {
        name: "vm1".into(),
        device: Device::Dpdk("tap:vm1".into()),
        mtu: 1500,
        mac: Some("02:00:00:00:01:01".parse().unwrap()),
        kind: PortKind::Vf(vf),
    };
    assert_eq!(config.ports, [uplink0, vm1]);
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.host, Host { name: "kernel-name".into(), state: "/var/lib/forebay".into() });
    assert_eq!(config.control.socket.to_str(), Some("/run/forebay/forebay.sock"));
    assert_eq!(config.control.metrics, None);
    assert_eq!(config.dpdk, Dpdk { hugepages: Hugepages::Auto, memory_mib: 512 });
    assert_eq!(config.ports, []);
    assert_eq!(config.workers.cores, [1, 2, 3]);
    assert_eq!((config.workers.layout, config.workers.idle), (Layout::Fused, Idle::LastPacket));
    assert_eq!(config.workers.max_added_latency_us, 50);
    assert_eq!(config.workers.flow_cache_entries, 262_144);
    let [main] = &config.pipelines[..] else { panic!("{:?}", config.pipelines) };
    assert_eq!((main.name.as_str(), main.priority, main.min_cores), ("main", 0, 1));
    assert_eq!((&main.ports, main.memory_mib), (&None, None));
    let group = StageGroup {
        stages: PathStage::PATH.to_vec(),
        cores: vec![1, 2, 3],
        when_full: WhenFull::Drop,
        ring_packets: 1024,
    };
    assert_eq!(main.groups, [group]);
    assert_eq!(config.worker_cores(), [1, 2, 3]);
}

/// Every example of the documentation is a file that this module takes.
#[test]
fn the_examples_of_the_documentation_are_read() {
    let page = include_str!("../../../../docs/configuration.md");
    let examples: Vec<&str> = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(block, _)| block))
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        assert_eq!(report(example), Vec::<String>::new(), "{example}");
    }
}

#[test]
fn everything_wrong_is_reported_at_once_in_the_order_of_lines() {
    let text = "[host]\nname = 'a b'\ncolour = 1\n[dpdk]\nmemory_mib = 5\n[[port]]\nname = 'vm1'\nkind = 'vf'\n\
                device = 'tap:vm1'\nmac = '02:00:00:00:01'\nip = [\n  '10.1.0.1',\n  '10.1.0.1/24',\n]\n\
                [workers]\ncores = '1-9'\nlayout = 'fuse'\n";
    assert_eq!(
        report(text),
        [
            "line 2: host: name = \"a b\": not a host name (write 1 to 253 letters, digits, dots, underscores and \
             hyphens, the first a letter or digit)",
            "line 3: host: colour: unknown key (allowed here: name, state)",
            "line 5: dpdk: memory_mib = 5: too small (write 64 to 1048576 MiB)",
            "line 10: port \"vm1\": mac = \"02:00:00:00:01\": not a MAC address (write six bytes in hex, such as \
             02:00:00:00:01:01)",
            "line 13: port \"vm1\": ip[1] = \"10.1.0.1/24\": bits are set behind the prefix length (write 10.1.0.0/24 \
             for the prefix, or 10.1.0.1 for the address)",
            "line 16: workers: cores = \"1-9\": this machine has no core 9 (online here: 0-3)",
            "line 17: workers: layout = \"fuse\": unknown value (did you mean fused?)",
        ]
    );
    let json = serde_json::to_value(read(text).unwrap_err()).unwrap();
    assert_eq!(json[3]["key"], "port[0].mac");
    assert_eq!(json[3]["line"], 10);
    assert_eq!(json[4]["value"], "10.1.0.1/24");
    assert_eq!(json[1]["value"], serde_json::Value::Null);
}

#[test]
fn wrong_types_say_what_was_expected() {
    for (text, expected) in [
        (
            "host = 5",
            "line 1: host = 5: expected a table, found a whole number (write [host] and its keys below it)",
        ),
        (
            "[port]",
            "line 1: port = [port]: expected a list of tables, found a table (write [[port]] and its keys below it)",
        ),
        (
            "port = [1]",
            "line 1: port[0] = 1: expected a table, found a whole number (write [[port]] and its keys below it)",
        ),
        (
            "[host]\nname = true",
            "line 2: host: name = true: expected a string, found true or false (put it in double quotes)",
        ),
        (
            "[workers]\ncores = [1, 2]",
            "line 2: workers: cores = [1, 2]: expected a string, found a list (put it in double quotes)",
        ),
        (
            "[dpdk]\nmemory_mib = '512'",
            "line 2: dpdk: memory_mib = '512': expected a whole number, found a string (write it in digits, without quotes)",
        ),
        (
            "[dpdk]\nmemory_mib = 1.5",
            "line 2: dpdk: memory_mib = 1.5: expected a whole number, found a number with a fraction (write it in digits, without quotes)",
        ),
        (
            &vf("trap = 'dhcp'"),
            "line 7: port \"vm1\": trap = 'dhcp': expected a list of strings, found a string (write [\"…\", \"…\"])",
        ),
        (
            &vf("trap = ['dhcp',\n 1979-05-27]"),
            "line 8: port \"vm1\": trap[1] = 1979-05-27: expected a string, found a date or time (put it in double quotes)",
        ),
        (
            &ports::uplink("gateway = 1"),
            "line 6: port \"up\": gateway = 1: expected a string, found a whole number (put it in double quotes)",
        ),
    ] {
        assert_eq!(report(text), [expected], "{text}");
    }
}

#[test]
fn values_of_tables_are_checked() {
    for (text, expected) in [
        (
            "[host]\nstate = 'state'",
            "line 2: host: state = \"state\": not an absolute path (write a path that begins with /)",
        ),
        (
            "[control]\nsocket = 'x'",
            "line 2: control: socket = \"x\": not an absolute path (write a path that begins with /)",
        ),
        (
            "[control]\nmetrics = 'localhost:9464'",
            "line 2: control: metrics = \"localhost:9464\": not an address with a port (write 127.0.0.1:9464 or [::1]:9464, without a host name)",
        ),
        (
            "[dpdk]\nhugepages = 'yes'",
            "line 2: dpdk: hugepages = \"yes\": unknown value (allowed here: auto, required, off)",
        ),
        (
            "[dpdk]\nmemory_mib = 1048577",
            "line 2: dpdk: memory_mib = 1048577: too large (write 64 to 1048576 MiB)",
        ),
        (
            "[workers]\nidle = 'busy_poll'",
            "line 2: workers: idle = \"busy_poll\": unknown value (did you mean busy-poll?)",
        ),
        (
            "[workers]\nidle = 'sleep:ten'",
            "line 2: workers: idle = \"sleep:ten\": not a time (write sleep: and a number of microseconds, such as sleep:100)",
        ),
        (
            "[workers]\nidle = 'sleep:0'",
            "line 2: workers: idle = \"sleep:0\": too small (write 1 to 10000 µs)",
        ),
        (
            "[workers]\nmax_added_latency_us = 0",
            "line 2: workers: max_added_latency_us = 0: too small (write 1 to 10000 µs)",
        ),
        (
            "[workers]\nflow_cache_entries = 63",
            "line 2: workers: flow_cache_entries = 63: too small (write 64 to 16777216 flows)",
        ),
        (
            "[workers]\nmax_added_latency_us = 10001",
            "line 2: workers: max_added_latency_us = 10001: too large (write 1 to 10000 µs)",
        ),
        (
            "[workers]\nlayout = 'split'\ncores = '2'",
            "line 2: workers: layout = \"split\": needs two cores, and there is only core 2 (name two or more of 0-3 in cores, or write \"fused\")",
        ),
    ] {
        assert_eq!(report(text), [expected], "{text}");
    }
    let long = format!("[control]\nsocket = '/{}'", "x".repeat(107));
    assert!(
        report(&long)[0]
            .ends_with("108 bytes, too long for a Unix socket (write a path of at most 107 bytes)")
    );
}

#[test]
fn split_fits_the_machine() {
    let config = read("[workers]\nlayout = 'split'").unwrap();
    assert_eq!(config.layout_name(), "split");
    let [front, back] = &config.pipelines[0].groups[..] else { panic!("{:?}", config.pipelines) };
    assert_eq!((&front.stages[..], &front.cores[..]), (&PathStage::PATH[..2], &[1][..]));
    assert_eq!((&back.stages[..], &back.cores[..]), (&PathStage::PATH[2..], &[2, 3][..]));
    assert_eq!((config.workers.layout, config.workers.cores), (Layout::Split, vec![1, 2, 3]));
    let one = Machine { cores: vec![0], host_name: "a".into() };
    assert_eq!(document::read("", &one).unwrap().workers.cores, [0]);
    let problems = document::read("[workers]\nlayout = 'split'", &one).unwrap_err();
    assert!(problems.to_string().ends_with("(this machine has one core: write \"fused\")"), "{problems}");
}

#[test]
fn a_host_name_that_cannot_serve_is_asked_for() {
    let machine = Machine { cores: vec![0], host_name: "a b".into() };
    let problems = document::read("", &machine).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "host: name: missing (the kernel's host name \"a b\" cannot serve: write a name)"
    );
    assert!(document::read("[host]\nname = 'a'", &machine).is_ok());
}

#[test]
fn unknown_keys_are_listed_or_guessed() {
    assert_eq!(
        report("[hots]\n[control]\nsockets = '/s'\n'a b' = 1\n"),
        [
            "line 1: hots: unknown key (did you mean host?)",
            "line 3: control: sockets: unknown key (did you mean socket?)",
            "line 4: control: \"a b\": unknown key (allowed here: socket, metrics)",
        ]
    );
    assert_eq!(
        report(&vf("gatway_mac = 1")),
        ["line 7: port \"vm1\": gatway_mac: unknown key (did you mean gateway_mac?)"]
    );
    assert_eq!(
        report(&ports::uplink("neighbours = []")),
        ["line 6: port \"up\": neighbours: unknown key (did you mean neighbors?)"]
    );
}

#[test]
fn syntax_errors_have_lines_and_hide_no_wrong_value() {
    let text =
        "[host]\nname = \"a\nstate = 'x'\n[[port]\nname = 'b'\n[dpdk]\nmemory_mib = 1\nmemory_mib = 2\n";
    assert_eq!(
        report(text),
        [
            "line 2: not TOML: invalid basic string, expected `\"` (correct the line)",
            "line 3: host: state = \"x\": not an absolute path (write a path that begins with /)",
            "line 4: not TOML: unclosed array table, expected `]` (correct the line)",
            "line 8: not TOML: duplicate key (correct the line)",
        ]
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    let report = |path: &Path| load(path).unwrap_err().to_string();
    assert_eq!(
        report(&path),
        format!(
            "{}: cannot read it: No such file or directory (os error 2) \
             (name a config file that exists and that you may read: --config FILE)",
            path.display()
        )
    );
    assert!(report(folder.path()).contains("cannot read it: Is a directory"));
    assert!(report(Path::new("/dev/zero")).contains("larger than 16 MiB"));
    std::fs::write(&path, b"[host]\nname = '\xff'\n").unwrap();
    assert_eq!(report(&path), format!("{}:2: not UTF-8 text (save the file as UTF-8)", path.display()));
    std::fs::write(&path, "[host]\nstate = 'x'\n").unwrap();
    assert_eq!(
        report(&path),
        format!(
            "{}:2: host: state = \"x\": not an absolute path (write a path that begins with /)",
            path.display()
        )
    );
    std::fs::write(&path, "[host]\nname = 'host-b'\n").unwrap();
    assert_eq!(load(&path).unwrap().host.name, "host-b");
}

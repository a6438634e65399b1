//! Property tests: no text makes the module panic, whatever it accepts is stable.

use proptest::prelude::*;

use super::super::*;
use super::read;

/// A line that is likely to reach the checks: a known key with a value of any type.
fn line() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "name",
        "kind",
        "device",
        "mtu",
        "mac",
        "ipv4",
        "ipv6",
        "gateway",
        "neighbors",
        "ip",
        "gateway_mac",
        "trap",
        "cores",
        "layout",
        "idle",
        "max_added_latency_us",
        "flow_cache_entries",
        "socket",
        "metrics",
        "state",
        "hugepages",
        "memory_mib",
        "port",
        "host",
        "pipeline",
        "stage",
        "priority",
        "ports",
        "min_cores",
        "run",
        "when_full",
        "ring_packets",
    ]);
    let value = prop_oneof![
        "'[-a-z0-9:/., ]{0,24}'",
        "'(vf|uplink|vlan:a/[0-9]{1,5}|tap:[a-z]{0,17}|pci:[0-9a-f:.]{0,14}|[0-9]{1,20}-[0-9]{1,20})'",
        "'([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,3})?'",
        "'[0-9a-f]{0,4}(:[0-9a-f]{0,4}){1,8}(/[0-9]{1,3})?'",
        "-?[0-9]{1,25}",
        "\\[('[a-z0-9.:/]{0,16}', ?){0,4}\\]",
        "\\[('[0-9a-f.:]{2,12}=0[0-3](:[0-9a-f]{2}){5}', ?){0,4}\\]",
        "\\[('(receive|classify|transform|a)', ?){0,4}\\]",
        "'[0-3](-[0-3])?'|[0-9]{1,4}|'(drop|wait)'",
        "\\{.{0,10}\\}|true|0x[0-9a-f]{1,20}",
    ];
    prop_oneof![
        1 => prop::sample::select(vec!["[host]", "[control]", "[dpdk]", "[[port]]", "[workers]", "[port]", "[[pipeline]]", "[[pipeline.stage]]"]).prop_map(String::from),
        5 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => "\\PC{0,20}",
    ]
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = read(&text).map_err(|problems| problems.to_string());
    }

    #[test]
    fn likely_text_never_panics_and_reports_lines_that_exist(lines in prop::collection::vec(line(), 0..30)) {
        let text = lines.join("\n");
        if let Err(problems) = read(&text) {
            prop_assert!(!problems.as_slice().is_empty());
            prop_assert_eq!(problems.to_string().lines().count(), problems.as_slice().len());
            for problem in problems.as_slice() {
                prop_assert!(problem.line.is_none_or(|line| (1..=lines.len().max(1)).contains(&line)));
                prop_assert!(!problem.problem.is_empty() && !problem.remedy.is_empty());
            }
        }
    }

    #[test]
    fn accepted_pipelines_share_no_core(
        shared in "[0-3](,[0-3])?|0-3", named in prop::collection::vec(prop::option::of("[0-3]"), 1..5),
    ) {
        let mut text = format!("[workers]\ncores = '{shared}'\n");
        for (i, cores) in named.iter().enumerate() {
            let cores = cores.as_ref().map_or(String::new(), |core| format!("cores = '{core}'\n"));
            let ports = if i == 0 { String::new() } else { format!("ports = ['p{i}']\n") };
            let port = format!("[[port]]\nname = 'p{i}'\nkind = 'uplink'\ndevice = 'null:'\nipv4 = '192.0.2.1/24'\n");
            text += &format!("{port}[[pipeline]]\nname = 'p{i}'\n{cores}{ports}");
        }
        if let Ok(config) = read(&text) {
            let cores = config.worker_cores();
            prop_assert!(cores.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", cores);
            prop_assert_eq!(config.pipelines.len(), named.len());
            prop_assert!(config.pipelines.iter().all(|pipeline| pipeline.cores().next().is_some()));
            let counts = config.pipelines.iter().zip(&named).filter(|(_, named)| named.is_none());
            let counts: Vec<usize> = counts.map(|(pipeline, _)| pipeline.cores().count()).collect();
            prop_assert!(counts.is_sorted_by(|a, b| a >= b) && counts.first() <= counts.last().map(|n| n + 1).as_ref());
        }
    }

    #[test]
    fn an_accepted_port_survives_the_way_through_its_specification(
        ip in prop::collection::btree_set(any::<u32>(), 1..5), mtu in 576u16..=9600, traps in 0usize..16,
    ) {
        let ip: Vec<String> = ip.into_iter().map(|bits| {
            let addr = std::net::Ipv4Addr::from(0x0a00_0000 | (bits & 0x00ff_ffff));
            format!("{addr}")
        }).collect();
        let trap = Traps::NAMES.iter().enumerate().filter(|(i, _)| traps >> i & 1 == 1).map(|(_, name)| name.to_string());
        let spec = forebay_api::v1::PortSpec {
            name: "vm1".into(),
            kind: forebay_api::v1::PortKind::Vf.into(),
            device: "null:".into(),
            mac: "02:00:00:00:01:01".into(),
            mtu: u32::from(mtu),
            ip: ip.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect(),
            trap: trap.collect(),
            ..Default::default()
        };
        let port = port_from_spec(&spec).unwrap();
        prop_assert_eq!(port_from_spec(&port_to_spec(&port)).unwrap(), port);
    }
}

//! Tests of `[[pipeline]]`: what is read, how cores are shared, and each thing that can be wrong.

use super::*;

/// Two ports with devices, and one behind a VLAN tag: 13 lines.
const PORTS: &str = "[[port]]\nname = 'up'\nkind = 'uplink'\ndevice = 'null:'\nipv4 = '192.0.2.1/24'\n\
                     [[port]]\nname = 'vm1'\nkind = 'vf'\ndevice = 'null:'\nmac = '02:00:00:00:01:01'\nip = ['10.1.0.1']\n\
                     [[port]]\nname = 'vm7'\nkind = 'vf'\ndevice = 'vlan:vm1/7'\nmac = '02:00:00:00:01:07'\nip = ['10.1.7.1']\n";

/// The three ports, and further lines, of which the first is line 1.
fn with_ports(lines: &str) -> String {
    format!("{lines}\n{PORTS}")
}

fn stage(run: &str, cores: &str) -> String {
    format!("[[pipeline.stage]]\nrun = [{run}]\ncores = '{cores}'\n")
}

/// Name and cores of each.
fn cores(text: &str) -> Vec<(String, Vec<usize>)> {
    let config = read(text).unwrap();
    config.pipelines.iter().map(|pipeline| (pipeline.name.clone(), pipeline.cores().collect())).collect()
}

#[test]
fn every_key_is_read() {
    let text = with_ports(
        "[workers]\ncores = '0,3'\n[[pipeline]]\nname = 'gold'\npriority = 10\nports = ['vm1', 'up']\nmin_cores = 2\n\
         memory_mib = 64\n[[pipeline.stage]]\nrun = ['receive']\ncores = '1'\n[[pipeline.stage]]\n\
         run = ['classify', 'transform']\ncores = '2-3'\nwhen_full = 'wait'\nring_packets = 4096\n\
         [[pipeline]]\nname = 'rest'",
    );
    let group = |stages: &[PathStage], cores: &[usize], when_full, ring_packets| StageGroup {
        stages: stages.to_vec(),
        cores: cores.to_vec(),
        when_full,
        ring_packets,
    };
    let gold = Pipeline {
        name: "gold".into(),
        priority: 10,
        ports: Some(vec!["vm1".into(), "up".into()]),
        min_cores: 2,
        memory_mib: Some(64),
        groups: vec![
            group(&PathStage::PATH[..1], &[1], WhenFull::Drop, 1024),
            group(&PathStage::PATH[1..], &[2, 3], WhenFull::Wait, 4096),
        ],
    };
    let rest = Pipeline {
        name: "rest".into(),
        priority: 0,
        ports: None,
        min_cores: 1,
        memory_mib: None,
        groups: vec![group(&PathStage::PATH, &[0], WhenFull::Drop, 1024)],
    };
    let config = read(&text).unwrap();
    assert_eq!((&config.pipelines[..], config.layout_name()), (&[gold, rest][..], "pipelines"));
    assert_eq!(config.worker_cores(), [0, 1, 2, 3]);
}

#[test]
fn a_stage_of_the_whole_path_and_every_cut_are_taken() {
    for cut in [
        vec!["'receive', 'classify', 'transform'"],
        vec!["'receive'", "'classify', 'transform'"],
        vec!["'receive', 'classify'", "'transform'"],
        vec!["'receive'", "'classify'", "'transform'"],
    ] {
        let stages: String = cut.iter().enumerate().map(|(i, run)| stage(run, &i.to_string())).collect();
        let config = read(&format!("[[pipeline]]\nname = 'a'\n{stages}")).unwrap();
        let groups = &config.pipelines[0].groups;
        assert_eq!(groups.len(), cut.len());
        assert_eq!(groups.iter().flat_map(|group| group.stages.clone()).collect::<Vec<_>>(), PathStage::PATH);
    }
}

#[test]
fn cores_that_nobody_names_are_shared() {
    let named = |pipelines: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        pipelines.iter().map(|(name, cores)| (name.to_string(), cores.to_vec())).collect()
    };
    // Alone, with the default: all but core 0.
    assert_eq!(cores("[[pipeline]]\nname = 'a'"), named(&[("a", &[1, 2, 3])]));
    // The more important one has the odd one.
    let text = "[workers]\ncores = '1-3'\n[[pipeline]]\nname = 'a'\nports = ['vm1']\n[[pipeline]]\nname = 'b'\npriority = 1";
    assert_eq!(cores(&with_ports(text)), named(&[("a", &[3]), ("b", &[1, 2])]));
    // Equals, in the order of the file.
    let text = text.replace("\npriority = 1", "");
    assert_eq!(cores(&with_ports(&text)), named(&[("a", &[1, 2]), ("b", &[3])]));
    // What another names, in [workers] or not, is not shared, wherever it stands in the file.
    let text = "[workers]\ncores = '0-2'\n[[pipeline]]\nname = 'a'\nports = ['vm1']\n[[pipeline]]\nname = 'b'\ncores = '1,3'";
    assert_eq!(cores(&with_ports(text)), named(&[("a", &[0, 2]), ("b", &[1, 3])]));
    // Least cores are counted after sharing.
    let whole = read("[[pipeline]]\nname = 'a'\nmin_cores = 3").unwrap();
    assert_eq!((whole.pipelines[0].min_cores, whole.layout_name()), (3, "fused"));
    assert_eq!(
        report("[[pipeline]]\nname = 'a'\nmin_cores = 4"),
        ["line 3: pipeline \"a\": min_cores = 4: too large (write 0 to 3 cores)"]
    );
}

#[test]
fn too_few_cores_are_counted() {
    let pipelines = "[[pipeline]]\nname = 'a'\nports = ['up']\n[[pipeline]]\nname = 'b'\npriority = 1\n";
    let with_cores =
        |cores: &str, more: &str| with_ports(&format!("[workers]\ncores = '{cores}'\n{pipelines}{more}"));
    assert_eq!(
        report(&with_cores("2", "")),
        [
            "line 3: pipeline \"a\": cores: 2 pipelines name no cores, and only core 2 of workers.cores is left: \
          1 core too few (add 1 of 0-1,3 to workers.cores, or declare fewer pipelines)"
        ]
    );
    assert_eq!(
        report(&with_cores("2", "[[pipeline]]\nname = 'c'\nports = ['vm1']\ncores = '1-3'")),
        ["line 6: pipeline \"b\": cores: 2 pipelines name no cores, and none of workers.cores is left: \
          2 cores too few (declare fewer pipelines, or name fewer cores in others)"]
    );
    assert_eq!(
        report(
            "[[pipeline]]\nname = 'a'\ncores = '0-3'\n[[pipeline]]\nname = 'b'\nports = ['up']\n[[port]]\nname = 'up'\nkind = 'uplink'\ndevice = 'null:'\nipv4 = '192.0.2.1/24'"
        ),
        ["line 4: pipeline \"b\": cores: one pipeline names no cores, and none of workers.cores is left: \
          1 core too few (declare fewer pipelines, or name fewer cores in others)"]
    );
    // Where cores are wrong, what is left is not known.
    assert_eq!(
        report(&with_cores("2", "[[pipeline]]\nname = 'c'\nports = ['vm1']\ncores = '9'")),
        ["line 12: pipeline \"c\": cores = \"9\": this machine has no core 9 (online here: 0-3)"]
    );
}

#[test]
fn values_are_checked() {
    for (line, expected) in [
        ("priority = 1001", "priority = 1001: too large (write 0 to 1000)"),
        ("priority = -1", "priority = -1: too small (write 0 to 1000)"),
        (
            "priority = 'high'",
            "priority = 'high': expected a whole number, found a string (write it in digits, without quotes)",
        ),
        ("min_cores = -1", "min_cores = -1: too small (write 0 to 3 cores)"),
        ("cores = '2'\nmin_cores = -1", "min_cores = -1: too small (write 0 to 1 core)"),
        ("memory_mib = 15", "memory_mib = 15: too small (write 16 to 1048576 MiB)"),
        (
            "memory_mib = 449",
            "memory_mib = 449: with it pipelines have 449 of the 512 MiB of dpdk.memory_mib, which leaves less than 64 MiB \
             (lower it, or set dpdk.memory_mib to 513 or more)",
        ),
        ("cores = '4'", "cores = \"4\": this machine has no core 4 (online here: 0-3)"),
        ("cores = [1]", "cores = [1]: expected a string, found a list (put it in double quotes)"),
        ("ports = 'up'", "ports = 'up': expected a list of strings, found a string (write [\"…\", \"…\"])"),
        (
            "ports = []",
            "ports: an empty list (name ports, or leave it out in one pipeline, which then takes all others)",
        ),
        ("core = '1'", "core: unknown key (did you mean cores?)"),
        ("stages = []", "stages: unknown key (did you mean stage?)"),
        ("stage = []", "stage: an empty list (write [[pipeline.stage]] tables, or remove it)"),
        (
            "stage = 1",
            "stage = 1: expected a list of tables, found a whole number (write [[pipeline.stage]] and its keys below it)",
        ),
        (
            "stage = [1]",
            "stage[0] = 1: expected a table, found a whole number (write [[pipeline.stage]] and its keys below it)",
        ),
    ] {
        let place = 2 + line.lines().count();
        assert_eq!(
            report(&format!("[[pipeline]]\nname = 'a'\n{line}")),
            [format!("line {place}: pipeline \"a\": {expected}")],
            "{line}"
        );
    }
    assert_eq!(
        report("[[pipeline]]\ncores = '1'\n[[pipeline]]\nname = 'a b'\npriority = 'x'\n[pipelines]"),
        [
            "line 1: pipeline[0]: name: missing (give the pipeline a name, such as gold)",
            "line 3: pipeline \"a b\": ports: missing (pipeline[0] takes all others already: name those of this one)",
            "line 4: pipeline \"a b\": name = \"a b\": not a pipeline name (write 1 to 63 letters, digits, dots, \
             underscores and hyphens, the first a letter or digit)",
            "line 5: pipeline \"a b\": priority = 'x': expected a whole number, found a string (write it in digits, \
             without quotes)",
            "line 6: pipelines: unknown key (did you mean pipeline?)",
        ]
    );
    assert_eq!(
        report("[pipeline]\nname = 'a'"),
        [
            "line 1: pipeline = [pipeline]: expected a list of tables, found a table (write [[pipeline]] and its keys below it)"
        ]
    );
}

#[test]
fn stages_are_checked() {
    let one = |lines: &str| report(&format!("[[pipeline]]\nname = 'a'\n[[pipeline.stage]]\n{lines}"));
    let title = "pipeline \"a\": stage[0]";
    assert_eq!(
        one("core = '1'"),
        [
            format!(
                "line 3: {title}: run: missing (write the stages that share its cores, such as [\"receive\"])"
            ),
            format!("line 3: {title}: cores: missing (name the cores that it runs on, such as \"1\")"),
            format!("line 4: {title}: core: unknown key (did you mean cores?)"),
        ]
    );
    assert_eq!(
        one("run = []\ncores = '1-9'\nwhen_full = 'drop'\nring_packets = 64"),
        [
            format!("line 4: {title}: run: an empty list (name stages, or remove the table)"),
            format!("line 5: {title}: cores = \"1-9\": this machine has no core 9 (online here: 0-3)"),
            format!(
                "line 6: {title}: when_full: no ring leads to the first stage (remove it, or move it to a later one)"
            ),
            format!(
                "line 7: {title}: ring_packets: no ring leads to the first stage (remove it, or move it to a later one)"
            ),
        ]
    );
    assert_eq!(
        one("run = ['recieve', 2, 'admit']\ncores = '1'"),
        [
            format!(
                "line 4: {title}: run[1] = 2: expected a string, found a whole number (put it in double quotes)"
            ),
            format!("line 4: {title}: run[0] = \"recieve\": unknown value (did you mean receive?)"),
            format!(
                "line 4: {title}: run[2] = \"admit\": unknown value (allowed here: receive, classify, transform)"
            ),
        ]
    );
    let second = |lines: &str| {
        let first = stage("'receive'", "1");
        let text =
            format!("[[pipeline]]\nname = 'a'\n{first}{}{lines}", stage("'classify', 'transform'", "2"));
        report(&text)
    };
    let title = "pipeline \"a\": stage[1]";
    for (line, expected) in [
        ("when_full = 'block'", "when_full = \"block\": unknown value (allowed here: drop, wait)"),
        ("ring_packets = 32", "ring_packets = 32: too small (write 64 to 65536 packets)"),
        ("ring_packets = 65537", "ring_packets = 65537: too large (write 64 to 65536 packets)"),
        ("ring_packets = 1000", "ring_packets = 1000: not a power of two (write 512 or 1024)"),
    ] {
        assert_eq!(second(line), [format!("line 9: {title}: {expected}")], "{line}");
    }
    assert_eq!(second("when_full = 'drop'\nring_packets = 65536"), Vec::<String>::new());
}

#[test]
fn stages_are_the_whole_path_in_order() {
    let order = "(name receive, classify and transform once each, in this order)";
    let further = "(add it here, or in one more [[pipeline.stage]])";
    for (first, second, expected) in [
        (
            "'classify'",
            "'receive', 'transform'",
            format!("4: pipeline \"a\": stage[0]: run[0] = \"classify\": runs before receive {order}"),
        ),
        (
            "'receive', 'transform'",
            "'classify'",
            format!("4: pipeline \"a\": stage[0]: run[1] = \"transform\": runs before classify {order}"),
        ),
        (
            "'receive'",
            "'receive'",
            format!("7: pipeline \"a\": stage[1]: run[0] = \"receive\": runs already {order}"),
        ),
        (
            "'receive', 'classify', 'transform'",
            "'transform'",
            format!("7: pipeline \"a\": stage[1]: run[0] = \"transform\": runs already {order}"),
        ),
        (
            "'receive'",
            "'classify'",
            format!(
                "7: pipeline \"a\": stage[1]: run: the path ends here, and nothing runs transform {further}"
            ),
        ),
    ] {
        let text = format!("[[pipeline]]\nname = 'a'\n{}{}", stage(first, "1"), stage(second, "2"));
        assert_eq!(report(&text), [format!("line {expected}")], "{first} {second}");
    }
    let text = format!("[[pipeline]]\nname = 'a'\n{}", stage("'receive'", "1"));
    assert_eq!(
        report(&text),
        [format!(
            "line 4: pipeline \"a\": stage[0]: run: the path ends here, and nothing runs classify and transform {further}"
        )]
    );
}

#[test]
fn a_core_belongs_to_one_stage_of_one_pipeline() {
    let remedy = "(give each stage of each pipeline cores of its own)";
    let text = format!(
        "[[pipeline]]\nname = 'a'\n{}{}[[pipeline]]\nname = 'b'\ncores = '0-2'\nports = ['vm1']\n",
        stage("'receive'", "1"),
        stage("'classify', 'transform'", "1-2")
    );
    assert_eq!(
        report(&with_ports(&text)),
        [
            format!(
                "line 8: pipeline \"a\": stage[1]: cores = \"1-2\": core 1 belongs to stage[0] of pipeline \"a\" {remedy}"
            ),
            format!(
                "line 11: pipeline \"b\": cores = \"0-2\": core 1 belongs to stage[0] of pipeline \"a\" {remedy}"
            ),
            format!(
                "line 11: pipeline \"b\": cores = \"0-2\": core 2 belongs to stage[1] of pipeline \"a\" {remedy}"
            ),
        ]
    );
    let text =
        "[[pipeline]]\nname = 'a'\ncores = '1-3'\n[[pipeline]]\nname = 'b'\ncores = '0-2'\nports = ['vm1']\n";
    assert_eq!(
        report(&with_ports(text)),
        [format!("line 6: pipeline \"b\": cores = \"0-2\": cores 1-2 belong to pipeline \"a\" {remedy}")]
    );
    let text = format!(
        "[[pipeline]]\nname = 'a'\ncores = '0'\n{}",
        stage("'receive', 'classify', 'transform'", "1")
    );
    assert_eq!(
        report(&text),
        [
            "line 3: pipeline \"a\": cores = \"0\": its [[pipeline.stage]] tables have the cores (remove it, or the tables)"
        ]
    );
}

#[test]
fn each_port_is_received_by_one_pipeline() {
    let text = "[[pipeline]]\nname = 'a'\ncores = '1'\nports = ['vm1', 'vm9', 'vm1', 'vm7']\n\
                [[pipeline]]\nname = 'b'\ncores = '2'\nports = ['vm1']\n[[pipeline]]\nname = 'b'\ncores = '3'";
    assert_eq!(
        report(&with_ports(text)),
        [
            "line 4: pipeline \"a\": ports[1] = \"vm9\": there is no port \"vm9\" (declare port \"vm9\", or leave ports out in \
             one pipeline, which then takes all others)",
            "line 4: pipeline \"a\": ports[2] = \"vm1\": listed twice (remove one of them)",
            "line 4: pipeline \"a\": ports[3] = \"vm7\": its packets come with those of port \"vm1\" (name vm1 instead)",
            "line 8: pipeline \"b\": ports[0] = \"vm1\": pipeline \"a\" receives its packets already (name it in one pipeline \
             only)",
            "line 10: pipeline \"b\": name = \"b\": another pipeline has this name on line 5 (give each pipeline a name of its \
             own)",
        ]
    );
}

#[test]
fn a_port_that_nobody_receives_from_is_reported() {
    let pipelines =
        |first: &str| with_ports(&format!("[[pipeline]]\nname = 'a'\ncores = '1'\nports = ['{first}']"));
    assert_eq!(
        report(&pipelines("vm1")),
        [
            "line 6: port \"up\": name = \"up\": no pipeline receives its packets (add it to ports of a pipeline, or leave \
          ports out in one, which then takes all others)"
        ]
    );
    assert_eq!(report(&pipelines("up")).len(), 1, "vm7 comes with vm1");
    assert_eq!(report(&pipelines("vm11")).len(), 1, "what was meant is not known");
    assert_eq!(report(&pipelines("up', 'vm1")), Vec::<String>::new());
    for ports in ["[]", "[1, 'vm1']", "'vm1'"] {
        assert_eq!(report(&pipelines("vm1").replace("['vm1']", ports)).len(), 1, "{ports}: nor here");
    }
}

#[test]
fn memory_is_counted_together() {
    let text = "[dpdk]\nmemory_mib = 256\n[[pipeline]]\nname = 'a'\nmemory_mib = 96\nports = ['up']\n\
                [[pipeline]]\nname = 'b'\nmemory_mib = 96";
    assert_eq!(report(&with_ports(text)), Vec::<String>::new());
    assert_eq!(
        report(&with_ports(&text.replace("256", "255"))),
        [
            "line 9: pipeline \"b\": memory_mib = 96: with it pipelines have 192 of the 255 MiB of dpdk.memory_mib, which leaves \
          less than 64 MiB (lower it, or set dpdk.memory_mib to 256 or more)"
        ]
    );
}

#[test]
fn layouts_and_pipelines_exclude_each_other() {
    assert_eq!(
        report("[workers]\nlayout = 'split'\ncores = '1'\n[[pipeline]]\nname = 'a'"),
        [
            "line 2: workers: layout = \"split\": [[pipeline]] tables say which stages share a core (remove it, or the tables)"
        ]
    );
    for layout in ["['a']", "{ a = 1 }", "[{ run = ['receive'] }]"] {
        assert_eq!(
            report(&format!("[workers]\nlayout = {layout}")),
            [
                "line 2: workers: layout: not the place for a layout of your own (write [[pipeline]] tables instead: each has its \
              stages in [[pipeline.stage]] tables)"
            ]
        );
    }
    assert_eq!(read("pipeline = []").unwrap().pipelines, read("").unwrap().pipelines);
}

#[test]
fn keys_are_paths() {
    let text = format!("[[pipeline]]\nname = 'a'\n{}", stage("'receive', 'classify', 'transform'", "9"));
    let json = serde_json::to_value(read(&text).unwrap_err()).unwrap();
    assert_eq!((&json[0]["key"], &json[0]["line"]), (&"pipeline[0].stage[0].cores".into(), &5.into()));
    assert_eq!(json[0]["value"], "9");
}

//! A machine of files on which everything is well, and what is said when one thing of it is not.

use super::{Finding, Level, Subject, System, examine};
use crate::config::Hugepages;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Two nodes of two cores; workers on 2 and 3, a card and its virtual function on their node.
struct Machine {
    root: tempfile::TempDir,
}

const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const FUNCTION: &str = "/sys/bus/pci/devices/0000:3b:02.1";
const CARD: &str = "/sys/bus/pci/devices/0000:3b:00.0";

impl Machine {
    fn healthy() -> Self {
        let machine = Self { root: tempfile::tempdir().unwrap() };
        let cpus = "/sys/devices/system/cpu";
        let nodes = "/sys/devices/system/node";
        for (path, text) in [
            (
                "/proc/cpuinfo",
                "vendor_id\t: GenuineIntel\nflags\t\t: sse4_2 avx2 avx512f constant_tsc nonstop_tsc\n",
            ),
            ("/proc/cmdline", "quiet intel_iommu=on iommu=pt rcu_nocbs=2-3"),
            ("/proc/timer_list", "Timer List Version: v0.10\n  .hres_active    : 1\n"),
            ("/proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime 0 0\n"),
            ("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
            ("/proc/self/status", "CapEff:\t000001ffffffffff\n"),
            (
                "/proc/self/limits",
                "Max open files            1048576      1048576      files\n\
                 Max locked memory         unlimited    unlimited    bytes\n",
            ),
            ("/proc/sys/kernel/numa_balancing", "0\n"),
            ("/proc/irq/24/effective_affinity_list", "0\n"),
            ("/proc/irq/25/smp_affinity_list", "0-1\n"),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("/sys/devices/virtual/workqueue/cpumask", "3\n"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("/sys/kernel/iommu_groups/7/type", "DMA\n"),
            ("/sys/bus/pci/drivers/vfio-pci/new_id", ""),
            ("/dev/net/tun", ""),
            ("/sys/class/net/und0/flags", "0x1003\n"),
            ("/run/vm/none", ""),
            ("/var/lib/none", ""),
        ] {
            machine.write(path, text);
        }
        for (file, text) in
            [("online", "0-3"), ("possible", "0-3"), ("isolated", "2-3"), ("nohz_full", "2-3")]
        {
            machine.write(&format!("{cpus}/{file}"), text);
        }
        for core in 0..4 {
            let cpu = format!("{cpus}/cpu{core}");
            machine.write(&format!("{cpu}/topology/thread_siblings_list"), &core.to_string());
            machine.write(&format!("{cpu}/cpufreq/scaling_governor"), "performance\n");
            machine.write(&format!("{cpu}/cpuidle/state1/name"), "C1\n");
            machine.write(&format!("{cpu}/cpuidle/state1/latency"), "2\n");
            machine.write(&format!("{cpu}/cpuidle/state1/disable"), "0\n");
        }
        machine.write(&format!("{nodes}/online"), "0-1\n");
        for (node, cores) in [("node0", "0-1"), ("node1", "2-3")] {
            machine.write(&format!("{nodes}/{node}/cpulist"), cores);
            machine.pages(&format!("{nodes}/{node}/hugepages/hugepages-2048kB"), 256, 256);
        }
        machine.pages(PAGES, 512, 512);
        for (folder, driver) in [(FUNCTION, "vfio-pci"), (CARD, "ixgbe")] {
            machine.write(&format!("{folder}/class"), "0x020000\n");
            machine.write(&format!("{folder}/numa_node"), "1\n");
            machine.link(&format!("{folder}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
        }
        machine.write(&format!("{CARD}/net/eth0/mtu"), "1500\n");
        machine.write(&format!("{CARD}/sriov_totalvfs"), "63\n");
        machine.write(&format!("{CARD}/sriov_numvfs"), "1\n");
        machine.link(&format!("{CARD}/virtfn0"), "../0000:3b:02.1");
        machine.link(&format!("{FUNCTION}/physfn"), "../0000:3b:00.0");
        machine.link("/sys/class/net/eth0/device/virtfn0", "../0000:3b:02.1");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn pages(&self, folder: &str, total: u64, free: u64) {
        self.write(&format!("{folder}/nr_hugepages"), &total.to_string());
        self.write(&format!("{folder}/free_hugepages"), &free.to_string());
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).unwrap();
    }

    fn examine(&self, subject: &Subject) -> Vec<Finding> {
        examine(&System::below(self.root.path()), subject)
    }
}

fn subject() -> Subject {
    let devices = [
        ("uplink0", "af_packet:und0,qdisc_bypass=0"),
        ("vm1", "pci:0000:3b:02.1"),
        ("vm2", "tap:vm2"),
        ("vm3", "vhost:/run/vm/3.sock"),
        ("vm4", "vf:eth0/0"),
    ];
    Subject {
        asked: true,
        cores: vec![2, 3],
        hugepages: Hugepages::Required,
        memory_mib: 512,
        devices: devices.map(|(port, device)| (port.to_owned(), device.to_owned())).to_vec(),
        state: "/var/lib/forebay".into(),
        socket: "/run/forebay/forebay.sock".into(),
        sleeps: true,
        max_added_latency_us: 50,
    }
}

/// The findings that are not well.
fn bad(findings: Vec<Finding>) -> Vec<Finding> {
    // The room is that of the disk that the test's files are on.
    findings
        .into_iter()
        .filter(|finding| finding.level != Level::Ok && finding.name != "state_room")
        .collect()
}

#[test]
fn a_machine_that_is_well_has_nothing_to_mend() {
    let findings = Machine::healthy().examine(&subject());
    assert_eq!(bad(findings.clone()), []);
    assert!(findings.iter().all(|finding| finding.remedy.is_none() || finding.name == "state_room"));
    let card = findings.iter().find(|finding| finding.name == "network_card").unwrap();
    assert_eq!(card.object.as_deref(), Some("0000:3b:00.0"));
    assert_eq!(card.value, "driver ixgbe, interface eth0, 1 of 63 virtual functions made");
    assert_eq!(findings.iter().filter(|finding| finding.name == "network_card").count(), 1);
}

/// One thing of the healthy machine that is otherwise: how it is said, and a part of the remedy.
fn one(name: &str, level: Level, remedy: &str, change: impl FnOnce(&Machine)) {
    let machine = Machine::healthy();
    change(&machine);
    let found = bad(machine.examine(&subject()));
    let [finding] = &found[..] else { panic!("{name}: {found:#?}") };
    assert_eq!((finding.name, finding.level), (name, level), "{finding:?}");
    let given = finding.remedy.clone().unwrap();
    assert!(given.contains(remedy), "{name}: {given}");
}

/// A file of the healthy machine with another text.
fn file(name: &str, level: Level, remedy: &str, path: &str, text: &str) {
    one(name, level, remedy, |machine| machine.write(path, text));
}

use Level::{Fail, Warn};

#[test]
fn the_processor_is_looked_at() {
    let cpuinfo = "/proc/cpuinfo";
    let flags = |flags: &str| format!("flags\t\t: {flags}\n");
    file("cpu_instructions", Fail, "-cpu host", cpuinfo, &flags("avx2 constant_tsc nonstop_tsc"));
    file("cpu_instructions", Warn, "-cpu host", cpuinfo, &flags("sse4_2 constant_tsc nonstop_tsc"));
    file("tsc", Warn, "+invtsc", cpuinfo, &flags("sse4_2 avx2 constant_tsc"));
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    file("clock_source", Warn, "echo tsc > /sys/devices/system/clocksource", clock, "hpet");
    file("timer_resolution", Warn, "highres=off", "/proc/timer_list", "  .hres_active    : 0\n");
}

#[test]
fn memory_is_looked_at() {
    one("hugepages", Fail, "echo 'vm.nr_hugepages = 256'", |machine| machine.pages(PAGES, 200, 200));
    one("hugepages", Warn, "smaps", |machine| machine.pages(PAGES, 300, 10));
    one("hugepages", Fail, "CONFIG_HUGETLBFS", |machine| machine.remove("/sys/kernel/mm/hugepages"));
    let of_node = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB";
    one("hugepages_of_node", Warn, &format!("echo 256 > {of_node}/nr_hugepages"), |machine| {
        machine.pages(of_node, 0, 0);
    });
    let transparent = "/sys/kernel/mm/transparent_hugepage/enabled";
    file(
        "transparent_hugepages",
        Warn,
        &format!("echo madvise > {transparent}"),
        transparent,
        "always madvise [never]",
    );
    file("swap", Warn, "swapoff -a", "/proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2\n");
    file("numa_balancing", Warn, "kernel.numa_balancing = 0", "/proc/sys/kernel/numa_balancing", "1");
}

#[test]
fn without_being_asked_for_hugepages_are_a_wish() {
    let machine = Machine::healthy();
    machine.pages(PAGES, 0, 0);
    let with = |hugepages| bad(machine.examine(&Subject { hugepages, ..subject() }));
    assert_eq!(with(Hugepages::Off), []);
    let found = with(Hugepages::Auto);
    assert_eq!((found.len(), found[0].name, found[0].level), (1, "hugepages", Warn));
    assert_eq!(found[0].figures["needed_mib"], 512);
}

#[test]
fn what_ports_stand_on_is_looked_at() {
    let bound = |driver: &'static str| {
        move |machine: &Machine| machine.link(&format!("{FUNCTION}/driver"), &format!("/drivers/{driver}"))
    };
    // The daemon binds and makes what its ports name.
    let machine = Machine::healthy();
    bound("ixgbevf")(&machine);
    assert_eq!(bad(machine.examine(&subject())), []);
    machine.remove("/sys/class/net/eth0/device/virtfn0");
    for (file, count) in [("sriov_totalvfs", "63"), ("sriov_numvfs", "0")] {
        machine.write(&format!("/sys/class/net/eth0/device/{file}"), count);
    }
    let findings = machine.examine(&subject());
    assert_eq!(bad(findings.clone()), []);
    assert!(findings.iter().any(|finding| finding.value == "eth0/0: made when the daemon starts"));
    machine.write("/sys/class/net/eth0/device/sriov_numvfs", "4");
    let device = ("vm4".to_owned(), "vf:eth0/7".to_owned());
    let found = bad(machine.examine(&Subject { devices: vec![device], ..subject() }));
    assert_eq!(found[0].remedy.as_deref(), Some("forebay vf create --force eth0 8"));

    let machine = Machine::healthy();
    bound("mlx5_core")(&machine);
    machine.remove("/sys/kernel/iommu_groups");
    machine.remove("/sys/bus/pci/drivers");
    let found = bad(machine.examine(&subject()));
    let failed: Vec<_> = found.iter().filter(|finding| finding.level == Fail).collect();
    assert_eq!((failed.len(), failed[0].name), (1, "verbs"));
    assert_eq!(failed[0].remedy.as_deref(), Some("modprobe -a mlx5_ib ib_uverbs"));
    machine.write("/sys/class/infiniband_verbs/uverbs0/dev", "231:192");
    let found = bad(machine.examine(&subject()));
    assert!(
        found.iter().all(|finding| finding.level == Warn),
        "a card that is shared needs neither: {found:?}"
    );

    one("port_device", Fail, "switch SR-IOV on", |machine| {
        machine.remove("/sys/class/net/eth0/device/virtfn0");
    });
    one("port_device", Fail, "forebay vf list", |machine| machine.remove("/sys/class/net/eth0"));
    one("port_device", Fail, "lspci", |machine| {
        machine.remove("/sys/class/net/eth0/device/virtfn0");
        machine.link("/sys/class/net/eth0/device/virtfn0", "../0000:3b:00.0");
        machine.remove(FUNCTION);
    });
    one("port_device", Fail, "ip link", |machine| machine.remove("/sys/class/net/und0"));
    file("port_device", Warn, "ip link set und0 up", "/sys/class/net/und0/flags", "0x1002\n");
    one("port_device", Fail, "modprobe tun", |machine| machine.remove("/dev/net/tun"));
    one("port_device", Fail, "mkdir -p /run/vm", |machine| machine.remove("/run/vm"));
}

#[test]
fn the_iommu_is_looked_at() {
    one("iommu", Fail, "VT-d", |machine| machine.remove("/sys/kernel/iommu_groups/7"));
    one("vfio_pci", Fail, "modprobe vfio-pci", |machine| machine.remove("/sys/bus/pci/drivers/vfio-pci"));
    let machine = Machine::healthy();
    machine.remove("/sys/kernel/iommu_groups");
    machine.write("/proc/cmdline", "quiet rcu_nocbs=2-3");
    let found = bad(machine.examine(&Subject { devices: Vec::new(), ..subject() }));
    assert_eq!((found.len(), found[0].level), (1, Warn), "no device needs it: {found:?}");
    assert!(found[0].remedy.as_deref().unwrap().contains("intel_iommu=on iommu=pt"), "{found:?}");
}

#[test]
fn cores_are_looked_at() {
    let cpus = "/sys/devices/system/cpu";
    let isolated = format!("{cpus}/isolated");
    file("isolated_cores", Warn, "isolcpus=managed_irq,domain,2-3", &isolated, "3");
    one("tickless_cores", Warn, "nohz_full=2-3", |machine| machine.write(&format!("{cpus}/nohz_full"), ""));
    // A tickless core has its callbacks elsewhere: it takes both to be missing.
    let machine = Machine::healthy();
    machine.write("/proc/cmdline", "intel_iommu=on iommu=pt rcu_nocbs=1");
    assert_eq!(bad(machine.examine(&subject())), []);
    machine.write(&format!("{cpus}/nohz_full"), "3");
    let found = bad(machine.examine(&subject()));
    let said: Vec<_> =
        found.iter().map(|finding| (finding.name, finding.value.split(':').next().unwrap())).collect();
    assert_eq!(said, [("tickless_cores", "not cores 2"), ("rcu_callbacks", "not cores 2")]);
    assert!(found[1].remedy.as_deref().unwrap().contains("rcu_nocbs=2-3"), "{found:?}");

    let siblings = format!("{cpus}/cpu2/topology/thread_siblings_list");
    file("core_siblings", Warn, "echo 0 > /sys/devices/system/cpu/cpu3/online", &siblings, "2-3");
    file(
        "irq_affinity",
        Warn,
        "echo 0-1 > $irq/smp_affinity_list",
        "/proc/irq/24/effective_affinity_list",
        "2",
    );
    let machine = Machine::healthy();
    machine.write("/proc/irq/2/effective_affinity_list", "0-3");
    machine.write("/sys/kernel/irq/2/actions", "\n");
    assert_eq!(bad(machine.examine(&subject())), [], "no device has this one");
    let queues = "/sys/devices/virtual/workqueue/cpumask";
    file("workqueue_affinity", Warn, &format!("echo 3 > {queues}"), queues, "f");
    let governor = format!("{cpus}/cpu3/cpufreq/scaling_governor");
    file("cpu_governor", Warn, "for cpu in cpu3; do echo performance", &governor, "schedutil");
    let latency = format!("{cpus}/cpu2/cpuidle/state1/latency");
    file("cpu_sleep", Warn, "cpupower -c 2-3 idle-set -D 51", &latency, "133");
    let machine = Machine::healthy();
    machine.write(&latency, "133");
    assert_eq!(bad(machine.examine(&Subject { sleeps: false, ..subject() })), []);
    machine.write(&format!("{cpus}/cpu2/cpuidle/state1/disable"), "1");
    assert_eq!(bad(machine.examine(&subject())), []);

    let machine = Machine::healthy();
    machine.write(&format!("{cpus}/online"), "2-3");
    let found = bad(machine.examine(&subject()));
    assert!(found.iter().any(|finding| finding.name == "spare_cores" && finding.level == Warn), "{found:?}");
}

#[test]
fn nodes_of_cards_and_workers_are_compared() {
    let node = format!("{FUNCTION}/numa_node");
    let machine = Machine::healthy();
    machine.write(&node, "0");
    let found = bad(machine.examine(&subject()));
    let said: Vec<_> =
        found.iter().map(|finding| (finding.name, finding.object.as_deref().unwrap())).collect();
    assert_eq!(said, [("numa_placement", "vm1"), ("numa_placement", "vm4")]);
    assert!(found[0].remedy.as_deref().unwrap().contains("node 0's: 0-1"), "{found:?}");
    machine.write(&node, "-1");
    assert_eq!(bad(machine.examine(&subject())), []);
}

#[test]
fn rights_and_limits_are_looked_at() {
    let limits = |locked: &str, files: &str| {
        format!(
            "Max open files            {files} {files} files\nMax locked memory         {locked} {locked} bytes\n"
        )
    };
    let path = "/proc/self/limits";
    // With CAP_IPC_LOCK nobody counts.
    let machine = Machine::healthy();
    machine.write(path, &limits("8388608", "4096"));
    assert_eq!(bad(machine.examine(&subject())), []);
    machine.write("/proc/self/status", "CapEff:\t000001ffffffbfff\n");
    let found = bad(machine.examine(&subject()));
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!((finding.name, finding.level), ("locked_memory_limit", Fail));
    assert_eq!((finding.figures["limit_mib"], finding.figures["needed_mib"]), (8, 512));
    file("open_files_limit", Warn, "LimitNOFILE=1024", path, &limits("unlimited", "700"));
    file("open_files_limit", Fail, "ulimit -n 1024", path, &limits("unlimited", "100"));

    let status = "/proc/self/status";
    let without = |number: u32| format!("CapEff:\t{:016x}\n", 0x1ff_ffff_ffff_u64 & !(1 << number));
    file("capability", Fail, "AmbientCapabilities=CAP_NET_ADMIN", status, &without(12));
    file("capability", Fail, "AmbientCapabilities=CAP_NET_RAW", status, &without(13));
    let machine = Machine::healthy();
    machine.write(status, &without(17));
    assert_eq!(bad(machine.examine(&subject())), [], "no device takes it");
    machine.link(&format!("{FUNCTION}/driver"), "/drivers/uio_pci_generic");
    let found = bad(machine.examine(&subject()));
    assert_eq!(found[0].object.as_deref(), Some("CAP_SYS_RAWIO"));
    machine.link(&format!("{FUNCTION}/driver"), "/drivers/vfio-pci");
    let found = bad(machine.examine(&Subject { asked: false, devices: Vec::new(), ..subject() }));
    assert_eq!((found.len(), found[0].level), (1, Warn), "nobody said which devices");
}

#[test]
fn folders_are_looked_at() {
    let is_folder = |finding: &Finding| finding.name.ends_with("_folder");
    let machine = Machine::healthy();
    let told = |machine: &Machine| {
        let found = machine.examine(&subject());
        let told =
            found.into_iter().filter(is_folder).map(|finding| (finding.name, finding.level, finding.value));
        told.collect::<Vec<_>>()
    };
    let can_be_made = |name| (name, Level::Ok, "can be made".to_owned());
    assert_eq!(told(&machine), [can_be_made("control_folder"), can_be_made("state_folder")]);
    machine.write("/run/forebay", "a file");
    machine.write("/var/lib/forebay/rules", "");
    let told = told(&machine);
    assert_eq!(told[0], ("control_folder", Fail, "/run/forebay is not a folder".to_owned()));
    assert_eq!(told[1], ("state_folder", Level::Ok, "can be written to".to_owned()));
    let room = machine.examine(&subject()).into_iter().find(|finding| finding.name == "state_room").unwrap();
    assert!(room.figures.contains_key("free_mib"));
}

#[test]
fn a_machine_without_any_files_is_survived() {
    let root = tempfile::tempdir().unwrap();
    let findings = examine(&System::below(root.path().join("nothing")), &subject());
    assert!(findings.iter().any(|finding| finding.level == Fail));
}

#[test]
fn this_machine_is_examined() {
    let subject = Subject::ordinary().unwrap();
    assert!(!subject.cores.is_empty());
    let findings = examine(&System::this(), &subject);
    // Nothing was asked for: what fails is what no host can do without.
    let failed: Vec<_> = findings.iter().filter(|finding| finding.level == Fail).collect();
    let without = ["cpu_instructions", "control_folder", "state_folder"];
    assert!(failed.iter().all(|finding| without.contains(&finding.name)), "{failed:?}");
    for finding in &findings {
        assert_eq!(finding.remedy.is_some(), finding.level != Level::Ok, "{finding:?}");
        assert!(!finding.value.contains('\n'), "{finding:?}");
    }
    assert!(
        Path::new("/proc/self/status").exists()
            && findings.iter().any(|finding| finding.name == "capability")
    );
}

//! Huge pages for packet memory: reserved, free, and on the nodes of the workers.

use super::{Finding, Level, Subject, System};
use crate::config::Hugepages;

const SIZES: &str = "/sys/kernel/mm/hugepages";
const NODES: &str = "/sys/devices/system/node";
const DEFAULT_KIB: u64 = 2048;

/// The pages of one size.
struct Pages {
    kib: u64,
    total: u64,
    free: u64,
}

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let sizes = pages(system, SIZES);
    let mut findings = vec![amount(&sizes, subject)];
    if subject.hugepages != Hugepages::Off && mib(&sizes, |size| size.total) > 0 {
        findings.extend(nodes(system, subject));
    }
    findings.push(mount(system));
    findings
}

fn pages(system: &System, folder: &str) -> Vec<Pages> {
    let read = |name: String| {
        let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = |file: &str| u64::try_from(system.number(format!("{folder}/{name}/{file}"))?).ok();
        Some(Pages { kib, total: count("nr_hugepages")?, free: count("free_hugepages")? })
    };
    system.names(folder).into_iter().filter_map(read).collect()
}

fn mib(sizes: &[Pages], count: impl Fn(&Pages) -> u64) -> u64 {
    sizes.iter().map(|size| count(size) * size.kib / 1024).sum()
}

fn amount(sizes: &[Pages], subject: &Subject) -> Finding {
    const NAME: &str = "hugepages";
    let (total, free, needed) =
        (mib(sizes, |size| size.total), mib(sizes, |size| size.free), subject.memory_mib);
    let seen = format!("{free} of {total} MiB free, dpdk.memory_mib is {needed}");
    let level = if subject.hugepages == Hugepages::Required { Level::Fail } else { Level::Warn };
    let finding = if subject.hugepages == Hugepages::Off {
        Finding::ok(NAME, "not asked for: dpdk.hugepages is off")
    } else if sizes.is_empty() {
        Finding::bad(level, NAME, "the kernel has none", "boot a kernel with CONFIG_HUGETLBFS")
    } else if free >= needed {
        Finding::ok(NAME, seen)
    } else if total >= needed {
        // A daemon that runs has its own already.
        let remedy = "see who has them: grep -lE '^(Shared|Private)_Hugetlb: +[1-9]' /proc/[0-9]*/smaps";
        Finding::warn(NAME, format!("{seen}; others have the rest"), remedy)
    } else {
        // nr_hugepages counts the default size, which is the smallest wherever nobody chose otherwise.
        let smallest = sizes.iter().min_by_key(|size| size.kib);
        let (kib, have) = smallest.map_or((DEFAULT_KIB, 0), |size| (size.kib, size.total));
        let count = have + ((needed - free) * 1024).div_ceil(kib);
        let remedy =
            format!("echo 'vm.nr_hugepages = {count}' > /etc/sysctl.d/80-forebay.conf && sysctl --system");
        Finding::bad(level, NAME, seen, remedy)
    };
    finding.with("total_mib", total).with("free_mib", free).with("needed_mib", needed)
}

/// On a machine with several nodes: whether the workers' nodes have any at all.
fn nodes(system: &System, subject: &Subject) -> Vec<Finding> {
    const NAME: &str = "hugepages_of_node";
    let all: Vec<String> = system.names(NODES).into_iter().filter(|name| is_node(name)).collect();
    if all.len() < 2 {
        return Vec::new();
    }
    let has_workers = |node: &&String| {
        let cores = system.cores(format!("{NODES}/{node}/cpulist")).unwrap_or_default();
        subject.cores.iter().any(|core| cores.contains(core))
    };
    let finding = |node: &String| {
        let sizes = pages(system, &format!("{NODES}/{node}/hugepages"));
        let (total, free) = (mib(&sizes, |size| size.total), mib(&sizes, |size| size.free));
        let seen = format!("{free} of {total} MiB free");
        let kib = sizes.iter().map(|size| size.kib).min().unwrap_or(DEFAULT_KIB);
        let finding = if total > 0 {
            Finding::ok(NAME, seen)
        } else {
            let count = (subject.memory_mib * 1024).div_ceil(kib);
            let file = format!("{NODES}/{node}/hugepages/hugepages-{kib}kB/nr_hugepages");
            Finding::warn(
                NAME,
                format!("{seen}: packets of its workers are on another node"),
                format!("echo {count} > {file}"),
            )
        };
        finding.of(node).with("total_mib", total).with("free_mib", free)
    };
    all.iter().filter(has_workers).map(finding).collect()
}

fn is_node(name: &str) -> bool {
    name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Forebay asks the kernel for its pages directly. Guests whose memory is in huge pages are another's, and take a mount.
fn mount(system: &System) -> Finding {
    const NAME: &str = "hugepage_mount";
    let mounts = system.text("/proc/mounts").unwrap_or_default();
    let mut fields = mounts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    match fields.find(|fields| fields.get(2) == Some(&"hugetlbfs")) {
        Some(fields) => Finding::ok(NAME, fields.get(1).copied().unwrap_or_default()),
        None => Finding::ok(NAME, "none: Forebay needs none, a guest with -mem-path does"),
    }
}

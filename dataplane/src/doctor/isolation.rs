//! Cores that nobody else runs on: a worker that is interrupted drops what comes meanwhile.

use super::system::add_boot_argument;
use super::{Finding, Subject, System};
use forebay_pipeline::cores;

const CPUS: &str = "/sys/devices/system/cpu";

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let all = cores::format(&subject.cores);
    let mut findings = vec![left_over(system, subject)];
    let isolated = system.cores(format!("{CPUS}/isolated")).unwrap_or_default();
    findings.push(covered(
        subject,
        "isolated_cores",
        &isolated,
        "the scheduler puts other threads there",
        &format!("isolcpus=managed_irq,domain,{all}"),
    ));
    let tickless = system.cores(format!("{CPUS}/nohz_full")).unwrap_or_default();
    findings.push(covered(
        subject,
        "tickless_cores",
        &tickless,
        "the timer's tick interrupts workers",
        &format!("nohz_full={all}"),
    ));
    // A core without a tick has its callbacks elsewhere, too.
    let mut without = system.boot_argument("rcu_nocbs").map_or_else(Vec::new, |list| {
        let everybody = || system.cores(format!("{CPUS}/possible")).unwrap_or_default();
        if list == "all" { everybody() } else { cores::parse(&list).unwrap_or_default() }
    });
    without.extend(&tickless);
    findings.push(covered(
        subject,
        "rcu_callbacks",
        &without,
        "the kernel frees its memory on workers' time",
        &format!("rcu_nocbs={all}"),
    ));
    findings.push(threads(system, subject));
    findings
}

/// Whether `has` contains each worker's core.
fn covered(subject: &Subject, name: &'static str, has: &[usize], harm: &str, words: &str) -> Finding {
    let bare: Vec<usize> = subject.cores.iter().copied().filter(|core| !has.contains(core)).collect();
    if bare.is_empty() {
        return Finding::ok(name, format!("cores {}", cores::format(&subject.cores)));
    }
    Finding::warn(name, format!("not cores {}: {harm}", cores::format(&bare)), add_boot_argument(words))
}

/// Whether a core is left for the rest of the machine.
fn left_over(system: &System, subject: &Subject) -> Finding {
    const NAME: &str = "spare_cores";
    let online = system.cores(format!("{CPUS}/online")).unwrap_or_default();
    let spare: Vec<usize> = online.into_iter().filter(|core| !subject.cores.contains(core)).collect();
    let count = spare.len() as u64;
    let finding = if spare.is_empty() {
        let remedy = "leave a core to the kernel and the control side: set workers.cores in the config file";
        Finding::warn(NAME, "none: the control side runs on the cores of workers", remedy)
    } else {
        Finding::ok(NAME, format!("cores {}", cores::format(&spare)))
    };
    finding.with("cores", count)
}

/// Whether two workers share the units of one physical core.
fn threads(system: &System, subject: &Subject) -> Finding {
    const NAME: &str = "core_siblings";
    let siblings = |core: usize| {
        system.cores(format!("{CPUS}/cpu{core}/topology/thread_siblings_list")).unwrap_or_default()
    };
    let pair = subject.cores.iter().find_map(|&core| {
        let other = siblings(core).into_iter().find(|other| *other > core && subject.cores.contains(other));
        other.map(|other| (core, other))
    });
    match pair {
        None => Finding::ok(NAME, "no two workers share a physical core"),
        Some((core, other)) => Finding::warn(
            NAME,
            format!("workers on cores {core} and {other} share a physical core: each has half of it"),
            format!(
                "take one of them out of workers.cores, and leave it idle: echo 0 > {CPUS}/cpu{other}/online"
            ),
        ),
    }
}

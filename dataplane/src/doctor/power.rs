//! Clock and sleep of the workers' cores: how fast they are, and how long they take to wake.

use super::{Finding, Subject, System};
use forebay_pipeline::cores;

const CPUS: &str = "/sys/devices/system/cpu";

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    vec![governor(system, subject), sleep(system, subject)]
}

fn governor(system: &System, subject: &Subject) -> Finding {
    const NAME: &str = "cpu_governor";
    let of = |core: usize| Some((core, system.text(format!("{CPUS}/cpu{core}/cpufreq/scaling_governor"))?));
    let known: Vec<(usize, String)> = subject.cores.iter().filter_map(|core| of(*core)).collect();
    let slow: Vec<usize> =
        known.iter().filter(|(_, name)| name != "performance").map(|(core, _)| *core).collect();
    match known.iter().find(|(_, name)| name != "performance") {
        None if known.is_empty() => Finding::ok(NAME, "the kernel does not choose the clock"),
        None => Finding::ok(NAME, "performance"),
        Some((_, name)) => {
            let list = cores::format(&slow);
            let value = format!("{name} on cores {list}: their clock follows the load of the past");
            let each = slow.iter().map(|core| format!("cpu{core}")).collect::<Vec<_>>().join(" ");
            let file = "cpufreq/scaling_governor";
            Finding::warn(
                NAME,
                value,
                format!("for cpu in {each}; do echo performance > {CPUS}/$cpu/{file}; done"),
            )
        }
    }
}

/// A core may sleep no deeper than a packet may wait.
fn sleep(system: &System, subject: &Subject) -> Finding {
    const NAME: &str = "cpu_sleep";
    if !subject.sleeps {
        return Finding::ok(NAME, "workers do not sleep: workers.idle is busy-poll");
    }
    let limit = u64::from(subject.max_added_latency_us);
    let states = subject.cores.iter().flat_map(|core| {
        let folder = format!("{CPUS}/cpu{core}/cpuidle");
        system.names(&folder).into_iter().map(move |state| format!("{folder}/{state}"))
    });
    let enabled = states.filter(|state| system.number(format!("{state}/disable")) == Some(0));
    let wake_us = |state: String| {
        let latency = u64::try_from(system.number(format!("{state}/latency"))?).ok()?;
        Some((latency, system.text(format!("{state}/name")).unwrap_or_default()))
    };
    let Some((latency, name)) = enabled.filter_map(wake_us).max() else {
        return Finding::ok(NAME, "the kernel does not choose how cores sleep");
    };
    let seen = format!("{name} takes {latency} us to wake from, max_added_latency_us is {limit}");
    let finding = if latency <= limit {
        Finding::ok(NAME, seen)
    } else {
        let list = cores::format(&subject.cores);
        // Disables the states that take as long or longer.
        Finding::warn(NAME, seen, format!("cpupower -c {list} idle-set -D {}", limit + 1))
    };
    finding.with("wake_us", latency)
}

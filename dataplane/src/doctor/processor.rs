//! The processor: instructions that DPDK is compiled for, a time-stamp counter that can be a clock, exact timers.

use super::{Finding, Level, Subject, System};

/// Debian's DPDK is compiled for processors that have it: without, EAL does not start.
const NEEDED: &[&str] = &["sse4_2"];

/// With these, drivers of fast cards take their wide receive and transmit paths.
const WELCOME: &[&str] = &["avx2"];

/// Time sources that are read without a system call.
const FAST_CLOCKS: &[&str] = &["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"];

const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

pub(super) fn examine(system: &System, _: &Subject) -> Vec<Finding> {
    let mut findings = Vec::new();
    let text = system.text("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    // Only x86 lists its instructions so; elsewhere DPDK's base is that of the architecture.
    if let Some((_, flags)) = line {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        findings.push(instructions(&flags));
        findings.push(counter(&flags));
    }
    findings.extend(system.text(CLOCK).map(|clock| clock_source(&clock)));
    findings.extend(timers(system));
    findings
}

fn instructions(flags: &[&str]) -> Finding {
    const NAME: &str = "cpu_instructions";
    let lacks = |wanted: &[&'static str]| {
        let missing: Vec<&str> = wanted.iter().copied().filter(|flag| !flags.contains(flag)).collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    };
    let remedy = "in a virtual machine, pass the host's processor on: qemu-system-x86_64 -cpu host";
    match (lacks(NEEDED), lacks(WELCOME)) {
        (Some(missing), _) => {
            Finding::bad(Level::Fail, NAME, format!("no {missing}: DPDK does not start"), remedy)
        }
        (None, Some(missing)) => {
            Finding::warn(NAME, format!("no {missing}: drivers take their narrow paths"), remedy)
        }
        (None, None) if flags.contains(&"avx512f") => Finding::ok(NAME, "SSE4.2, AVX2, AVX-512"),
        (None, None) => Finding::ok(NAME, "SSE4.2, AVX2"),
    }
}

fn counter(flags: &[&str]) -> Finding {
    const NAME: &str = "tsc";
    match (flags.contains(&"constant_tsc"), flags.contains(&"nonstop_tsc")) {
        (true, true) => Finding::ok(NAME, "invariant"),
        _ => Finding::warn(
            NAME,
            "not invariant: its rate changes with the clock of the core, and so do measured times",
            "in a virtual machine, pass it on: qemu-system-x86_64 -cpu host,+invtsc; else switch it on in the BIOS",
        ),
    }
}

fn clock_source(clock: &str) -> Finding {
    const NAME: &str = "clock_source";
    if FAST_CLOCKS.contains(&clock) {
        return Finding::ok(NAME, clock);
    }
    let value = format!("{clock}: to read the time is a system call");
    Finding::warn(NAME, value, format!("echo tsc > {CLOCK} (and boot with tsc=reliable)"))
}

/// Whether sleeps end when they should, not at the next tick of some milliseconds.
fn timers(system: &System) -> Option<Finding> {
    const NAME: &str = "timer_resolution";
    let text = system.text("/proc/timer_list")?;
    let active = text.lines().find_map(|line| line.trim().strip_prefix(".hres_active")?.split_once(':'))?;
    Some(match active.1.trim() {
        "1" => Finding::ok(NAME, "high"),
        _ => Finding::warn(
            NAME,
            "the tick's: a nap of a worker takes milliseconds",
            "remove highres=off and nohz=off from GRUB_CMDLINE_LINUX in /etc/default/grub; update-grub && reboot",
        ),
    })
}

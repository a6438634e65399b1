//! What the kernel lets this process have: locked memory and open files. A service gets its own from its unit.

use super::capabilities::{self, IPC_LOCK};
use super::devices::{self, Keeper};
use super::{Finding, Level, Subject, System};
use crate::config::Hugepages;

/// Files beside those of packet memory: devices and their queues, the control socket's clients, the state.
const OWN_FILES: u64 = 512;

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let text = system.text("/proc/self/limits").unwrap_or_default();
    let mut findings = Vec::new();
    findings.extend(soft(&text, "Max locked memory").map(|limit| locked(system, subject, limit)));
    findings.extend(soft(&text, "Max open files").map(|limit| files(subject, limit)));
    findings
}

/// The soft limit of that name; `u64::MAX` where there is none.
fn soft(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// vfio pins all packet memory; whoever has CAP_IPC_LOCK is not asked how much.
fn locked(system: &System, subject: &Subject, limit_bytes: u64) -> Finding {
    const NAME: &str = "locked_memory_limit";
    let pins =
        devices::of_config(system, subject).iter().any(|device| !matches!(device.keeper, Keeper::Shared(_)));
    let (needed, limit) = (subject.memory_mib, limit_bytes >> 20);
    if limit_bytes == u64::MAX {
        return Finding::ok(NAME, "unlimited");
    }
    let finding = if limit >= needed {
        Finding::ok(NAME, format!("{limit} MiB"))
    } else if capabilities::has(system, IPC_LOCK) {
        Finding::ok(NAME, format!("{limit} MiB, which CAP_IPC_LOCK overrides"))
    } else {
        let level = if pins { Level::Fail } else { Level::Warn };
        let value = format!("{limit} MiB, vfio-pci locks {needed} MiB of packet memory");
        Finding::bad(level, NAME, value, "ulimit -l unlimited; in the service's unit: LimitMEMLOCK=infinity")
    };
    finding.with("limit_mib", limit).with("needed_mib", needed)
}

/// DPDK keeps a file open for each huge page.
fn files(subject: &Subject, limit: u64) -> Finding {
    const NAME: &str = "open_files_limit";
    let pages = if subject.hugepages == Hugepages::Off { 0 } else { subject.memory_mib / 2 };
    let needed = OWN_FILES + pages;
    if limit == u64::MAX {
        return Finding::ok(NAME, "unlimited");
    }
    let finding = if limit >= needed {
        Finding::ok(NAME, limit.to_string())
    } else {
        let level =
            if limit < pages && subject.hugepages == Hugepages::Required { Level::Fail } else { Level::Warn };
        let value = format!("{limit}: packet memory in huge pages takes {pages}, all else up to {OWN_FILES}");
        let room = needed.next_power_of_two();
        Finding::bad(
            level,
            NAME,
            value,
            format!("ulimit -n {room}; in the service's unit: LimitNOFILE={room}"),
        )
    };
    finding.with("limit_files", limit).with("needed_files", needed)
}

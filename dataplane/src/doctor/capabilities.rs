//! What this process may do, against what the devices of the config file take.

use super::devices::{self, Keeper};
use super::{Finding, Level, Subject, System};

/// Pins memory without limit.
pub(super) const IPC_LOCK: u32 = 14;
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_RAWIO: u32 = 17;
const SYS_ADMIN: u32 = 21;

/// Number, name, and who takes it.
const ALL: [(u32, &str, &str); 5] = [
    (NET_ADMIN, "CAP_NET_ADMIN", "tap, af_packet, af_xdp and mlx5 devices"),
    (NET_RAW, "CAP_NET_RAW", "af_packet, af_xdp and mlx5 devices"),
    (IPC_LOCK, "CAP_IPC_LOCK", "packet memory that vfio-pci and mlx5 lock"),
    (SYS_RAWIO, "CAP_SYS_RAWIO", "cards below uio"),
    (SYS_ADMIN, "CAP_SYS_ADMIN", "af_xdp devices, and physical addresses of packet memory below uio"),
];

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    const NAME: &str = "capability";
    let needed = needed(system, subject);
    let finding = |(number, name, who): (u32, &str, &str)| {
        let is_needed = needed.contains(&number);
        let finding = if has(system, number) {
            Finding::ok(NAME, "held")
        } else if subject.asked && !is_needed {
            Finding::ok(NAME, "not held, and no device of the config file takes it")
        } else {
            let level = if is_needed { Level::Fail } else { Level::Warn };
            let remedy = format!("run as root; in the service's unit: AmbientCapabilities={name}");
            Finding::bad(level, NAME, format!("not held: {who} take it"), remedy)
        };
        finding.of(name)
    };
    ALL.into_iter().map(finding).collect()
}

/// Whether this process has a capability.
pub(super) fn has(system: &System, number: u32) -> bool {
    let status = system.text("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> number & 1 == 1
}

fn needed(system: &System, subject: &Subject) -> Vec<u32> {
    let mut needed = Vec::new();
    let mut takes = |kinds: &[&str], capabilities: &[u32]| {
        if subject.ports_of(kinds).next().is_some() {
            needed.extend_from_slice(capabilities);
        }
    };
    takes(&["tap"], &[NET_ADMIN]);
    takes(&["af_packet"], &[NET_ADMIN, NET_RAW]);
    takes(&["af_xdp"], &[NET_ADMIN, NET_RAW, SYS_ADMIN]);
    for device in devices::of_config(system, subject) {
        match device.keeper {
            Keeper::Handed(driver) if driver != "vfio-pci" => needed.extend([SYS_RAWIO, SYS_ADMIN]),
            // vfio-pci is content with a limit that is high enough, which has a finding of its own.
            Keeper::Handed(_) | Keeper::Kernel(_) => {}
            Keeper::Shared(_) => needed.extend([NET_ADMIN, NET_RAW, IPC_LOCK]),
        }
    }
    needed
}

//! The IOMMU, without which no function is handed to vfio-pci, and vfio-pci itself.

use super::devices::{self, Keeper};
use super::system::add_boot_argument;
use super::{Finding, Level, Subject, System};

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let needs =
        devices::of_config(system, subject).iter().any(|device| !matches!(device.keeper, Keeper::Shared(_)));
    let level = if needs { Level::Fail } else { Level::Warn };
    vec![groups(system, level), module(system, level)]
}

fn groups(system: &System, level: Level) -> Finding {
    const NAME: &str = "iommu";
    let count = system.names("/sys/kernel/iommu_groups").len() as u64;
    let passes = system.boot_argument("iommu").as_deref() == Some("pt");
    if count > 0 {
        let how = if passes { "the kernel's own devices pass it by" } else { "all devices go through it" };
        return Finding::ok(NAME, format!("{count} groups, {how}")).with("groups", count);
    }
    let is_intel = system.text("/proc/cpuinfo").is_some_and(|text| text.contains("GenuineIntel"));
    let (name, words) =
        if is_intel { ("VT-d", "intel_iommu=on iommu=pt") } else { ("AMD-Vi (IOMMU)", "iommu=pt") };
    let line = system.text("/proc/cmdline").unwrap_or_default();
    let has_words = words.split(' ').all(|word| line.split_whitespace().any(|have| have == word));
    let command = if has_words { "reboot".into() } else { add_boot_argument(words) };
    let value = "no groups: vfio-pci takes no function";
    Finding::bad(level, NAME, value, format!("switch {name} on in the BIOS; {command}")).with("groups", 0)
}

fn module(system: &System, level: Level) -> Finding {
    const NAME: &str = "vfio_pci";
    if system.has("/sys/bus/pci/drivers/vfio-pci") {
        return Finding::ok(NAME, "loaded");
    }
    let remedy = "modprobe vfio-pci && echo vfio-pci > /etc/modules-load.d/forebay.conf";
    Finding::bad(level, NAME, "not loaded", remedy)
}

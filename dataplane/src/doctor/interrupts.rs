//! Who else is sent to the cores of workers: interrupts of devices, and the kernel's unbound work (writes to disks end
//! there).

use super::{Finding, Subject, System};
use forebay_pipeline::cores;

const WORKQUEUES: &str = "/sys/devices/virtual/workqueue/cpumask";

pub(super) fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let online = system.cores("/sys/devices/system/cpu/online").unwrap_or_default();
    let others: Vec<usize> = online.into_iter().filter(|core| !subject.cores.contains(core)).collect();
    let mut findings = vec![interrupts(system, subject, &others)];
    findings.extend(work(system, subject, &others));
    findings
}

const NO_OTHER: &str = "leave a core to the rest of the machine: set workers.cores in the config file";

fn interrupts(system: &System, subject: &Subject, others: &[usize]) -> Finding {
    const NAME: &str = "irq_affinity";
    // Many numbers are nobody's.
    let is_used =
        |number: &String| system.text(format!("/sys/kernel/irq/{number}/actions")).as_deref() != Some("");
    let is_there = |number: &String| {
        let places = ["effective_affinity_list", "smp_affinity_list"];
        let cores = places.iter().find_map(|file| {
            system.cores(format!("/proc/irq/{number}/{file}")).filter(|cores| !cores.is_empty())
        });
        cores.is_some_and(|cores| cores.iter().any(|core| subject.cores.contains(core)))
    };
    let numbers = system.names("/proc/irq").into_iter().filter(|name| name.parse::<u32>().is_ok());
    let there: Vec<String> = numbers.filter(is_used).filter(is_there).collect();
    let count = there.len() as u64;
    let finding = if there.is_empty() {
        Finding::ok(NAME, "no device interrupts a worker's core")
    } else if others.is_empty() {
        Finding::warn(NAME, format!("{count} interrupts go to cores of workers"), NO_OTHER)
    } else {
        let shown = there.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        let more = if there.len() > 8 { ", ..." } else { "" };
        let to = cores::format(others);
        let remedy = format!(
            "systemctl disable --now irqbalance; for irq in /proc/irq/[0-9]*; do echo {to} > $irq/smp_affinity_list; done"
        );
        Finding::warn(NAME, format!("{count} interrupts go to cores of workers: {shown}{more}"), remedy)
    };
    finding.with("interrupts", count)
}

fn work(system: &System, subject: &Subject, others: &[usize]) -> Option<Finding> {
    const NAME: &str = "workqueue_affinity";
    let mask = cores_of_mask(&system.text(WORKQUEUES)?)?;
    let there: Vec<usize> = subject.cores.iter().copied().filter(|core| mask.contains(core)).collect();
    if there.is_empty() {
        return Some(Finding::ok(NAME, format!("cores {}", cores::format(&mask))));
    }
    let value = format!("unbound work of the kernel runs on workers' cores {}", cores::format(&there));
    let remedy = if others.is_empty() {
        NO_OTHER.to_owned()
    } else {
        format!("echo {} > {WORKQUEUES}", mask_of_cores(others))
    };
    Some(Finding::warn(NAME, value, remedy))
}

/// The cores of a mask as the kernel writes it: groups of 32 bits in hexadecimal, the highest first.
fn cores_of_mask(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for (index, group) in text.rsplit(',').enumerate() {
        let bits = u32::from_str_radix(group.trim(), 16).ok()?;
        cores.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| index * 32 + bit));
    }
    Some(cores)
}

/// The opposite of [`cores_of_mask`].
fn mask_of_cores(cores: &[usize]) -> String {
    let mut groups = vec![0_u32; cores.iter().max().map_or(1, |core| core / 32 + 1)];
    for core in cores {
        if let Some(group) = groups.get_mut(core / 32) {
            *group |= 1 << (core % 32);
        }
    }
    let mut words = groups.iter().rev();
    let first = words.next().map(|word| format!("{word:x}"));
    first.into_iter().chain(words.map(|word| format!("{word:08x}"))).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_groups_of_32_cores() {
        for (text, cores) in [("3", vec![0, 1]), ("f0", vec![4, 5, 6, 7]), ("1,80000001", vec![0, 31, 32])] {
            assert_eq!(cores_of_mask(text).unwrap(), cores);
            assert_eq!(mask_of_cores(&cores), text);
        }
        assert_eq!(cores_of_mask("ff,ffffffff").unwrap().len(), 40);
        assert_eq!(mask_of_cores(&[64]), "1,00000000,00000000");
        assert_eq!(cores_of_mask("x"), None);
    }
}

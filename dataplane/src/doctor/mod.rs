//! `forebay doctor`: what of this machine stands in the way of a dataplane, and what to do about it.
//!
//! Nothing is changed, no daemon is asked, and DPDK is not started: everything is read from the kernel's files, below a
//! root that tests replace ([`system::System`]). Each concern has a file; each of its findings has a name that stays, what
//! was seen, and a command that mends it. What is missing without which the config file cannot run fails; what costs speed
//! or steadiness warns.

mod capabilities;
mod devices;
mod finding;
mod folders;
mod hugepages;
mod interrupts;
mod iommu;
mod isolation;
mod limits;
mod memory;
mod numa;
mod power;
mod processor;
mod subject;
mod system;
#[cfg(test)]
mod tests;

pub use finding::{Finding, Level};
pub use subject::Subject;
pub use system::System;

/// Looks at everything. In the order of the way to a first packet: processor, memory, devices, cores, rights.
#[must_use]
pub fn examine(system: &System, subject: &Subject) -> Vec<Finding> {
    let concerns = [
        processor::examine,
        hugepages::examine,
        memory::examine,
        iommu::examine,
        devices::examine,
        numa::examine,
        isolation::examine,
        interrupts::examine,
        power::examine,
        limits::examine,
        capabilities::examine,
        folders::examine,
    ];
    concerns.iter().flat_map(|examine| examine(system, subject)).collect()
}

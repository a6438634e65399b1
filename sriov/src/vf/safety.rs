//! What must not be touched: what carries the host itself, what others use, and what the IOMMU cannot keep apart.

use std::net::IpAddr;

use super::VFIO_PCI;
use super::error::VfError;
use super::kernel::Kernel;
use super::sysfs::{Function, Sysfs};

/// What the host's own network needs, of the caller's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct HostNetwork {
    /// Interfaces that a default route leads through.
    pub(super) default_route: Vec<String>,
    /// Interfaces with their addresses.
    pub(super) addresses: Vec<(String, IpAddr)>,
}

impl HostNetwork {
    /// What the host uses an interface for; `None` where it can go.
    fn use_of(&self, interface: &str) -> Option<String> {
        if self.default_route.iter().any(|name| name == interface) {
            return Some("carries the host's default route".into());
        }
        let own = self.addresses.iter().find(|(name, address)| name == interface && !is_automatic(address));
        own.map(|(_, address)| format!("has the address {address}"))
    }
}

/// The kernel gives one of these to every interface, whether or not anybody uses it.
fn is_automatic(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Errors: an interface of the function, or one that stands on it, is one that the host needs.
pub(super) fn leaves_the_host_alone(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    function: &Function,
) -> Result<(), VfError> {
    if function.interfaces.is_empty() {
        return Ok(());
    }
    let network = kernel
        .host_network()
        .map_err(|source| VfError::Ask { what: "the host's routes and addresses".into(), source })?;
    for interface in function.interfaces.iter().flat_map(|name| sysfs.with_uppers(name)) {
        if let Some(what) = network.use_of(&interface) {
            let object = format!("function {}", function.address);
            return Err(VfError::CarriesHost { object, interface, what });
        }
    }
    Ok(())
}

/// Errors: a process has the function open. Taking it away would hold up whoever tries, for as long as that lives.
pub(super) fn nobody_has_it_open(kernel: &dyn Kernel, function: &Function) -> Result<(), VfError> {
    let user = function.iommu_group.and_then(|group| kernel.group_user(group));
    match user {
        Some(user) => Err(VfError::InUse { address: function.address.clone(), user }),
        None => Ok(()),
    }
}

/// Errors: others are in the function's IOMMU group. With `force` only those count that have a driver of the host's:
/// vfio itself refuses these.
pub(super) fn is_alone_in_its_group(sysfs: &Sysfs, function: &Function, force: bool) -> Result<(), VfError> {
    let Some(group) = function.iommu_group else { return Ok(()) };
    let members = sysfs.group_members(group);
    let others = members.iter().filter(|address| **address != function.address).filter_map(|address| {
        // One that has just gone is not there any more.
        let driver = sysfs.function(address).ok()?.driver;
        let harmless = driver.as_deref().is_none_or(|driver| driver == VFIO_PCI);
        let driver = driver.as_deref().unwrap_or("no driver");
        (!force || !harmless).then(|| format!("{address} ({driver})"))
    });
    let others: Vec<String> = others.collect();
    if others.is_empty() {
        return Ok(());
    }
    let address = function.address.clone();
    Err(VfError::SharedGroup { address, group, others: others.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Machine;
    use super::*;

    fn checked(machine: &Machine, address: &str) -> Result<(), VfError> {
        let sysfs = machine.sysfs();
        leaves_the_host_alone(&sysfs, &machine.kernel(), &sysfs.function(address).unwrap())
    }

    #[test]
    fn what_carries_the_host_is_named() {
        let machine = Machine::new();
        machine.pf("0000:3b:00.0", "ens1", 8);
        machine.pf("0000:3b:00.1", "ens2", 8);
        assert!(checked(&machine, "0000:3b:00.0").is_ok());
        machine.address("ens1", "fe80::1");
        assert!(checked(&machine, "0000:3b:00.0").is_ok(), "a link-local address is no use");
        machine.address("ens1", "192.0.2.1");
        let error = checked(&machine, "0000:3b:00.0").unwrap_err().to_string();
        assert!(
            error.contains("interface ens1 has the address 192.0.2.1") && error.contains("--force"),
            "{error}"
        );
        machine.upper("ens2", "bond0");
        machine.default_route("bond0");
        let error = checked(&machine, "0000:3b:00.1").unwrap_err().to_string();
        assert!(error.contains("interface bond0 carries the host's default route"), "{error}");
    }

    #[test]
    fn a_shared_group_is_refused_with_the_others() {
        let machine = Machine::new();
        machine.pf("0000:3b:00.0", "ens1", 8);
        machine.vfs("0000:3b:00.0", &["0000:3b:02.0", "0000:3b:02.1", "0000:3b:02.2"]);
        for address in ["0000:3b:02.0", "0000:3b:02.1"] {
            machine.join_group(address, 40);
        }
        machine.bridge("0000:3a:00.0", 40);
        let sysfs = machine.sysfs();
        let check =
            |address: &str, force| is_alone_in_its_group(&sysfs, &sysfs.function(address).unwrap(), force);
        assert!(check("0000:3b:02.2", false).is_ok());
        let error = check("0000:3b:02.0", false).unwrap_err().to_string();
        assert!(
            error.contains("group 40 with 0000:3b:02.1 (no driver),") && !error.contains("0000:3a"),
            "{error}"
        );
        assert!(check("0000:3b:02.0", true).is_ok(), "who insists may, where vfio takes it");
        machine.drive("0000:3b:02.1", "igbvf");
        let error = check("0000:3b:02.0", true).unwrap_err().to_string();
        assert!(error.contains("0000:3b:02.1 (igbvf)"), "{error}");
    }
}

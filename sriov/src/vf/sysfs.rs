//! PCI functions of NICs, as sysfs shows them (Documentation/ABI/testing/sysfs-bus-pci of the kernel).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::error::VfError;
use super::target::Target;

/// Where the kernel shows its devices.
pub(super) const ROOT: &str = "/sys";

/// The first byte of a network controller's class (PCI Code and ID Assignment).
const NETWORK_CLASS: u32 = 0x02;

/// The two upper bytes of a PCI bridge's class. An IOMMU group with bridges in it is isolated all the same.
const BRIDGE_CLASS: u32 = 0x0604;

/// One PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `0000:3b:02.1`
    pub address: String,
    /// PF, VF or neither.
    pub kind: FunctionKind,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// The only driver that may take it, where one is set.
    pub driver_override: Option<String>,
    /// The memory node that it is near to; `None` where the machine has one node or does not say.
    pub numa_node: Option<u32>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<u32>,
    /// Its network interfaces, sorted. Those in other network namespaces are not seen.
    pub interfaces: Vec<String>,
    /// PCI vendor.
    pub vendor_id: u16,
    /// PCI device, of that vendor.
    pub device_id: u16,
}

/// What a function is to SR-IOV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionKind {
    /// It can have VFs.
    Physical {
        /// How many there are.
        num_vfs: u32,
        /// How many there can be.
        total_vfs: u32,
    },
    /// It is a VF.
    Virtual {
        /// Its PF's address.
        pf: String,
        /// Its number on the PF, from 0.
        index: u32,
    },
    /// It has nothing to do with SR-IOV.
    Plain,
}

impl Function {
    /// Whether it can have VFs.
    #[must_use]
    pub fn is_pf(&self) -> bool {
        matches!(self.kind, FunctionKind::Physical { .. })
    }

    /// What people call it: its interface where it has one here, else its address.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.interfaces.first().unwrap_or(&self.address)
    }
}

/// A tree of sysfs.
pub(super) struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn function_path(&self, address: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(address)
    }

    pub(super) fn driver_path(&self, driver: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(driver)
    }

    pub(super) fn probe_path(&self) -> PathBuf {
        self.root.join("bus/pci/drivers_probe")
    }

    /// The switch of vfio's mode without IOMMU. Missing where the kernel has no such mode, or vfio is not loaded.
    pub(super) fn no_iommu_path(&self) -> PathBuf {
        self.root.join("module/vfio/parameters/enable_unsafe_noiommu_mode")
    }

    /// Every function of a NIC, sorted by address.
    pub(super) fn functions(&self) -> Result<Vec<Function>, VfError> {
        let folder = self.root.join("bus/pci/devices");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A machine without PCI has no such folder.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(VfError::read(&folder, error)),
        };
        let mut addresses: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        addresses.sort_unstable();
        let is_nic = |address: &String| self.class(address).is_some_and(|class| class >> 16 == NETWORK_CLASS);
        addresses.iter().filter(|address| is_nic(address)).map(|address| self.function(address)).collect()
    }

    /// The function at an address, of whatever class.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn function(&self, address: &str) -> Result<Function, VfError> {
        let path = self.function_path(address);
        if !path.exists() {
            return Err(VfError::NoFunction { target: address.to_owned() });
        }
        let kind = match (link_name(&path.join("physfn")), number(&path.join("sriov_totalvfs"))) {
            (Some(pf), _) => {
                let index = self.index_of(&pf, address)?;
                FunctionKind::Virtual { pf, index }
            }
            (None, Some(total_vfs)) => {
                let num_vfs = number(&path.join("sriov_numvfs")).unwrap_or(0);
                FunctionKind::Physical { num_vfs, total_vfs }
            }
            (None, None) => FunctionKind::Plain,
        };
        let group = link_name(&path.join("iommu_group"));
        Ok(Function {
            address: address.to_owned(),
            kind,
            driver: link_name(&path.join("driver")),
            // The kernel writes a word for none.
            driver_override: text(&path.join("driver_override")).filter(|name| name != "(null)"),
            // -1 where there is but one.
            numa_node: text(&path.join("numa_node")).and_then(|node| node.parse().ok()),
            iommu_group: group.and_then(|group| group.parse().ok()),
            interfaces: names(&path.join("net")),
            vendor_id: hex(&path.join("vendor")).and_then(|id| u16::try_from(id).ok()).unwrap_or(0),
            device_id: hex(&path.join("device")).and_then(|id| u16::try_from(id).ok()).unwrap_or(0),
        })
    }

    /// The function that a target names.
    pub(super) fn find(&self, target: &Target) -> Result<Function, VfError> {
        match target {
            Target::Address(address) => self.function(address),
            Target::Interface(name) => self.pf(name),
            Target::Vf { pf, index } => {
                let pf = self.pf(pf)?;
                let FunctionKind::Physical { num_vfs, .. } = pf.kind else {
                    return Err(VfError::NoSriov { pf: pf.short_name().to_owned() });
                };
                let link = self.function_path(&pf.address).join(format!("virtfn{index}"));
                match link_name(&link) {
                    Some(address) => self.function(&address),
                    None => {
                        let pf = pf.short_name().to_owned();
                        Err(VfError::NoVf { pf, index: *index, num_vfs })
                    }
                }
            }
        }
    }

    /// A PF, or whatever function it is, by its interface's name or its address.
    pub(super) fn pf(&self, name: &str) -> Result<Function, VfError> {
        if self.function_path(name).exists() {
            return self.function(name);
        }
        let device = fs::canonicalize(self.root.join("class/net").join(name).join("device")).ok();
        let address = device.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        match address {
            Some(address) if self.function_path(address).exists() => self.function(address),
            _ => Err(VfError::NoPf { name: name.to_owned() }),
        }
    }

    /// The functions of an IOMMU group, but for bridges, sorted.
    pub(super) fn group_members(&self, group: u32) -> Vec<String> {
        let folder = self.root.join("kernel/iommu_groups").join(group.to_string()).join("devices");
        let is_bridge =
            |address: &String| self.class(address).is_some_and(|class| class >> 8 == BRIDGE_CLASS);
        names(&folder).into_iter().filter(|address| !is_bridge(address)).collect()
    }

    /// The interface and all that stand on it: bonds, bridges, VLANs.
    pub(super) fn with_uppers(&self, interface: &str) -> Vec<String> {
        let mut all = vec![interface.to_owned()];
        let mut next = 0;
        while let Some(name) = all.get(next) {
            next += 1;
            let entries = names(&self.root.join("class/net").join(name));
            for upper in entries.iter().filter_map(|entry| entry.strip_prefix("upper_")) {
                if !all.iter().any(|known| known == upper) {
                    all.push(upper.to_owned());
                }
            }
        }
        all
    }

    /// Whether the kernel binds drivers to new VFs by itself; `None` where it does not say.
    pub(super) fn autoprobe(&self, pf: &str) -> Option<String> {
        text(&self.function_path(pf).join("sriov_drivers_autoprobe"))
    }

    fn class(&self, address: &str) -> Option<u32> {
        hex(&self.function_path(address).join("class"))
    }

    fn index_of(&self, pf: &str, vf: &str) -> Result<u32, VfError> {
        let folder = self.function_path(pf);
        let found = names(&folder).iter().find_map(|entry| {
            let index = entry.strip_prefix("virtfn")?.parse().ok()?;
            (link_name(&folder.join(entry)).as_deref() == Some(vf)).then_some(index)
        });
        // It went away between two looks.
        found.ok_or_else(|| VfError::NoFunction { target: vf.to_owned() })
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(path: &Path) -> Option<u32> {
    text(path)?.parse().ok()
}

fn hex(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.trim_start_matches("0x"), 16).ok()
}

/// The last part of what a link leads to.
fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The names in a folder, sorted; none where there is no folder.
fn names(folder: &Path) -> Vec<String> {
    let entries: io::Result<fs::ReadDir> = fs::read_dir(folder);
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::super::fake::Machine;
    use super::*;

    #[test]
    fn functions_are_read_with_all_that_concerns_them() {
        let machine = Machine::new();
        machine.pf("0000:3b:00.0", "ens1", 8);
        machine.vfs("0000:3b:00.0", &["0000:3b:02.0", "0000:3b:02.1"]);
        let sysfs = machine.sysfs();
        let all = sysfs.functions().unwrap();
        let addresses: Vec<&str> = all.iter().map(|function| function.address.as_str()).collect();
        assert_eq!(addresses, ["0000:3b:00.0", "0000:3b:02.0", "0000:3b:02.1"]);
        assert_eq!(all[0].kind, FunctionKind::Physical { num_vfs: 2, total_vfs: 8 });
        assert_eq!((all[0].driver.as_deref(), all[0].numa_node), (Some("ixgbe"), None));
        assert_eq!((all[0].vendor_id, all[0].device_id), (0x8086, 0x10c9));
        assert_eq!(all[2].kind, FunctionKind::Virtual { pf: "0000:3b:00.0".into(), index: 1 });
        assert_eq!((all[2].driver.clone(), all[2].driver_override.clone()), (None, None));
        assert_eq!(all[2].iommu_group, Some(11));
    }

    #[test]
    fn targets_lead_to_functions_and_wrong_ones_to_a_remedy() {
        let machine = Machine::new();
        machine.pf("0000:3b:00.0", "ens1", 8);
        machine.vfs("0000:3b:00.0", &["0000:3b:02.0"]);
        let sysfs = machine.sysfs();
        let find = |text: &str| sysfs.find(&text.parse().unwrap());
        assert_eq!(find("ens1/0").unwrap().address, "0000:3b:02.0");
        assert_eq!(find("3b:00.0/0").unwrap().address, "0000:3b:02.0");
        assert_eq!(find("3b:02.0").unwrap().address, "0000:3b:02.0");
        assert_eq!(find("ens1").unwrap().address, "0000:3b:00.0");
        for (text, part) in [
            ("ens1/1", "has 1 VFs (make more"),
            ("ens2", "no interface"),
            ("3b:02.7", "no PCI function 0000:3b:02.7"),
            ("3b:02.0/0", "has no SR-IOV"),
        ] {
            let error = find(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_stands_on_an_interface_is_found() {
        let machine = Machine::new();
        machine.pf("0000:3b:00.0", "ens1", 8);
        machine.upper("ens1", "bond0");
        machine.upper("bond0", "br0");
        assert_eq!(machine.sysfs().with_uppers("ens1"), ["ens1", "bond0", "br0"]);
    }
}

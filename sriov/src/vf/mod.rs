//! The life cycle of SR-IOV virtual functions: listed, created, given to vfio-pci, and given back.
//!
//! What is there is read from sysfs at each call; nothing is cached, because the host changes beside us. What is changed
//! is written down first ([`record`]), so that another process, or this one after a crash, can restore it. A change that
//! fails half-way is undone ([`undo`]). What carries the host itself is left alone unless the caller insists ([`safety`]).
//!
//! Two ends of a function's settings: the function's driver is bound here, on the function; MAC address, VLAN, spoof check,
//! trust, link state and rates belong to its PF, and go there through netlink.

mod bind;
mod create;
mod error;
#[cfg(test)]
mod fake;
mod kernel;
mod netlink;
mod prepare;
mod record;
mod release;
mod safety;
mod settings;
mod sysfs;
pub(crate) mod target;
mod undo;

use std::path::PathBuf;

pub use bind::{BindOptions, Bound};
pub use create::Created;
pub use error::VfError;
pub use kernel::User;
pub use record::Owner;
pub use release::Released;
pub use settings::{LinkState, VfSettings};
pub use sysfs::{Function, FunctionKind};
pub use target::{Target, TargetError};

use kernel::{Kernel, LiveKernel};
use record::RecordFile;
use sysfs::Sysfs;

/// The driver that hands a function over to user space, guarded by the IOMMU.
pub const VFIO_PCI: &str = "vfio-pci";

/// The PCI functions of this host, and what was done to them.
pub struct Functions {
    sysfs: Sysfs,
    kernel: Box<dyn Kernel>,
    records: RecordFile,
}

/// A function as [`Functions::list`] gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// As sysfs has it.
    pub function: Function,
    /// `PF/INDEX` for a VF, the interface's name or the address for a PF.
    pub name: String,
    /// What the PF has set for it. All unknown where that cannot be asked, and for PFs.
    pub settings: VfSettings,
    /// Who bound it, or made the VFs of this PF; `None` where Forebay did not.
    pub owner: Option<Owner>,
}

impl Functions {
    /// The functions of this machine.
    #[must_use]
    pub fn of_this_host() -> Self {
        Self {
            sysfs: Sysfs::new(PathBuf::from(sysfs::ROOT)),
            kernel: Box::new(LiveKernel),
            records: RecordFile::new(PathBuf::from(record::FOLDER)),
        }
    }

    /// Every PF and VF of a NIC, PFs before their VFs.
    ///
    /// # Errors
    /// Sysfs cannot be read, or the record is damaged.
    pub fn list(&self) -> Result<Vec<Listed>, VfError> {
        let functions = self.sysfs.functions()?;
        let records = self.records.read()?;
        let mut listed = Vec::new();
        for pf in functions.iter().filter(|function| function.is_pf()) {
            let owner = records.physical.get(&pf.address).map(|record| record.owner.clone());
            listed.push(self.listed(pf.clone(), pf.short_name().to_owned(), VfSettings::default(), owner));
            let mut vfs: Vec<(u32, &Function)> = functions
                .iter()
                .filter_map(|function| match &function.kind {
                    FunctionKind::Virtual { pf: of, index } if *of == pf.address => Some((*index, function)),
                    _ => None,
                })
                .collect();
            vfs.sort_by_key(|(index, _)| *index);
            for (index, vf) in vfs {
                // A PF whose interface is elsewhere, or whose driver has no answer, is no reason to show nothing.
                let settings =
                    pf.interfaces.first().and_then(|name| self.kernel.vf_settings(name, index).ok());
                let owner = records.functions.get(&vf.address).map(|record| record.owner.clone());
                let name = format!("{}/{index}", pf.short_name());
                listed.push(self.listed(vf.clone(), name, settings.unwrap_or_default(), owner));
            }
        }
        Ok(listed)
    }

    fn listed(&self, function: Function, name: String, settings: VfSettings, owner: Option<Owner>) -> Listed {
        Listed { function, name, settings, owner }
    }

    /// The function that a target names.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, target: &Target) -> Result<Function, VfError> {
        self.sysfs.find(target)
    }
}

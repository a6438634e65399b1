//! Giving back: everything as it was before Forebay changed it.

use super::Functions;
use super::bind::{apply, rebind};
use super::create::{set_autoprobe, set_num_vfs, vfs_are_unused};
use super::error::VfError;
use super::record::{FunctionRecord, Locked, Owner};
use super::safety;
use super::sysfs::{Function, FunctionKind};
use super::target::Target;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Released {
    /// Functions that have their former driver and settings.
    pub functions: Vec<String>,
    /// PFs that have their former number of VFs, and that number.
    pub physical: Vec<(String, u32)>,
}

impl Functions {
    /// Restores a function; or a PF's VFs, and then the PF's number of them.
    ///
    /// # Errors
    /// Forebay has not changed it, somebody uses it, or something cannot be restored; what can be is restored all the same.
    pub fn release(&self, target: &Target, force: bool) -> Result<Released, VfError> {
        let mut locked = self.records.lock()?;
        let function = self.sysfs.find(target)?;
        let mut released = Released::default();
        let address = &function.address;
        let mut failed = Vec::new();
        if function.is_pf() {
            for vf in locked.records.vfs_of(address) {
                self.note(&mut failed, &mut released, &mut locked, &vf);
            }
        }
        if locked.records.functions.contains_key(address) {
            self.note(&mut failed, &mut released, &mut locked, address);
        }
        if failed.is_empty() && locked.records.physical.contains_key(address) {
            self.restore_num_vfs(&mut locked, &function, force, &mut released)?;
        }
        match failed.len() {
            0 if released == Released::default() => {
                let object = match &function.kind {
                    FunctionKind::Physical { .. } => format!("PF {}", function.short_name()),
                    _ => format!("function {address}"),
                };
                Err(VfError::NotOurs { object })
            }
            0 => Ok(released),
            1 => Err(failed.remove(0)),
            _ => Err(left(&failed)),
        }
    }

    /// Restores whatever this owner has changed. PFs whose VFs others use go over to one of these.
    ///
    /// # Errors
    /// Something cannot be restored; what can be is restored all the same.
    pub fn release_all_of(&self, owner: &Owner) -> Result<Released, VfError> {
        let mut locked = self.records.lock()?;
        let mut released = Released::default();
        let mut failed = Vec::new();
        let own = locked.records.functions.iter().filter(|(_, record)| record.owner == *owner);
        let addresses: Vec<String> = own.map(|(address, _)| address.clone()).collect();
        for address in addresses {
            self.note(&mut failed, &mut released, &mut locked, &address);
        }
        let own = locked.records.physical.iter().filter(|(_, record)| record.owner == *owner);
        let pfs: Vec<String> = own.map(|(address, _)| address.clone()).collect();
        for address in pfs {
            let rest = locked.records.vfs_of(&address);
            let heir = rest
                .first()
                .and_then(|vf| locked.records.functions.get(vf))
                .map(|record| record.owner.clone());
            let done = match heir {
                Some(heir) => {
                    if let Some(record) = locked.records.physical.get_mut(&address) {
                        record.owner = heir;
                    }
                    locked.save()
                }
                None => self
                    .sysfs
                    .function(&address)
                    .and_then(|pf| self.restore_num_vfs(&mut locked, &pf, false, &mut released)),
            };
            failed.extend(done.err());
        }
        if failed.is_empty() { Ok(released) } else { Err(left(&failed)) }
    }

    /// Restores a function if this owner has changed it, and leaves its PF's number of VFs alone.
    ///
    /// # Errors
    /// It cannot be restored.
    pub fn release_if_of(&self, owner: &Owner, address: &str) -> Result<(), VfError> {
        if self.records.read()?.functions.get(address).is_none_or(|record| record.owner != *owner) {
            return Ok(());
        }
        let mut locked = self.records.lock()?;
        self.restore(&mut locked, address)
    }

    fn note(&self, failed: &mut Vec<VfError>, released: &mut Released, locked: &mut Locked, address: &str) {
        match self.restore(locked, address) {
            Ok(()) => released.functions.push(address.to_owned()),
            Err(error) => failed.push(error),
        }
    }

    /// Restores a function by its record, which is gone then.
    fn restore(&self, locked: &mut Locked, address: &str) -> Result<(), VfError> {
        let Some(record) = locked.records.functions.get(address).cloned() else { return Ok(()) };
        let done = match self.sysfs.function(address) {
            // A VF that is gone has nothing to be restored; its number may be another one's by now.
            Err(VfError::NoFunction { .. }) => Ok(()),
            Err(error) => return Err(error),
            Ok(function) => {
                safety::nobody_has_it_open(&*self.kernel, &function)?;
                let (driver, limit) = (record.former_driver.as_deref(), record.former_override.as_deref());
                // Without it nothing else counts, and it can be tried again.
                rebind(&self.sysfs, &*self.kernel, address, driver, limit)?;
                self.restore_settings(&record)
            }
        };
        locked.records.functions.remove(address);
        locked.save()?;
        let last = record.no_iommu && !locked.records.functions.values().any(|other| other.no_iommu);
        let switched = match self.sysfs.no_iommu_path() {
            path if last && path.exists() => self.kernel.write(&path, "N").map_err(|source| VfError::Write {
                object: format!("function {address}"),
                step: "switch vfio's mode without IOMMU off".into(),
                source,
            }),
            _ => Ok(()),
        };
        done.and(switched)
    }

    fn restore_settings(&self, record: &FunctionRecord) -> Result<(), VfError> {
        let Some((pf, index)) = &record.vf else { return Ok(()) };
        if record.former_settings.is_empty() {
            return Ok(());
        }
        let Some(name) = self.sysfs.function(pf)?.interfaces.into_iter().next() else {
            return Err(VfError::NoPfInterface { vf: format!("{pf}/{index}"), pf: pf.clone() });
        };
        let now = self.kernel.vf_settings(&name, *index).unwrap_or_default();
        let each = record.former_settings.each(&now).into_iter();
        let failed: Vec<VfError> =
            each.filter_map(|setting| apply(&*self.kernel, &name, *index, setting).err()).collect();
        if failed.is_empty() { Ok(()) } else { Err(left(&failed)) }
    }

    fn restore_num_vfs(
        &self,
        locked: &mut Locked,
        pf: &Function,
        force: bool,
        released: &mut Released,
    ) -> Result<(), VfError> {
        let FunctionKind::Physical { num_vfs, .. } = pf.kind else { return Ok(()) };
        let Some(record) = locked.records.physical.get(&pf.address).cloned() else { return Ok(()) };
        let former = record.former_vfs;
        if num_vfs != former {
            vfs_are_unused(&self.sysfs, &*self.kernel, pf, num_vfs, force, &locked.records)?;
        }
        if let Some(former) = &record.former_autoprobe {
            set_autoprobe(&self.sysfs, &*self.kernel, pf, former)?;
        }
        if num_vfs != former {
            set_num_vfs(&self.sysfs, &*self.kernel, pf, num_vfs, former)?;
        }
        locked.records.physical.remove(&pf.address);
        locked.save()?;
        released.physical.push((pf.short_name().to_owned(), former));
        Ok(())
    }
}

fn left(failed: &[VfError]) -> VfError {
    let all: Vec<String> = failed.iter().map(ToString::to_string).collect();
    VfError::HalfRestored { left: all.join("; ") }
}

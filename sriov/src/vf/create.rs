//! Making VFs, and unmaking them.

use super::error::VfError;
use super::kernel::Kernel;
use super::record::{Owner, PfRecord, Records};
use super::safety;
use super::sysfs::{Function, FunctionKind, Sysfs};
use super::target::Target;
use super::undo::Undo;
use super::{Functions, VFIO_PCI};

/// What [`Functions::create`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The PF.
    pub pf: Function,
    /// How many VFs it has now.
    pub num_vfs: u32,
    /// How many it had.
    pub former_vfs: u32,
}

impl Functions {
    /// Gives a PF this many VFs. They have no driver then, and get none by themselves until the PF is released: a network
    /// manager would take their interfaces, and a driver would have to be driven out again.
    ///
    /// # Errors
    /// It has no SR-IOV or not that much, it has another number of VFs already, it carries the host itself (the last two
    /// not with `force`), or the kernel refuses. Then it is as before.
    pub fn create(&self, pf: &Target, count: u32, force: bool, owner: &Owner) -> Result<Created, VfError> {
        let mut locked = self.records.lock()?;
        let pf = self.sysfs.find(pf)?;
        let former_vfs = self.may_have(&pf, count, force, &locked.records)?;
        let created = Created { pf, num_vfs: count, former_vfs };
        if former_vfs == count {
            return Ok(created);
        }
        let before = locked.records.clone();
        let former_autoprobe = self.sysfs.autoprobe(&created.pf.address);
        let record =
            PfRecord { former_vfs, former_autoprobe: former_autoprobe.clone(), owner: owner.clone() };
        // What was before the first change is what must be restored.
        locked.records.physical.entry(created.pf.address.clone()).or_insert(record);
        for gone in locked.records.vfs_of(&created.pf.address) {
            locked.records.functions.remove(&gone);
        }
        locked.save()?;
        let (sysfs, kernel, pf) = (&self.sysfs, &*self.kernel, &created.pf);
        let mut undo = Undo::default();
        let quiet = former_autoprobe.as_ref().filter(|_| count != 0).map(|former| {
            set_autoprobe(sysfs, kernel, pf, "0")?;
            undo.push("drivers do not take new VFs by themselves".into(), || {
                set_autoprobe(sysfs, kernel, pf, former)
            });
            Ok(())
        });
        let done = quiet.unwrap_or(Ok(())).and_then(|()| set_num_vfs(sysfs, kernel, pf, former_vfs, count));
        if let Err(cause) = done {
            let error = undo.after(cause);
            locked.records = before;
            locked.save()?;
            return Err(error);
        }
        drop(undo);
        Ok(created)
    }

    /// Gives how many VFs there are.
    fn may_have(&self, pf: &Function, count: u32, force: bool, records: &Records) -> Result<u32, VfError> {
        let name = pf.short_name().to_owned();
        let FunctionKind::Physical { num_vfs, total_vfs } = pf.kind else {
            return Err(VfError::NoSriov { pf: name });
        };
        if count > total_vfs {
            return Err(VfError::TooMany { pf: name, count, total_vfs });
        }
        if num_vfs == count {
            return Ok(num_vfs);
        }
        if num_vfs != 0 {
            if !force {
                return Err(VfError::OtherCount { pf: name, count, num_vfs });
            }
            // Nobody can insist on this: who has one open would hold up the kernel.
            vfs_are_unused(&self.sysfs, &*self.kernel, pf, num_vfs, true, records)?;
        }
        if !force {
            safety::leaves_the_host_alone(&self.sysfs, &*self.kernel, pf)?;
        }
        Ok(num_vfs)
    }
}

/// Errors: a VF of the PF is in use. With `force` only an open one counts.
pub(super) fn vfs_are_unused(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    pf: &Function,
    num_vfs: u32,
    force: bool,
    records: &Records,
) -> Result<(), VfError> {
    for index in 0..num_vfs {
        let vf = match sysfs.find(&Target::Vf { pf: pf.address.clone(), index }) {
            Err(VfError::NoVf { .. } | VfError::NoFunction { .. }) => continue,
            found => found?,
        };
        safety::nobody_has_it_open(kernel, &vf)?;
        let foreign = vf.driver.as_ref().filter(|driver| *driver != VFIO_PCI);
        if let (Some(driver), false) = (foreign, force || records.functions.contains_key(&vf.address)) {
            let object = format!("VF {}/{index}", pf.short_name());
            let interface = vf.interfaces.first().unwrap_or(&vf.address).clone();
            let what = format!("is driven by {driver}, which Forebay did not arrange");
            return Err(VfError::CarriesHost { object, interface, what });
        }
    }
    Ok(())
}

/// Changes the number of VFs. It can only go through 0, and the kernel says so only after the fact.
pub(super) fn set_num_vfs(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    pf: &Function,
    from: u32,
    to: u32,
) -> Result<(), VfError> {
    let num_vfs = |count: u32| {
        write(sysfs, kernel, pf, "sriov_numvfs", &count.to_string(), &format!("make {count} VFs"))
    };
    let emptied = if from == 0 { Ok(()) } else { num_vfs(0) };
    let filled = emptied.and_then(|()| if to == 0 { Ok(()) } else { num_vfs(to) });
    filled.map_err(|cause| {
        let mut undo = Undo::default();
        if from != 0 {
            undo.push(format!("the {from} VFs are gone"), || num_vfs(0).and_then(|()| num_vfs(from)));
        }
        undo.after(cause)
    })
}

/// Tells the kernel whether drivers may take VFs by themselves: those that come, and those that have none when a driver is
/// loaded.
pub(super) fn set_autoprobe(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    pf: &Function,
    value: &str,
) -> Result<(), VfError> {
    let step = "say whether drivers may take its VFs by themselves";
    write(sysfs, kernel, pf, "sriov_drivers_autoprobe", value, step)
}

fn write(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    pf: &Function,
    file: &str,
    value: &str,
    step: &str,
) -> Result<(), VfError> {
    kernel.write(&sysfs.function_path(&pf.address).join(file), value).map_err(|source| VfError::Write {
        object: format!("PF {}", pf.short_name()),
        step: step.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::super::BindOptions;
    use super::super::fake::{Machine, PF, VF0};
    use super::super::record::Records;
    use super::*;

    fn pf() -> Target {
        Target::Interface("ens1".into())
    }

    #[test]
    fn vfs_are_made_without_drivers_and_unmade() {
        let machine = Machine::new();
        machine.pf(PF, "ens1", 8);
        let functions = machine.functions();
        let created = functions.create(&pf(), 3, false, &Owner::Command).unwrap();
        assert_eq!((created.former_vfs, created.num_vfs), (0, 3));
        let listed = functions.list().unwrap();
        assert_eq!(listed.len(), 4);
        assert!(listed[1..].iter().all(|vf| vf.function.driver.is_none()));
        assert_eq!(listed[0].owner, Some(Owner::Command));
        assert_eq!(machine.autoprobe(PF), "0", "nor do they get one when a driver is loaded");
        // Asked for again, nothing happens.
        assert_eq!(functions.create(&pf(), 3, false, &Owner::Command).unwrap().former_vfs, 3);

        let released = functions.release(&pf(), false).unwrap();
        assert_eq!(released.physical, [("ens1".to_owned(), 0)]);
        assert_eq!((functions.list().unwrap().len(), machine.autoprobe(PF).as_str()), (1, "1"));
        assert_eq!(functions.records.read().unwrap(), Records::default());
    }

    #[test]
    fn what_a_pf_cannot_have_is_refused() {
        let machine = Machine::with_two_vfs();
        let functions = machine.functions();
        let refusal =
            |count, force| functions.create(&pf(), count, force, &Owner::Command).unwrap_err().to_string();
        assert!(refusal(9, false).contains("9 VFs are more than it can have, 8"));
        let error = refusal(4, false);
        assert!(error.contains("has 2 VFs, 4 were asked for") && error.contains("--force"), "{error}");
        machine.open(VF0, 4711, "qemu");
        assert!(refusal(4, true).contains("qemu"), "who has one open would hold up the kernel");
        machine.close(VF0);
        assert_eq!(functions.create(&pf(), 4, true, &Owner::Command).unwrap().former_vfs, 2);
        let function = Target::Address(VF0.into());
        let error = functions.create(&function, 1, false, &Owner::Command).unwrap_err().to_string();
        assert!(error.contains("has no SR-IOV"), "{error}");
    }

    #[test]
    fn a_pf_that_carries_the_host_is_left_alone() {
        let machine = Machine::new();
        machine.pf(PF, "ens1", 8);
        machine.address("ens1", "192.0.2.1");
        let functions = machine.functions();
        let error = functions.create(&pf(), 1, false, &Owner::Command).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
        assert!(functions.create(&pf(), 1, true, &Owner::Command).is_ok());
    }

    #[test]
    fn vfs_that_cannot_be_made_leave_everything_as_it_was() {
        let machine = Machine::new();
        machine.pf(PF, "ens1", 8);
        machine.refuse("sriov_numvfs");
        let functions = machine.functions();
        let error = functions.create(&pf(), 1, false, &Owner::Command).unwrap_err().to_string();
        assert!(error.contains("PF ens1: cannot make 1 VFs"), "{error}");
        assert_eq!(machine.autoprobe(PF), "1");
        assert_eq!(functions.records.read().unwrap(), Records::default());
    }

    #[test]
    fn vfs_that_others_use_are_not_unmade() {
        let machine = Machine::new();
        machine.pf(PF, "ens1", 8);
        let functions = machine.functions();
        functions.create(&pf(), 2, false, &Owner::Command).unwrap();
        machine.drive(VF0, "igbvf");
        let error = functions.release(&pf(), false).unwrap_err().to_string();
        assert!(error.contains("is driven by igbvf") && error.contains("--force"), "{error}");
        assert!(functions.release(&pf(), true).is_ok());

        // A daemon that ends leaves the VFs to the one that goes on with them.
        let (one, two) = (Owner::Daemon("one".into()), Owner::Daemon("two".into()));
        functions.create(&pf(), 2, false, &one).unwrap();
        for (index, owner) in [(0, &one), (1, &two)] {
            let target = Target::Vf { pf: "ens1".into(), index };
            functions.bind(&target, &BindOptions::new(owner.clone())).unwrap();
        }
        assert_eq!(functions.release_all_of(&one).unwrap().physical, []);
        assert_eq!(functions.list().unwrap().len(), 3);
        assert_eq!(functions.release_all_of(&two).unwrap().physical, [("ens1".to_owned(), 0)]);
        assert_eq!(functions.records.read().unwrap(), Records::default());
    }
}

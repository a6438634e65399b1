//! What a daemon does with the functions of its ports before DPDK opens them.

use std::collections::BTreeMap;

use super::Functions;
use super::bind::BindOptions;
use super::error::VfError;
use super::record::Owner;
use super::settings::VfSettings;
use super::sysfs::FunctionKind;
use super::target::Target;
use crate::device_spec::DeviceSpec;
use crate::precheck::serves_dpdk;

impl Functions {
    /// Makes the VFs that these devices name, where their PF has none. All of a daemon's at once: the number can be
    /// changed only while there are none.
    ///
    /// # Errors
    /// A PF has VFs, and fewer than that; or see [`Functions::create`].
    pub fn make_vfs<'a>(
        &self,
        devices: impl Iterator<Item = &'a DeviceSpec>,
        owner: &Owner,
    ) -> Result<(), VfError> {
        // By address: two names may mean one PF.
        let mut wanted: BTreeMap<String, u32> = BTreeMap::new();
        for device in devices {
            if let DeviceSpec::Vf { pf, index, .. } = device {
                let count = wanted.entry(self.sysfs.pf(pf)?.address).or_default();
                *count = (*count).max(index + 1);
            }
        }
        for (address, count) in wanted {
            let pf = self.sysfs.function(&address)?;
            match pf.kind {
                FunctionKind::Physical { num_vfs, .. } if num_vfs >= count => {}
                _ => drop(self.create(&Target::Address(address), count, false, owner)?),
            }
        }
        Ok(())
    }

    /// Gives what DPDK opens for a device: for a VF its address. What stands on a PCI function is bound to vfio-pci, unless
    /// a driver has it that works with DPDK; for a VF, its PF sets what is to be set.
    ///
    /// # Errors
    /// See [`Functions::bind`].
    pub fn prepare(
        &self,
        device: &DeviceSpec,
        settings: VfSettings,
        owner: &Owner,
    ) -> Result<DeviceSpec, VfError> {
        let (target, settings) = match device {
            DeviceSpec::Vf { pf, index, .. } => (Target::Vf { pf: pf.clone(), index: *index }, settings),
            DeviceSpec::Pci { address, .. } => (Target::Address(address.clone()), VfSettings::default()),
            _ => return Ok(device.clone()),
        };
        let function = self.find(&target)?;
        let mut options = BindOptions { settings, ..BindOptions::new(owner.clone()) };
        if let Some(driver) = function.driver.filter(|driver| serves_dpdk(driver)) {
            options.driver = driver;
        }
        let bound = matches!(device, DeviceSpec::Pci { .. }) && options.driver != super::VFIO_PCI;
        if !bound {
            self.bind(&target, &options)?;
        }
        Ok(device.at(&function.address))
    }

    /// What DPDK opens for a device, without changing anything.
    pub(crate) fn resolve(&self, device: &DeviceSpec) -> Result<DeviceSpec, VfError> {
        match device {
            DeviceSpec::Vf { pf, index, .. } => {
                let target = Target::Vf { pf: pf.clone(), index: *index };
                Ok(device.at(&self.find(&target)?.address))
            }
            _ => Ok(device.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Machine, PF, VF0, VF1};
    use super::*;

    fn spec(text: &str) -> DeviceSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_daemon_gets_its_vfs_made_and_bound_and_they_go_with_it() {
        let machine = Machine::new();
        machine.pf(PF, "ens1", 8);
        let functions = machine.functions();
        let owner = Owner::Daemon("host-a".into());
        let devices = [spec("vf:ens1/0"), spec("tap:vm1"), spec(&format!("vf:{PF}/1,a=b"))];
        functions.make_vfs(devices.iter(), &owner).unwrap();
        let settings = VfSettings { mac: Some([2; 6]), ..VfSettings::default() };
        let opened: Vec<String> = devices
            .iter()
            .map(|device| functions.prepare(device, settings, &owner).unwrap().to_string())
            .collect();
        assert_eq!(opened, [format!("pci:{VF0}"), "tap:vm1".into(), format!("pci:{VF1},a=b")]);
        assert_eq!(machine.settings("ens1", 1).mac, Some([2; 6]));
        // One more is one too many now.
        let error = functions.make_vfs([spec("vf:ens1/2")].iter(), &owner).unwrap_err().to_string();
        assert!(error.contains("has 2 VFs, 3 were asked for"), "{error}");

        functions.release_if_of(&Owner::Daemon("host-b".into()), VF0).unwrap();
        assert!(functions.find(&Target::Address(VF0.into())).unwrap().driver.is_some());
        functions.release_if_of(&owner, VF0).unwrap();
        assert_eq!(functions.find(&Target::Address(VF0.into())).unwrap().driver, None);
        functions.release_all_of(&owner).unwrap();
        assert_eq!(functions.list().unwrap().len(), 1, "the VFs are gone");
    }

    #[test]
    fn a_function_that_works_with_dpdk_stays_as_it_is() {
        let machine = Machine::with_two_vfs();
        let functions = machine.functions();
        let owner = Owner::Daemon("host-a".into());
        for driver in ["mlx5_core", "vfio-pci"] {
            machine.drive(VF0, driver);
            let device = spec(&format!("pci:{VF0}"));
            assert_eq!(functions.prepare(&device, VfSettings::default(), &owner).unwrap(), device);
            assert_eq!(functions.find(&Target::Address(VF0.into())).unwrap().driver.as_deref(), Some(driver));
            assert!(functions.list().unwrap().iter().all(|listed| listed.owner.is_none()));
        }
    }
}

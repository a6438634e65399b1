//! Giving a function to a driver, with what its PF sets for it.

use super::error::VfError;
use super::kernel::Kernel;
use super::record::{FunctionRecord, Owner};
use super::safety;
use super::settings::VfSettings;
use super::sysfs::{Function, FunctionKind, Sysfs};
use super::target::Target;
use super::undo::Undo;
use super::{Functions, VFIO_PCI};

/// How a function is to be bound.
#[derive(Debug, Clone)]
pub struct BindOptions {
    /// The driver that shall have it.
    pub driver: String,
    /// What its PF shall set for it.
    pub settings: VfSettings,
    /// Without an IOMMU too: then the device can write anywhere in memory.
    pub no_iommu: bool,
    /// Even where it carries the host itself.
    pub force: bool,
    /// Who restores it.
    pub owner: Owner,
}

impl BindOptions {
    /// To vfio-pci, with the settings as they are.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        let driver = VFIO_PCI.to_owned();
        Self { driver, settings: VfSettings::default(), no_iommu: false, force: false, owner }
    }
}

/// What [`Functions::bind`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// The function as it was.
    pub before: Function,
    /// The driver that has it.
    pub driver: String,
    /// Nothing keeps the device from writing anywhere in memory.
    pub without_iommu: bool,
}

impl Functions {
    /// Binds a function to a driver, and makes its PF set what is to be set for it.
    ///
    /// # Errors
    /// The function carries the host itself or others are in its IOMMU group (unless `force`), there is no IOMMU (unless
    /// `no_iommu`), somebody uses it, or the kernel refuses. Then it is as before.
    pub fn bind(&self, target: &Target, options: &BindOptions) -> Result<Bound, VfError> {
        let mut locked = self.records.lock()?;
        let function = self.sysfs.find(target)?;
        let without_iommu = self.may_bind(&function, options)?;
        let pf = self.pf_of(&function, options)?;
        let now = match &pf {
            Some((name, index)) => self.kernel.vf_settings(name, *index).unwrap_or_default(),
            None => VfSettings::default(),
        };

        let before = locked.records.clone();
        let former_settings = now.changed_by(&options.settings);
        let rebinds = function.driver.as_deref() != Some(options.driver.as_str());
        if rebinds || !former_settings.is_empty() {
            let fresh = || self.record_of(&function, options.owner.clone());
            let record = locked.records.functions.entry(function.address.clone()).or_insert_with(fresh);
            // What was before the first change is what must be restored.
            record.former_settings = record.former_settings.or(&former_settings);
            record.no_iommu |= without_iommu;
            locked.save()?;
        }
        let mut undo = Undo::default();
        let done = self.change(&mut undo, &function, options, pf.as_ref(), &now, without_iommu);
        if let Err(cause) = done {
            let error = undo.after(cause);
            locked.records = before;
            locked.save()?;
            return Err(error);
        }
        let driver = options.driver.clone();
        Ok(Bound { before: function, driver, without_iommu })
    }

    fn record_of(&self, function: &Function, owner: Owner) -> FunctionRecord {
        FunctionRecord {
            vf: match &function.kind {
                FunctionKind::Virtual { pf, index } => Some((pf.clone(), *index)),
                _ => None,
            },
            former_driver: function.driver.clone(),
            former_override: function.driver_override.clone(),
            former_settings: VfSettings::default(),
            no_iommu: false,
            owner,
        }
    }

    /// Gives whether it goes without an IOMMU.
    fn may_bind(&self, function: &Function, options: &BindOptions) -> Result<bool, VfError> {
        if function.driver.as_deref() == Some(options.driver.as_str()) {
            return Ok(false);
        }
        if !options.force {
            safety::leaves_the_host_alone(&self.sysfs, &*self.kernel, function)?;
        }
        safety::nobody_has_it_open(&*self.kernel, function)?;
        if let FunctionKind::Physical { num_vfs: num_vfs @ 1.., .. } = function.kind {
            return Err(VfError::OtherCount { pf: function.short_name().to_owned(), count: 0, num_vfs });
        }
        let to_vfio = options.driver == VFIO_PCI;
        if to_vfio {
            safety::is_alone_in_its_group(&self.sysfs, function, options.force)?;
        }
        let address = &function.address;
        let without_iommu = to_vfio && function.iommu_group.is_none();
        if without_iommu && !options.no_iommu {
            return Err(VfError::NoIommu { address: address.clone() });
        }
        if !self.sysfs.driver_path(&options.driver).exists() {
            let loaded = self.kernel.load_module(&options.driver);
            let reason = loaded.err().unwrap_or_else(|| "it has no driver for PCI functions".into());
            if !self.sysfs.driver_path(&options.driver).exists() {
                return Err(VfError::NoDriver { driver: options.driver.clone(), reason });
            }
        }
        if without_iommu && !self.sysfs.no_iommu_path().exists() {
            return Err(VfError::NoIommuMode { address: address.clone() });
        }
        Ok(without_iommu)
    }

    /// The PF's interface and the VF's number, where something is to be set.
    fn pf_of(&self, function: &Function, options: &BindOptions) -> Result<Option<(String, u32)>, VfError> {
        if options.settings.is_empty() {
            return Ok(None);
        }
        let FunctionKind::Virtual { pf, index } = &function.kind else {
            return Err(VfError::NotVirtual { address: function.address.clone() });
        };
        match self.sysfs.function(pf)?.interfaces.into_iter().next() {
            Some(name) => Ok(Some((name, *index))),
            None => Err(VfError::NoPfInterface { vf: function.address.clone(), pf: pf.clone() }),
        }
    }

    fn change<'a>(
        &'a self,
        undo: &mut Undo<'a>,
        function: &Function,
        options: &BindOptions,
        pf: Option<&(String, u32)>,
        now: &VfSettings,
        without_iommu: bool,
    ) -> Result<(), VfError> {
        if let Some((name, index)) = pf {
            set(&*self.kernel, undo, name, *index, &options.settings, now)?;
        }
        if without_iommu {
            let path = self.sysfs.no_iommu_path();
            self.kernel.write(&path, "Y").map_err(|source| VfError::Write {
                object: format!("function {}", function.address),
                step: "switch vfio's mode without IOMMU on".into(),
                source,
            })?;
        }
        if function.driver.as_deref() == Some(options.driver.as_str()) {
            return Ok(());
        }
        let (former, former_override) = (function.driver.clone(), function.driver_override.clone());
        let address = function.address.clone();
        undo.push(format!("function {address} is without its former driver"), move || {
            rebind(&self.sysfs, &*self.kernel, &address, former.as_deref(), former_override.as_deref())
        });
        // The word for the driver stays: nothing else may take the function then, whatever is loaded later.
        let driver = options.driver.as_str();
        rebind(&self.sysfs, &*self.kernel, &function.address, Some(driver), Some(driver))
    }
}

/// Makes the PF set what is to be set, as far as it is not so already.
fn set<'a>(
    kernel: &'a dyn Kernel,
    undo: &mut Undo<'a>,
    pf: &str,
    index: u32,
    settings: &VfSettings,
    now: &VfSettings,
) -> Result<(), VfError> {
    let there = now.each(now);
    for setting in settings.each(now) {
        if there.contains(&setting) {
            continue;
        }
        apply(kernel, pf, index, setting)?;
        let former =
            there.iter().find(|former| std::mem::discriminant(*former) == std::mem::discriminant(&setting));
        if let Some(&former) = former {
            let pf = pf.to_owned();
            undo.push(format!("VF {pf}/{index} has another {setting}"), move || {
                apply(kernel, &pf, index, former)
            });
        }
    }
    Ok(())
}

/// Makes the PF set one thing.
pub(super) fn apply(
    kernel: &dyn Kernel,
    pf: &str,
    index: u32,
    setting: super::settings::Setting,
) -> Result<(), VfError> {
    match kernel.set_vf(pf, index, setting) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) && setting.holds_where_unknown() => {
            Ok(())
        }
        done => done.map_err(|source| VfError::Setting {
            pf: pf.to_owned(),
            index,
            setting: setting.to_string(),
            source,
        }),
    }
}

/// Gives a function to a driver (or to none), and then limits it to one (or to none). Whatever has it lets go first.
pub(super) fn rebind(
    sysfs: &Sysfs,
    kernel: &dyn Kernel,
    address: &str,
    driver: Option<&str>,
    limit: Option<&str>,
) -> Result<(), VfError> {
    let write = |path: &std::path::Path, value: &str, step: String| {
        let object = format!("function {address}");
        kernel.write(path, value).map_err(|source| VfError::Write { object, step, source })
    };
    let limit_to = |name: Option<&str>| {
        // An empty line lifts the limit.
        let path = sysfs.function_path(address).join("driver_override");
        write(&path, name.unwrap_or("\n"), format!("limit it to driver {}", name.unwrap_or("none")))
    };
    let now = sysfs.function(address)?.driver;
    if now.as_deref() != driver {
        if let Some(now) = &now {
            write(&sysfs.driver_path(now).join("unbind"), address, format!("take it from driver {now}"))?;
        }
        if let Some(driver) = driver {
            // Limited to it, the driver takes a VF even where the kernel keeps drivers off VFs.
            limit_to(Some(driver))?;
            // The reason for a refusal is in the kernel's log; here only that the driver has not taken it.
            let probed = write(&sysfs.probe_path(), address, format!("give it to driver {driver}"));
            let found = sysfs.function(address)?.driver;
            if found.as_deref() != Some(driver) {
                probed?;
                return Err(VfError::NotTaken {
                    address: address.to_owned(),
                    driver: driver.to_owned(),
                    found: found.unwrap_or_else(|| "none".into()),
                });
            }
        }
    }
    if sysfs.function(address)?.driver_override.as_deref() == limit { Ok(()) } else { limit_to(limit) }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Machine, PF, VF0, VF1};
    use super::super::record::Records;
    use super::*;

    fn options() -> BindOptions {
        BindOptions::new(Owner::Command)
    }

    #[test]
    fn a_function_is_bound_with_its_settings_and_given_back() {
        let machine = Machine::with_two_vfs();
        machine.drive(VF1, "igbvf");
        let functions = machine.functions();
        let target = Target::Vf { pf: "ens1".into(), index: 1 };
        let settings = VfSettings { mac: Some([2, 0, 0, 0, 1, 1]), vlan: Some(7), ..VfSettings::default() };
        let bound = functions.bind(&target, &BindOptions { settings, ..options() }).unwrap();
        assert_eq!((bound.before.driver.as_deref(), bound.without_iommu), (Some("igbvf"), false));
        let now = functions.find(&target).unwrap();
        assert_eq!((now.driver.as_deref(), now.driver_override.as_deref()), (Some(VFIO_PCI), Some(VFIO_PCI)));
        let listed = functions.list().unwrap();
        assert_eq!((listed[2].name.as_str(), &listed[2].owner), ("ens1/1", &Some(Owner::Command)));
        assert_eq!((listed[2].settings.mac, listed[2].settings.vlan), (settings.mac, Some(7)));

        // Another process knows, and another setting does not hide what was before the first.
        let later = VfSettings { vlan: Some(9), ..VfSettings::default() };
        machine.functions().bind(&target, &BindOptions { settings: later, ..options() }).unwrap();
        machine.functions().release(&target, false).unwrap();
        let now = functions.find(&target).unwrap();
        assert_eq!((now.driver.as_deref(), now.driver_override), (Some("igbvf"), None));
        assert_eq!(machine.settings("ens1", 1), Machine::fresh_settings());
        assert_eq!(functions.records.read().unwrap(), Records::default());
        let error = functions.release(&target, false).unwrap_err().to_string();
        assert!(error.contains(VF1) && error.contains("has not changed it"), "{error}");
    }

    #[test]
    fn a_bind_that_fails_half_way_is_undone() {
        let machine = Machine::with_two_vfs();
        machine.drive(VF0, "igbvf");
        machine.refuse(VFIO_PCI);
        let functions = machine.functions();
        let target = Target::Address(VF0.into());
        let settings =
            VfSettings { mac: Some([2, 0, 0, 0, 1, 1]), trust: Some(true), ..VfSettings::default() };
        let error = functions.bind(&target, &BindOptions { settings, ..options() }).unwrap_err();
        assert!(matches!(error, VfError::NotTaken { .. }), "{error}");
        let now = functions.find(&target).unwrap();
        assert_eq!((now.driver.as_deref(), now.driver_override), (Some("igbvf"), None));
        assert_eq!(machine.settings("ens1", 0), Machine::fresh_settings());
        assert_eq!(functions.records.read().unwrap(), Records::default());
    }

    #[test]
    fn a_setting_that_the_pf_refuses_undoes_those_before() {
        let machine = Machine::with_two_vfs();
        let settings = VfSettings { trust: Some(true), vlan: Some(5000), ..VfSettings::default() };
        let functions = machine.functions();
        let error =
            functions.bind(&Target::Address(VF0.into()), &BindOptions { settings, ..options() }).unwrap_err();
        assert!(error.to_string().contains("VF ens1/0: the PF does not take vlan 5000"), "{error}");
        assert_eq!(machine.settings("ens1", 0), Machine::fresh_settings());
        assert_eq!(functions.records.read().unwrap(), Records::default());
    }

    #[test]
    fn what_must_not_be_touched_is_not() {
        let machine = Machine::with_two_vfs();
        let functions = machine.functions();
        let refusal = |address: &str, options: &BindOptions| {
            functions.bind(&Target::Address(address.into()), options).unwrap_err().to_string()
        };
        assert!(refusal(PF, &options()).contains("has 2 VFs"));
        let settings = VfSettings { vlan: Some(7), ..VfSettings::default() };
        machine.pf("0000:3b:00.1", "ens2", 0);
        let error = refusal("0000:3b:00.1", &BindOptions { settings, ..options() });
        assert!(error.contains("is no VF"), "{error}");
        machine.default_route("ens2");
        assert!(refusal("0000:3b:00.1", &options()).contains("default route"));
        assert!(
            functions
                .bind(&Target::Address("0000:3b:00.1".into()), &BindOptions { force: true, ..options() })
                .is_ok()
        );

        machine.open(VF0, 4711, "qemu");
        let error = refusal(VF0, &options());
        assert!(error.contains("in use by qemu (process 4711)"), "{error}");
        let driver = "nosuch".to_owned();
        assert!(refusal(VF1, &BindOptions { driver, ..options() }).contains("driver nosuch: not there"));
        machine.leave_group(VF1);
        let error = refusal(VF1, &options());
        assert!(error.contains("no IOMMU group") && error.contains("--no-iommu"), "{error}");
    }

    #[test]
    fn without_an_iommu_only_on_request_and_switched_back() {
        let machine = Machine::with_two_vfs();
        machine.leave_group(VF0);
        let functions = machine.functions();
        let target = Target::Address(VF0.into());
        let request = BindOptions { no_iommu: true, ..options() };
        let error = functions.bind(&target, &request).unwrap_err().to_string();
        assert!(error.contains("CONFIG_VFIO_NOIOMMU"), "{error}");
        machine.offer_no_iommu();
        assert!(functions.bind(&target, &request).unwrap().without_iommu);
        assert_eq!(machine.no_iommu(), "Y");
        functions.release(&target, false).unwrap();
        assert_eq!(machine.no_iommu(), "N");
    }
}

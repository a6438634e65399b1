//! A machine for tests: a sysfs in a folder of its own, and a kernel that does there what the real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::Functions;
use super::kernel::{Kernel, User};
use super::record::RecordFile;
use super::safety::HostNetwork;
use super::settings::{LinkState, Setting, VfSettings};
use super::sysfs::Sysfs;

pub(super) const PF: &str = "0000:3b:00.0";
pub(super) const VF0: &str = "0000:3b:02.0";
pub(super) const VF1: &str = "0000:3b:02.1";

#[derive(Default)]
struct State {
    network: HostNetwork,
    settings: BTreeMap<(String, u32), VfSettings>,
    users: BTreeMap<u32, User>,
    /// Drivers, or files, that refuse.
    refusing: BTreeSet<String>,
}

/// The machine; what it gives out shares its state.
#[derive(Clone)]
pub(super) struct Machine {
    folder: Arc<TempDir>,
    state: Arc<Mutex<State>>,
}

impl Machine {
    pub(super) fn new() -> Self {
        let machine = Self { folder: Arc::new(tempfile::tempdir().unwrap()), state: Arc::default() };
        for driver in ["ixgbe", "igbvf", "vfio-pci", "mlx5_core"] {
            fs::create_dir_all(machine.path("bus/pci/drivers").join(driver)).unwrap();
        }
        machine
    }

    /// With a PF `ens1` that has the VFs [`VF0`] and [`VF1`].
    pub(super) fn with_two_vfs() -> Self {
        let machine = Self::new();
        machine.pf(PF, "ens1", 8);
        machine.vfs(PF, &[VF0, VF1]);
        machine
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join("sys").join(path)
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.path(""))
    }

    pub(super) fn kernel(&self) -> FakeKernel {
        FakeKernel(self.clone())
    }

    pub(super) fn functions(&self) -> Functions {
        Functions {
            sysfs: self.sysfs(),
            kernel: Box::new(self.kernel()),
            records: RecordFile::new(self.folder.path().join("run")),
        }
    }

    // ---- hardware

    fn function(&self, address: &str, class: &str, group: u32) {
        let folder = self.path("bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        for (file, value) in [
            ("class", class),
            ("vendor", "0x8086"),
            ("device", "0x10c9"),
            ("numa_node", "-1"),
            ("driver_override", "(null)"),
        ] {
            fs::write(folder.join(file), format!("{value}\n")).unwrap();
        }
        self.join_group(address, group);
    }

    pub(super) fn pf(&self, address: &str, interface: &str, total_vfs: u32) {
        let group = 1 + self.sysfs().functions().unwrap().len() as u32;
        self.function(address, "0x020000", group);
        let folder = self.path("bus/pci/devices").join(address);
        for (file, value) in [
            ("sriov_totalvfs", total_vfs.to_string()),
            ("sriov_numvfs", "0".into()),
            ("sriov_drivers_autoprobe", "1".into()),
        ] {
            fs::write(folder.join(file), value).unwrap();
        }
        self.drive(address, "ixgbe");
        fs::create_dir_all(folder.join("net").join(interface)).unwrap();
        let net = self.path("class/net").join(interface);
        fs::create_dir_all(&net).unwrap();
        symlink(folder, net.join("device")).unwrap();
    }

    pub(super) fn vfs(&self, pf: &str, addresses: &[&str]) {
        let folder = self.path("bus/pci/devices").join(pf);
        for (index, address) in addresses.iter().enumerate() {
            self.function(address, "0x020000", 10 + index as u32);
            let vf = self.path("bus/pci/devices").join(address);
            symlink(&folder, vf.join("physfn")).unwrap();
            symlink(&vf, folder.join(format!("virtfn{index}"))).unwrap();
            let interface = fs::read_dir(folder.join("net")).unwrap().next().unwrap().unwrap().file_name();
            let key = (interface.into_string().unwrap(), index as u32);
            self.state.lock().settings.insert(key, Self::fresh_settings());
        }
        fs::write(folder.join("sriov_numvfs"), addresses.len().to_string()).unwrap();
    }

    pub(super) fn bridge(&self, address: &str, group: u32) {
        self.function(address, "0x060400", group);
    }

    pub(super) fn drive(&self, address: &str, driver: &str) {
        let link = self.path("bus/pci/devices").join(address).join("driver");
        let _ = fs::remove_file(&link);
        symlink(self.path("bus/pci/drivers").join(driver), link).unwrap();
    }

    pub(super) fn leave_group(&self, address: &str) {
        let link = self.path("bus/pci/devices").join(address).join("iommu_group");
        if let Ok(group) = fs::read_link(&link) {
            fs::remove_file(group.join("devices").join(address)).unwrap();
            fs::remove_file(link).unwrap();
        }
    }

    pub(super) fn join_group(&self, address: &str, group: u32) {
        self.leave_group(address);
        let folder = self.path("kernel/iommu_groups").join(group.to_string());
        fs::create_dir_all(folder.join("devices")).unwrap();
        let device = self.path("bus/pci/devices").join(address);
        symlink(&folder, device.join("iommu_group")).unwrap();
        symlink(device, folder.join("devices").join(address)).unwrap();
    }

    // ---- what the host does

    pub(super) fn upper(&self, interface: &str, upper: &str) {
        fs::create_dir_all(self.path("class/net").join(interface).join(format!("upper_{upper}"))).unwrap();
    }

    pub(super) fn address(&self, interface: &str, address: &str) {
        self.state.lock().network.addresses.push((interface.into(), address.parse().unwrap()));
    }

    pub(super) fn default_route(&self, interface: &str) {
        self.state.lock().network.default_route.push(interface.into());
    }

    pub(super) fn open(&self, address: &str, pid: u32, program: &str) {
        let group = self.sysfs().function(address).unwrap().iommu_group.unwrap();
        self.state.lock().users.insert(group, User { pid, program: program.into() });
    }

    pub(super) fn close(&self, address: &str) {
        let group = self.sysfs().function(address).unwrap().iommu_group.unwrap();
        self.state.lock().users.remove(&group);
    }

    pub(super) fn refuse(&self, what: &str) {
        self.state.lock().refusing.insert(what.into());
    }

    pub(super) fn offer_no_iommu(&self) {
        fs::create_dir_all(self.path("module/vfio/parameters")).unwrap();
        fs::write(self.sysfs().no_iommu_path(), "N").unwrap();
    }

    // ---- what came of it

    pub(super) fn no_iommu(&self) -> String {
        fs::read_to_string(self.sysfs().no_iommu_path()).unwrap()
    }

    pub(super) fn autoprobe(&self, pf: &str) -> String {
        self.sysfs().autoprobe(pf).unwrap()
    }

    pub(super) fn settings(&self, pf: &str, index: u32) -> VfSettings {
        self.state.lock().settings[&(pf.to_owned(), index)]
    }

    pub(super) fn fresh_settings() -> VfSettings {
        VfSettings {
            mac: Some([0; 6]),
            vlan: Some(0),
            spoof_check: Some(true),
            trust: Some(false),
            link_state: Some(LinkState::Auto),
            min_rate_mbps: Some(0),
            max_rate_mbps: Some(0),
        }
    }

    fn set_num_vfs(&self, pf: &str, value: &str) -> io::Result<()> {
        let folder = self.path("bus/pci/devices").join(pf);
        let now: u32 = fs::read_to_string(folder.join("sriov_numvfs"))?.trim().parse().unwrap();
        let count: u32 = value.parse().unwrap();
        if now != 0 && count != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        for index in 0..now {
            let link = folder.join(format!("virtfn{index}"));
            let vf = fs::read_link(&link)?;
            self.leave_group(vf.file_name().unwrap().to_str().unwrap());
            fs::remove_dir_all(vf)?;
            fs::remove_file(link)?;
        }
        let addresses: Vec<String> = (0..count).map(|index| format!("0000:3b:02.{index}")).collect();
        self.vfs(pf, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
        if self.autoprobe(pf) == "1" {
            addresses.iter().for_each(|address| self.drive(address, "igbvf"));
        }
        Ok(())
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        let function = self.sysfs().function(address).unwrap();
        // The kernel says nothing of a driver that refuses.
        let refused = |driver: &String| self.state.lock().refusing.contains(driver);
        match function.driver_override.filter(|driver| !refused(driver)) {
            Some(driver) if function.driver.is_none() => {
                self.drive(address, &driver);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The kernel of a [`Machine`].
pub(super) struct FakeKernel(Machine);

impl Kernel for FakeKernel {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let Self(machine) = self;
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let file = name(path);
        if machine.state.lock().refusing.contains(&file) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match file.as_str() {
            "sriov_numvfs" => machine.set_num_vfs(&name(path.parent().unwrap()), value),
            "drivers_probe" => machine.probe(value),
            "unbind" => {
                let link = machine.path("bus/pci/devices").join(value).join("driver");
                assert_eq!(fs::read_link(&link)?, path.parent().unwrap(), "it has that driver");
                fs::remove_file(link)
            }
            "driver_override" => fs::write(path, if value == "\n" { "(null)\n" } else { value }),
            _ => {
                assert!(path.exists(), "{}", path.display());
                fs::write(path, value)
            }
        }
    }

    fn load_module(&self, name: &str) -> Result<(), String> {
        Err(format!("Module {name} not found"))
    }

    fn host_network(&self) -> io::Result<HostNetwork> {
        Ok(self.0.state.lock().network.clone())
    }

    fn vf_settings(&self, pf_interface: &str, index: u32) -> io::Result<VfSettings> {
        let state = self.0.state.lock();
        state
            .settings
            .get(&(pf_interface.to_owned(), index))
            .copied()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_vf(&self, pf_interface: &str, index: u32, setting: Setting) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let settings = state.settings.get_mut(&(pf_interface.to_owned(), index)).unwrap();
        match setting {
            Setting::Mac(mac) => settings.mac = Some(mac),
            Setting::Vlan(id) if id > 4094 => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
            Setting::Vlan(id) => settings.vlan = Some(id),
            Setting::SpoofCheck(on) => settings.spoof_check = Some(on),
            Setting::Trust(on) => settings.trust = Some(on),
            Setting::LinkState(state) => settings.link_state = Some(state),
            Setting::Rate { min_mbps, max_mbps } => {
                (settings.min_rate_mbps, settings.max_rate_mbps) = (Some(min_mbps), Some(max_mbps));
            }
        }
        Ok(())
    }

    fn group_user(&self, group: u32) -> Option<User> {
        self.0.state.lock().users.get(&group).cloned()
    }
}

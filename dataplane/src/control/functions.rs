//! The PCI functions that a host's ports stand on, for as long as the host runs.

use crate::config::{self, Device as Place};
use crate::control::host::HostError;
use forebay_sriov::DeviceSpec;
use forebay_sriov::vf::{Functions, Owner, VfSettings};
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes and binds what ports need, and restores it: of a port that goes, and of all when the host ends.
pub(super) struct PortFunctions {
    functions: Functions,
    owner: Owner,
    /// Nothing is to be restored where no port stands on a PCI function.
    used: AtomicBool,
}

impl PortFunctions {
    pub(super) fn new(host: &str) -> Self {
        let owner = Owner::Daemon(host.to_owned());
        Self { functions: Functions::of_this_host(), owner, used: AtomicBool::new(false) }
    }

    /// Makes the VFs that ports name, where their PF has none.
    ///
    /// # Errors
    /// There is no such PF, or it cannot have them.
    pub(super) fn make_vfs<'a>(
        &self,
        ports: impl Iterator<Item = &'a config::Port>,
    ) -> Result<(), HostError> {
        let specs: Vec<DeviceSpec> = ports
            .filter_map(|port| match &port.device {
                Place::Dpdk(text) => text.parse().ok().filter(|spec| matches!(spec, DeviceSpec::Vf { .. })),
                Place::Vlan { .. } => None,
            })
            .collect();
        if specs.is_empty() {
            return Ok(());
        }
        self.used.store(true, Ordering::Relaxed);
        Ok(self.functions.make_vfs(specs.iter(), &self.owner)?)
    }

    /// Binds what the port's device stands on, and gives what DPDK opens for it.
    ///
    /// # Errors
    /// It must not be touched, or cannot be bound.
    pub(super) fn prepare(&self, port: &config::Port, spec: DeviceSpec) -> Result<DeviceSpec, HostError> {
        if !matches!(spec, DeviceSpec::Vf { .. } | DeviceSpec::Pci { .. }) {
            return Ok(spec);
        }
        self.used.store(true, Ordering::Relaxed);
        // A port that is added later may be the first on its PF.
        self.functions
            .make_vfs(std::iter::once(&spec), &self.owner)
            .and_then(|()| self.functions.prepare(&spec, settings(port), &self.owner))
            .map_err(|source| HostError::Function { port: port.name.clone(), source })
    }

    /// Restores what a device stood on that is closed now.
    pub(super) fn give_back(&self, port: &str, spec: &DeviceSpec) {
        let DeviceSpec::Pci { address, .. } = spec else { return };
        if let Err(error) = self.functions.release_if_of(&self.owner, address) {
            tracing::error!("port {port:?}: {error}");
        }
    }

    /// Restores everything. Devices are closed.
    pub(super) fn give_all_back(&self) {
        if !self.used.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.functions.release_all_of(&self.owner) {
            tracing::error!("{error}");
        }
    }
}

/// What a PF sets for the VF of a port. An uplink has its own MAC address; a tenant's port is the near end of a link whose
/// far end has the tenant's, so that its own is the gateway's, to which the tenant sends. It sends frames of other tenants,
/// which a spoof check would drop: that what tenants send is theirs, the host checks by itself.
fn settings(port: &config::Port) -> VfSettings {
    match &port.kind {
        config::PortKind::Uplink(_) => VfSettings { mac: port.mac.map(|mac| mac.0), ..VfSettings::default() },
        config::PortKind::Vf(vf) => VfSettings {
            mac: vf.gateway_mac.map(|mac| mac.0),
            spoof_check: Some(false),
            ..VfSettings::default()
        },
    }
}

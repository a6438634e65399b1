//! What this process's devices stand on, so that no two stand on the same: DPDK's drivers would share an interface or a
//! socket without a word, and each would get half of the packets.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::device_spec::DeviceSpec;
use crate::error::DeviceError;

static CLAIMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The hold on what a device stands on; ends when dropped.
#[derive(Debug)]
pub(crate) struct Claim(Option<String>);

impl Claim {
    /// Errors: another device of this process holds it.
    pub(crate) fn take(spec: &DeviceSpec) -> Result<Self, DeviceError> {
        let Some(subject) = subject(spec) else { return Ok(Self(None)) };
        if CLAIMED.lock().insert(subject.clone()) {
            return Ok(Self(Some(subject)));
        }
        let remedy = "another port of this daemon has it: give each port a device of its own".into();
        Err(DeviceError::InUse { device: spec.to_string(), what: subject, remedy })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(subject) = &self.0 {
            CLAIMED.lock().remove(subject);
        }
    }
}

/// Whether a memif of this process listens at the path: several may, each with its own id.
pub(crate) fn memif_listens_at(path: &str) -> bool {
    let front = memif_subject(path, "");
    CLAIMED.lock().iter().filter(|subject| subject.starts_with(&front)).count() > 1
}

fn memif_subject(path: &str, id: &str) -> String {
    format!("memif socket {path} with id {id}")
}

fn subject(spec: &DeviceSpec) -> Option<String> {
    match spec {
        DeviceSpec::Pci { address, .. } => Some(format!("PCI function {address}")),
        DeviceSpec::Vf { pf, index, .. } => Some(format!("VF {pf}/{index}")),
        DeviceSpec::Tap { name, .. } => Some(format!("tap interface {name}")),
        DeviceSpec::AfPacket { iface, .. } | DeviceSpec::AfXdp { iface, .. } => {
            Some(format!("interface {iface}"))
        }
        DeviceSpec::Vhost { path, .. } => Some(format!("vhost socket {path}")),
        DeviceSpec::VirtioUser { path, .. } if path.starts_with("/dev/") => None,
        DeviceSpec::VirtioUser { path, .. } => Some(format!("virtio_user socket {path}")),
        DeviceSpec::Memif { path, extras } => {
            // The two ends of one memif may live in one process; each end only once.
            let id = extras.get("id").unwrap_or("0");
            let role = extras.get("role").unwrap_or("server");
            Some(memif_subject(path, &format!("{id} as {role}")))
        }
        DeviceSpec::Pcap { .. } | DeviceSpec::Null { .. } | DeviceSpec::Raw { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_for_each_thing() {
        let spec: DeviceSpec = "af_packet:claimed0".parse().unwrap();
        let xdp: DeviceSpec = "af_xdp:claimed0".parse().unwrap();
        let claim = Claim::take(&spec).unwrap();
        let error = Claim::take(&xdp).unwrap_err().to_string();
        assert!(
            error.contains("af_xdp:claimed0") && error.contains("interface claimed0 is in use"),
            "{error}"
        );
        drop(claim);
        assert!(Claim::take(&xdp).is_ok());
        let null: DeviceSpec = "null:".parse().unwrap();
        assert!(Claim::take(&null).is_ok() && Claim::take(&null).is_ok());
    }
}

//! What can be known before DPDK is asked: DPDK's drivers answer most trouble with the same error number and a line in
//! the log, so the usual mistakes are looked for first and named.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::claim;
use crate::device_spec::DeviceSpec;
use crate::error::DeviceError;
use crate::netdev;

/// Kernel drivers that DPDK works beside, without vfio-pci: they keep the function and lend its queues.
const SHARING_DRIVERS: &[&str] = &["mlx4_core", "mlx5_core", "mana"];

/// Drivers that hand a function over to user space.
const HANDING_DRIVERS: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio"];

const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// Whether DPDK can work with a function that this driver has.
pub(crate) fn serves_dpdk(driver: &str) -> bool {
    HANDING_DRIVERS.contains(&driver) || SHARING_DRIVERS.contains(&driver)
}

/// Looks for what the device needs, and takes dead sockets out of its way.
pub(crate) fn precheck(spec: &DeviceSpec) -> Result<(), DeviceError> {
    match spec {
        DeviceSpec::Pci { address, .. } => pci(spec, address, Path::new(PCI_DEVICES)),
        DeviceSpec::Tap { name, .. } => tap(spec, name),
        DeviceSpec::AfPacket { iface, .. } | DeviceSpec::AfXdp { iface, .. } => interface(spec, iface),
        DeviceSpec::Vhost { extras, .. } if extras.get("client") == Some("1") => Ok(()),
        DeviceSpec::Vhost { path, .. } => listening_socket(spec, path),
        DeviceSpec::VirtioUser { path, extras } if extras.get("server") == Some("1") => {
            listening_socket(spec, path)
        }
        DeviceSpec::VirtioUser { path, .. } => exists(spec, path, "start the vhost side first"),
        DeviceSpec::Memif { extras, .. } if extras.get("role") == Some("client") => Ok(()),
        DeviceSpec::Memif { path, .. } if claim::memif_listens_at(path) => folder_of(spec, path),
        DeviceSpec::Memif { path, .. } => listening_socket(spec, path),
        DeviceSpec::Pcap { file, extras } => {
            open(spec, file, File::options().read(true), "CAP_DAC_READ_SEARCH")?;
            extras.get("tx").map_or(Ok(()), |tx| folder_of(spec, tx))
        }
        // A VF has become a PCI function by now.
        DeviceSpec::Vf { .. } | DeviceSpec::Null { .. } | DeviceSpec::Raw { .. } => Ok(()),
    }
}

fn pci(spec: &DeviceSpec, address: &str, devices: &Path) -> Result<(), DeviceError> {
    let function = devices.join(address);
    if !function.exists() {
        return Err(missing(spec, format!("PCI function {address}"), "see: forebay vf list, or lspci -D"));
    }
    let link = fs::read_link(function.join("driver")).ok();
    let driver = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        Some(driver) if serves_dpdk(driver) => Ok(()),
        _ => Err(DeviceError::NotBoundToVfio {
            device: spec.to_string(),
            address: address.to_owned(),
            driver: driver.unwrap_or("no driver").to_owned(),
        }),
    }
}

fn tap(spec: &DeviceSpec, name: &str) -> Result<(), DeviceError> {
    open(spec, "/dev/net/tun", File::options().read(true).write(true), "CAP_NET_ADMIN")?;
    if netdev::index(name).is_none() {
        return Ok(());
    }
    let remedy = format!("choose another name, or delete it: ip link delete {name}");
    Err(DeviceError::InUse { device: spec.to_string(), what: format!("interface {name}"), remedy })
}

fn interface(spec: &DeviceSpec, name: &str) -> Result<(), DeviceError> {
    if netdev::index(name).is_none() {
        let remedy = "see: ip link; it must be in the daemon's network namespace";
        return Err(missing(spec, format!("interface {name}"), remedy));
    }
    match netdev::socket(libc::AF_PACKET, libc::SOCK_RAW) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(DeviceError::NoPermission {
            device: spec.to_string(),
            what: "packet sockets".into(),
            capability: "CAP_NET_RAW",
        }),
        _ => Ok(()),
    }
}

/// The path is free to listen at: nothing is there, or a socket that nobody listens at any more, which is removed (a
/// daemon that was killed leaves one).
fn listening_socket(spec: &DeviceSpec, path: &str) -> Result<(), DeviceError> {
    folder_of(spec, path)?;
    let Ok(data) = fs::symlink_metadata(path) else { return Ok(()) };
    let in_use = |remedy: &str| {
        let (device, what) = (spec.to_string(), format!("path {path}"));
        Err(DeviceError::InUse { device, what, remedy: remedy.to_owned() })
    };
    if !data.file_type().is_socket() {
        return in_use("it is not a socket: choose another path");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| step(spec, "remove the dead socket in its place", &error))
        }
        _ => in_use("another process listens at it: choose another path, or stop that process"),
    }
}

fn folder_of(spec: &DeviceSpec, path: &str) -> Result<(), DeviceError> {
    match Path::new(path).parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            let folder = folder.to_string_lossy();
            exists(spec, &folder, &format!("make it: mkdir -p {folder}"))
        }
        _ => Ok(()),
    }
}

fn exists(spec: &DeviceSpec, path: &str, remedy: &str) -> Result<(), DeviceError> {
    if Path::new(path).exists() { Ok(()) } else { Err(missing(spec, path.to_owned(), remedy)) }
}

fn open(
    spec: &DeviceSpec,
    path: &str,
    options: &mut fs::OpenOptions,
    capability: &'static str,
) -> Result<(), DeviceError> {
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let remedy = if path == "/dev/net/tun" { "modprobe tun" } else { "check the path" };
            Err(missing(spec, path.to_owned(), remedy))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(DeviceError::NoPermission { device: spec.to_string(), what: path.to_owned(), capability })
        }
        Err(error) => Err(step(spec, "open its file", &error)),
    }
}

fn missing(spec: &DeviceSpec, missing: String, remedy: &str) -> DeviceError {
    DeviceError::Missing { device: spec.to_string(), missing, remedy: remedy.to_owned() }
}

fn step(spec: &DeviceSpec, step: &'static str, error: &io::Error) -> DeviceError {
    DeviceError::Step {
        device: spec.to_string(),
        step,
        reason: error.to_string(),
        remedy: "see the kernel's reason",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn refusal(text: &str) -> String {
        precheck(&text.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_there_is_named_with_a_remedy() {
        let error = refusal("af_packet:no-such-if");
        assert!(
            error.contains("interface no-such-if does not exist") && error.contains("ip link"),
            "{error}"
        );
        let error = refusal("pcap:/no/such.pcap");
        assert!(error.contains("/no/such.pcap does not exist"), "{error}");
        let error = refusal("vhost:/no/such/folder/s");
        assert!(error.contains("/no/such/folder does not exist") && error.contains("mkdir -p"), "{error}");
        let error = refusal("memif:/no/such/folder/s");
        assert!(error.contains("/no/such/folder does not exist"), "{error}");
        let error = refusal("virtio_user:/no/such/socket");
        assert!(error.contains("start the vhost side first"), "{error}");
        let error = refusal("pci:ffff:ff:1f.7");
        assert!(error.contains("PCI function ffff:ff:1f.7 does not exist"), "{error}");
        let error = refusal("tap:lo");
        assert!(error.contains("interface lo is in use"), "{error}");
    }

    #[test]
    fn a_function_of_another_driver_is_not_taken() {
        let sysfs = tempfile::tempdir().unwrap();
        let spec: DeviceSpec = "pci:0000:3b:02.1".parse().unwrap();
        let function = sysfs.path().join("0000:3b:02.1");
        fs::create_dir(&function).unwrap();
        let check = || pci(&spec, "0000:3b:02.1", sysfs.path());
        assert!(check().unwrap_err().to_string().contains("bound to no driver"));
        for (driver, allowed) in [("ixgbevf", false), ("vfio-pci", true), ("mlx5_core", true)] {
            let _ = fs::remove_file(function.join("driver"));
            symlink(format!("/sys/bus/pci/drivers/{driver}"), function.join("driver")).unwrap();
            assert_eq!(check().is_ok(), allowed, "{driver}");
        }
    }

    #[test]
    fn dead_sockets_are_removed_and_live_ones_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let spec = format!("vhost:{}", path.display());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(refusal(&spec).contains("another process listens"));
        drop(listener);
        assert!(path.exists());
        assert!(precheck(&spec.parse().unwrap()).is_ok());
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(refusal(&spec).contains("not a socket"));
        assert!(path.exists());
    }
}

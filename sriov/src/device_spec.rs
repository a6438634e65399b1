//! What stands behind a port, as written in the configuration: `tap:vm1`, `pci:0000:3b:02.1`, ...
//!
//! A spec is parsed once, at the edge; what is inside is valid, so building DPDK's device arguments cannot fail and
//! no value can smuggle in an argument of its own.

use std::fmt;
use std::str::FromStr;

use crate::vf::target;

/// The forms of a device, for messages.
const FORMS: &str = "pci:DDDD:BB:DD.F, vf:PF/INDEX, tap:NAME, af_packet:IFACE, af_xdp:IFACE, vhost:PATH, virtio_user:PATH, \
                     memif:PATH, pcap:FILE, null:, dpdk:DEVARGS; all but dpdk: may go on with ,KEY=VALUE";

/// Longest name of a kernel interface: IFNAMSIZ less its NUL.
const INTERFACE_NAME_BYTES: usize = 15;

/// Longest path of a Unix socket: `sun_path` less its NUL.
pub(crate) const SOCKET_PATH_BYTES: usize = 107;

/// A device of DPDK's, by what it stands on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// A VF by its number on its PF; whoever opens it has made and bound it ([`crate::vf::Functions::prepare`]).
    Vf {
        /// The PF's interface, or its PCI address in full and lower case.
        pf: String,
        /// The VF's number, from 0.
        index: u32,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// A PCI function bound to vfio-pci; the address in full, lower case.
    Pci {
        /// `0000:3b:02.1`
        address: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// A tap interface, made when opened and gone when closed.
    Tap {
        /// Name of the interface.
        name: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// An existing kernel interface, through a packet socket.
    AfPacket {
        /// Name of the interface.
        iface: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// An existing kernel interface, through XDP.
    AfXdp {
        /// Name of the interface.
        iface: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// A vhost-user socket, for a virtual machine; `client=1` connects to it instead of making it.
    Vhost {
        /// The socket.
        path: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// The guest's side of a vhost-user socket, or `/dev/vhost-net`.
    VirtioUser {
        /// The socket or device.
        path: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// Shared memory with another process; `role=client` connects instead of listening.
    Memif {
        /// The control socket.
        path: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// Receives what is in a capture file (again and again with `infinite_rx=1`); drops what it sends, or writes it
    /// to the file named by `tx=FILE`.
    Pcap {
        /// The file to receive from.
        file: String,
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// Drops what it sends and receives nothing, or with `size=BYTES` zeroed frames without end.
    Null {
        /// Further arguments for the driver.
        extras: Extras,
    },
    /// Any device arguments, handed to DPDK as they are.
    Raw {
        /// The arguments, `DRIVER,KEY=VALUE,...`
        devargs: String,
    },
}

/// Further arguments for a driver: pairs of key and value, in order, no key twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Extras(Vec<(String, String)>);

/// A device that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {value:?}: {reason} (allowed: {FORMS})")]
pub struct DeviceSpecError {
    /// What was written.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

impl DeviceSpec {
    /// The same, at a PCI address: what a VF is to DPDK.
    pub(crate) fn at(&self, address: &str) -> Self {
        match self {
            Self::Vf { extras, .. } => Self::Pci { address: address.to_owned(), extras: extras.clone() },
            other => other.clone(),
        }
    }
}

impl Extras {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn parse<'a>(pairs: impl Iterator<Item = &'a str>, reserved: &[&str]) -> Result<Self, String> {
        let mut extras = Self::default();
        for pair in pairs {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(format!("{pair:?} is not KEY=VALUE"));
            };
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            if key.is_empty() || !key.bytes().all(plain) {
                return Err(format!("{key:?} is not the name of an argument"));
            }
            if reserved.contains(&key) {
                return Err(format!("{key:?} follows from the port's other settings"));
            }
            if extras.get(key).is_some() {
                return Err(format!("{key:?} is given twice"));
            }
            extras.0.push((key.to_owned(), argument(value)?.to_owned()));
        }
        Ok(extras)
    }
}

impl fmt::Display for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

impl FromStr for DeviceSpec {
    type Err = DeviceSpecError;

    fn from_str(value: &str) -> Result<Self, DeviceSpecError> {
        parse(value).map_err(|reason| DeviceSpecError { value: value.to_owned(), reason })
    }
}

fn parse(value: &str) -> Result<DeviceSpec, String> {
    let (kind, rest) = value.split_once(':').ok_or("there is no KIND: in front")?;
    if kind == "dpdk" {
        return raw(rest);
    }
    let mut words = rest.split(',');
    let subject = words.next().unwrap_or_default();
    let extras = |words, reserved: &[&str]| Extras::parse(words, reserved);
    Ok(match kind {
        "pci" => DeviceSpec::Pci { address: pci_address(subject)?, extras: extras(words, &[])? },
        "vf" => {
            let (pf, index) = subject.rsplit_once('/').ok_or("there is no /INDEX behind the PF")?;
            let (pf, index) = target::vf(pf, index)?;
            DeviceSpec::Vf { pf, index, extras: extras(words, &[])? }
        }
        "tap" => DeviceSpec::Tap { name: interface(subject)?, extras: extras(words, &["iface", "mac"])? },
        "af_packet" => {
            let reserved = ["iface", "qpairs", "framesz", "blocksz", "framecnt"];
            DeviceSpec::AfPacket { iface: interface(subject)?, extras: extras(words, &reserved)? }
        }
        "af_xdp" => DeviceSpec::AfXdp { iface: interface(subject)?, extras: extras(words, &["iface"])? },
        "vhost" => {
            let extras = extras(words, &["iface", "queues"])?;
            check_vhost(&extras)?;
            DeviceSpec::Vhost { path: socket(subject)?, extras }
        }
        "virtio_user" => {
            let reserved = ["path", "queues", "mac"];
            DeviceSpec::VirtioUser { path: socket(subject)?, extras: extras(words, &reserved)? }
        }
        "memif" => {
            let extras = extras(words, &["socket", "socket-abstract", "mac"])?;
            if !matches!(extras.get("role"), None | Some("server" | "client")) {
                return Err("role must be server or client".into());
            }
            DeviceSpec::Memif { path: socket(subject)?, extras }
        }
        "pcap" => DeviceSpec::Pcap { file: path(subject)?, extras: extras(words, &["rx_pcap", "tx_pcap"])? },
        "null" => {
            // `null:size=64` reads well, so the comma may be left out.
            let first = (!subject.is_empty()).then_some(subject);
            let extras = Extras::parse(first.into_iter().chain(words), &["no-rx"])?;
            if extras.get("size").is_some_and(|size| size.parse::<u16>().is_err()) {
                return Err("size must be a number of bytes".into());
            }
            DeviceSpec::Null { extras }
        }
        "vlan" => return Err("a VLAN of another port has no device of its own".into()),
        _ => return Err(format!("there is no kind {kind:?}")),
    })
}

/// A guest must not be promised what nobody does for it.
fn check_vhost(extras: &Extras) -> Result<(), String> {
    if !matches!(extras.get("client"), None | Some("0" | "1")) {
        return Err("client must be 0 or 1".into());
    }
    if extras.get("tso").is_some_and(|value| value != "0") {
        return Err("tso: guests' segments are not cut yet, so it cannot be offered".into());
    }
    if extras.get("legacy-ol-flags").is_some_and(|value| value != "0") {
        return Err("legacy-ol-flags: guests' checksums would be left unfinished".into());
    }
    Ok(())
}

fn raw(devargs: &str) -> Result<DeviceSpec, String> {
    let driver = devargs.split(',').next().unwrap_or_default();
    if pci_address(driver.trim_start_matches("pci:")).is_ok() {
        // Raw, DPDK might take a function from under the host's driver; `pci:` looks first.
        return Err("write a PCI function as pci:ADDRESS".into());
    }
    if driver.is_empty() || !devargs.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("dpdk: needs DPDK's arguments, DRIVER,KEY=VALUE,... without spaces".into());
    }
    Ok(DeviceSpec::Raw { devargs: devargs.to_owned() })
}

pub(crate) fn interface(name: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/,:%=[]()\"".contains(&byte);
    if name.is_empty()
        || name.len() > INTERFACE_NAME_BYTES
        || !name.bytes().all(plain)
        || name.starts_with('.')
    {
        return Err(format!(
            "{name:?} is not an interface's name (1 to {INTERFACE_NAME_BYTES} plain characters)"
        ));
    }
    Ok(name.to_owned())
}

fn path(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("the path is missing".into());
    }
    Ok(argument(text)?.to_owned())
}

fn socket(text: &str) -> Result<String, String> {
    if text.len() > SOCKET_PATH_BYTES {
        return Err(format!("the path has {} bytes, a socket's has at most {SOCKET_PATH_BYTES}", text.len()));
    }
    path(text)
}

/// DPDK cuts arguments at commas and takes brackets for lists, and knows no way to quote either.
fn argument(text: &str) -> Result<&str, String> {
    if text.is_empty()
        || !text.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"[]()\"=,".contains(c))
    {
        return Err(format!(
            "{text:?} has characters that DPDK's arguments cannot carry: any of []()\"=, or space"
        ));
    }
    Ok(text)
}

/// `0000:3b:02.1` or `3b:02.1`, in hexadecimal; given in full and lower case.
pub(crate) fn pci_address(text: &str) -> Result<String, String> {
    let parsed = || {
        let (front, function) = text.rsplit_once('.')?;
        let mut parts = front.rsplit(':');
        let number = |digits: &str, width, limit| {
            let plain = digits.len() == width && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            let number = u32::from_str_radix(digits, 16).ok().filter(|&number| number <= limit);
            number.filter(|_| plain)
        };
        let device = number(parts.next()?, 2, 0x1f)?;
        let bus = number(parts.next()?, 2, 0xff)?;
        let domain = number(parts.next().unwrap_or("0000"), 4, 0xffff)?;
        let function = number(function, 1, 7)?;
        parts.next().is_none().then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
    };
    parsed().ok_or_else(|| format!("{text:?} is not a PCI address such as 0000:3b:02.1"))
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci { address, extras } => write!(f, "pci:{address}{extras}"),
            Self::Vf { pf, index, extras } => write!(f, "vf:{pf}/{index}{extras}"),
            Self::Tap { name, extras } => write!(f, "tap:{name}{extras}"),
            Self::AfPacket { iface, extras } => write!(f, "af_packet:{iface}{extras}"),
            Self::AfXdp { iface, extras } => write!(f, "af_xdp:{iface}{extras}"),
            Self::Vhost { path, extras } => write!(f, "vhost:{path}{extras}"),
            Self::VirtioUser { path, extras } => write!(f, "virtio_user:{path}{extras}"),
            Self::Memif { path, extras } => write!(f, "memif:{path}{extras}"),
            Self::Pcap { file, extras } => write!(f, "pcap:{file}{extras}"),
            Self::Null { extras } => write!(f, "null:{extras}"),
            Self::Raw { devargs } => write!(f, "dpdk:{devargs}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_and_writes_the_same() {
        for text in [
            "pci:0000:3b:02.1",
            "pci:0000:3b:02.1,representor=0",
            "vf:ens1f0/3",
            "vf:0000:3b:00.0/0,a=b",
            "tap:vm1",
            "tap:vm1,persist=1",
            "af_packet:und0",
            "af_packet:und0,qdisc_bypass=0",
            "af_xdp:eth0,force_copy=1",
            "vhost:/run/vm1.sock",
            "vhost:/run/vm1.sock,client=1",
            "virtio_user:/run/vm1.sock,server=1",
            "memif:/run/m.sock,role=client,id=3",
            "pcap:/tmp/a.pcap",
            "pcap:/tmp/a.pcap,infinite_rx=1",
            "pcap:/tmp/a.pcap,tx=/tmp/b.pcap",
            "null:",
            "null:,size=64",
            "dpdk:net_ring0,nodeaction=r1:0:CREATE",
        ] {
            let spec: DeviceSpec = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("null:size=64".parse::<DeviceSpec>(), "null:,size=64".parse());
        assert_eq!("vf:3B:00.0/1".parse::<DeviceSpec>(), "vf:0000:3b:00.0/1".parse());
        assert_eq!("pci:3B:02.1".parse::<DeviceSpec>(), "pci:0000:3b:02.1".parse());
    }

    #[test]
    fn what_is_no_device_is_named_with_the_forms() {
        for (text, part) in [
            ("", "no KIND"),
            ("vm1", "no KIND"),
            ("tun:vm1", "no kind \"tun\""),
            ("tap:", "not an interface's name"),
            ("tap:sixteen-letters-", "not an interface's name"),
            ("tap:a/b", "not an interface's name"),
            ("tap:vm1,mac=02:00:00:00:00:01", "follows from"),
            ("tap:vm1,persist", "not KEY=VALUE"),
            ("af_packet:und0,qpairs=4", "follows from"),
            ("vhost:", "the path is missing"),
            ("vhost:/run/a b", "cannot carry"),
            ("vhost:/run/[a]", "cannot carry"),
            ("vhost:/run/a,client=yes", "client must be 0 or 1"),
            ("vhost:/run/a,tso=1", "not cut yet"),
            ("vhost:/run/a,legacy-ol-flags=1", "left unfinished"),
            ("vhost:/run/a,queues=2", "follows from"),
            ("memif:/run/m,role=master", "server or client"),
            ("memif:/run/m,id=1,id=2", "twice"),
            ("null:size=x", "number of bytes"),
            ("null:no-rx=1", "follows from"),
            ("pci:0000:3b:02.8", "PCI address"),
            ("pci:0000:3b:20.0", "PCI address"),
            ("pci:3b:2.0", "PCI address"),
            ("pci:1:0000:3b:02.1", "PCI address"),
            ("pci:+000:3b:02.1", "PCI address"),
            ("vf:ens1f0", "no /INDEX"),
            ("vf:ens1f0/", "number of a VF"),
            ("vf:ens1f0/-1", "number of a VF"),
            ("vf:ens1f0/65535", "number of a VF"),
            ("vf:/1", "not an interface's name"),
            ("vlan:uplink0/7", "no device of its own"),
            ("dpdk:", "needs DPDK's arguments"),
            ("dpdk:0000:3b:02.1", "pci:ADDRESS"),
            ("dpdk:pci:3b:02.1,a=b", "pci:ADDRESS"),
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err();
            assert_eq!(error.value, text);
            let message = error.to_string();
            assert!(message.contains(part) && message.contains("af_packet:IFACE"), "{text}: {message}");
        }
        let long = format!("vhost:/{}", "a".repeat(107));
        assert!(long.parse::<DeviceSpec>().is_err());
    }
}

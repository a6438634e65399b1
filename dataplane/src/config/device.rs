//! The `device` of a port: a VLAN of another port, or a device of its own, which `forebay-sriov` knows to read.

use forebay_sriov::DeviceSpec;

use super::model::Device;
use super::object::Fault;
use super::value::port_name;

/// Every form, for messages.
pub(super) const FORMS: &str = "pci:ADDRESS, vf:PF/INDEX, tap:NAME, af_packet:IFACE, af_xdp:IFACE, vhost:PATH, virtio_user:PATH, \
                                memif:PATH, pcap:FILE, null:, each with ,KEY=VALUE… if need be, dpdk:ARGUMENTS, \
                                vlan:PORT/ID";

/// The largest VLAN identifier; 4095 is reserved (IEEE 802.1Q, table 9-2).
const VLAN_ID_MAX: u16 = 4094;

/// Reads the text of a device. The text that is kept is canonical: a PCI address in full and lower case.
pub(super) fn device(text: &str) -> Result<Device, Fault> {
    if let Some(rest) = text.strip_prefix("vlan:") {
        return vlan(rest);
    }
    match text.parse::<DeviceSpec>() {
        Ok(spec) => Ok(Device::Dpdk(spec.to_string())),
        Err(error) => Err(Fault::new(error.reason, format!("write one of {FORMS}"))),
    }
}

/// What no two devices can share, whatever their further arguments; `None` for those that share nothing.
pub(super) fn identity(device: &Device) -> Option<String> {
    let Device::Dpdk(text) = device else { return Some(device.to_string()) };
    // The first word is the device, for DPDK's own arguments too.
    let first = text.split(',').next().unwrap_or_default();
    let key = |extras: &forebay_sriov::Extras, key: &str| {
        format!("{first},{key}={}", extras.get(key).unwrap_or("0"))
    };
    match text.parse() {
        Ok(DeviceSpec::Null { .. }) => None,
        // One socket carries several interfaces, one PCI function the representors of others.
        Ok(DeviceSpec::Memif { extras, .. }) => Some(key(&extras, "id")),
        Ok(DeviceSpec::Pci { extras, .. }) if extras.get("representor").is_some() => {
            Some(key(&extras, "representor"))
        }
        _ => Some(first.to_string()),
    }
}

fn vlan(rest: &str) -> Result<Device, Fault> {
    let form = "write vlan:PORT/ID, such as vlan:trunk0/100";
    let Some((port, id)) = rest.rsplit_once('/') else {
        return Err(Fault::new("not a VLAN of a port", form));
    };
    let port = port_name(port).map_err(|_| Fault::new("names no port before the /", form))?;
    let digits = id.bytes().all(|b| b.is_ascii_digit());
    match id.parse() {
        Ok(id @ 1..=VLAN_ID_MAX) if digits => Ok(Device::Vlan { port, id }),
        _ => {
            let remedy = format!("write 1 to {VLAN_ID_MAX} after the /");
            Err(Fault::new(format!("{id:?} is not a VLAN identifier"), remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dpdk(text: &str) -> Device {
        Device::Dpdk(text.to_string())
    }

    #[test]
    fn every_form_is_read() {
        for text in [
            "pci:0000:3b:02.1",
            "vf:ens1f0/3",
            "tap:fifteen-letters",
            "af_packet:und0",
            "af_xdp:eth0.7",
            "vhost:/run/vm1.sock,client=1",
            "virtio_user:/dev/vhost-net",
            "memif:/run/memif.sock,role=client",
            "pcap:/tmp/in.pcap",
            "null:",
            "dpdk:net_ring0,nodeaction=r0:0:CREATE",
        ] {
            assert_eq!(device(text), Ok(dpdk(text)));
        }
        assert_eq!(device("pci:3B:0A.1"), Ok(dpdk("pci:0000:3b:0a.1")));
        assert_eq!(device("vlan:trunk/4094"), Ok(Device::Vlan { port: "trunk".into(), id: 4094 }));
    }

    #[test]
    fn each_form_refuses_what_it_cannot_be() {
        for text in
            ["", "eth0", "eth:0", "tap:", "tap:a b", "tap:a\u{7}", "tap:sixteen-letters-", "pci:3b:20.0"]
        {
            let fault = device(text).unwrap_err();
            assert!(!fault.problem.is_empty() && fault.remedy.contains("vlan:PORT/ID"), "{text}: {fault:?}");
        }
        for (text, expected) in [
            ("vlan:trunk", "not a VLAN of a port"),
            ("vlan:/7", "names no port before the /"),
            ("vlan:a b/7", "names no port before the /"),
            ("vlan:trunk/0", "\"0\" is not a VLAN identifier"),
            ("vlan:trunk/4095", "\"4095\" is not a VLAN identifier"),
            ("vlan:trunk/+7", "\"+7\" is not a VLAN identifier"),
            ("vlan:trunk/", "\"\" is not a VLAN identifier"),
        ] {
            assert_eq!(device(text).unwrap_err().problem, expected, "{text}");
        }
        assert!(device(&format!("vhost:/{}", "x".repeat(107))).is_err());
        assert!(device(&format!("vhost:/{}", "x".repeat(106))).is_ok());
    }

    #[test]
    fn devices_are_told_apart_by_what_they_stand_on() {
        let of = |text: &str| identity(&device(text).unwrap());
        assert_eq!(of("tap:a"), of("tap:a,persist=1"));
        assert_eq!(of("vf:ens1/0"), of("vf:ens1/0,a=b"));
        assert_ne!(of("vf:ens1/0"), of("vf:ens1/1"));
        assert_eq!(of("pci:3B:02.1"), of("pci:0000:3b:02.1"));
        assert_eq!(of("dpdk:net_ring0"), of("dpdk:net_ring0,nodeaction=r0:0:CREATE"));
        assert_eq!(of("memif:/m"), of("memif:/m,role=client,id=0"));
        assert_ne!(of("memif:/m,id=1"), of("memif:/m,id=2"));
        assert_ne!(of("pci:3b:02.1,representor=0"), of("pci:3b:02.1,representor=1"));
        assert_ne!(of("pci:3b:02.1,representor=0"), of("pci:3b:02.1"));
        assert_ne!(of("tap:a"), of("tap:b"));
        assert_eq!(of("null:"), None);
        assert_eq!(of("vlan:a/7"), Some("vlan:a/7".to_string()));
    }
}

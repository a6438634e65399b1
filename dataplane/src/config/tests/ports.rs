//! Tests of ports in files: each kind of error, with its line and its text.

use super::super::*;
use super::{read, report, vf};

/// An uplink with further lines, of which the first is line 6.
pub(super) fn uplink(more: &str) -> String {
    format!("[[port]]\nname = 'up'\nkind = 'uplink'\ndevice = 'tap:up'\nipv4 = '192.0.2.1/24'\n{more}\n")
}

#[test]
fn keys_of_the_other_kind_name_their_owner() {
    assert_eq!(
        report(&vf(
            "ipv4 = '192.0.2.1/24'\nipv6 = '2001:db8::1/64'\ngateway = '192.0.2.2'\nneighbors = ['x']"
        )),
        [
            "7: port \"vm1\": ipv4",
            "8: port \"vm1\": ipv6",
            "9: port \"vm1\": gateway",
            "10: port \"vm1\": neighbors"
        ]
        .map(|place| format!(
            "line {place}: only a port of kind \"uplink\" has this key (remove it, or set kind = \"uplink\")"
        ))
    );
    assert_eq!(
        report(&uplink("ip = []\ngateway_mac = ''\ntrap = ['x']")),
        ["6: port \"up\": ip", "7: port \"up\": gateway_mac", "8: port \"up\": trap"].map(|place| format!(
            "line {place}: only a port of kind \"vf\" has this key (remove it, or set kind = \"vf\")"
        ))
    );
}

#[test]
fn missing_keys_are_reported_where_the_table_begins() {
    assert_eq!(
        report(
            "\n[[port]]\n[[port]]\nname = 'a'\nkind = 'vf'\ndevice = 'null:'\n[[port]]\nname = 'b'\nkind = 'uplink'\ndevice = 'null:'"
        ),
        [
            "line 2: port[0]: name: missing (give the port a name, such as vm1)",
            "line 2: port[0]: kind: missing (write vf for a tenant's port or uplink for one to the underlay)",
            "line 2: port[0]: device: missing (write what is behind the port, such as tap:vm1)",
            "line 3: port \"a\": mac: missing (a vf needs the only source MAC that its tenant may use)",
            "line 3: port \"a\": ip: missing (a vf needs the source addresses that its tenant may use, such as [\"10.1.0.1\"])",
            "line 7: port \"b\": ipv4 or ipv6: missing (an uplink needs an underlay address, such as ipv4 = \"192.0.2.1/24\")",
        ]
    );
}

#[test]
fn values_of_tenants_ports_are_checked() {
    for (more, expected) in [
        ("mtu = 575", "mtu = 575: too small (write 576 to 9600 bytes)"),
        ("mtu = 9601", "mtu = 9601: too large (write 576 to 9600 bytes)"),
        (
            "gateway_mac = '02:00:00:00:01:01'",
            "gateway_mac = \"02:00:00:00:01:01\": the tenant's own MAC address (write another MAC address for its gateway)",
        ),
        (
            "gateway_mac = '01:00:5e:00:00:01'",
            "gateway_mac = \"01:00:5e:00:00:01\": a multicast MAC address, which no station sends from (clear the lowest bit of the first byte, such as 02:00:00:00:01:01)",
        ),
        ("trap = ['dhpc']", "trap[0] = \"dhpc\": unknown trap (did you mean dhcp?)"),
        ("trap = ['arp']", "trap[0] = \"arp\": always trapped (remove it from the list)"),
        ("trap = ['igmp', 'igmp']", "trap[1] = \"igmp\": listed twice (remove one of them)"),
    ] {
        assert_eq!(report(&vf(more)), [format!("line 7: port \"vm1\": {expected}")], "{more}");
    }
    let with_ip = |ip: &str| vf("").replace("['10.1.0.1']", ip);
    for (ip, expected) in [
        ("[]", "ip: an empty list (a vf needs at least one source address)"),
        ("['10.1.0.1', '10.1.0.1/32']", "ip[1] = \"10.1.0.1/32\": listed twice (remove one of them)"),
        (
            "['x']",
            "ip[0] = \"x\": not an address or prefix (write 10.1.0.1, 10.1.0.0/24, fd00:1::1 or fd00:1::/64)",
        ),
    ] {
        assert_eq!(report(&with_ip(ip)), [format!("line 6: port \"vm1\": {expected}")], "{ip}");
    }
    let many: Vec<String> = (0..257).map(|i| format!("'10.0.{}.{}'", i / 250, 1 + i % 250)).collect();
    assert_eq!(
        report(&with_ip(&format!("[{}]", many.join(",")))),
        ["line 6: port \"vm1\": ip: 257 prefixes, more than 256 (combine addresses into prefixes)"]
    );
    assert_eq!(
        report(&with_ip("['fd00::1']").replace("name", "mtu = 1279\nname")),
        ["line 2: port \"vm1\": mtu = 1279: too small (write 1280 to 9600 bytes for a port with IPv6)"]
    );
    assert_eq!(report(&vf("trap = ['dhcp', 'multicast', 'lldp', 'igmp']\nmtu = 576")), Vec::<String>::new());
}

#[test]
fn values_of_uplinks_are_checked() {
    for (more, expected) in [
        ("mtu = 1279", "mtu = 1279: too small (write 1280 to 9600 bytes for an uplink)"),
        (
            "mac = '00:00:00:00:00:00'",
            "mac = \"00:00:00:00:00:00\": all zeros is no station's MAC address (write the MAC address of the port)",
        ),
        (
            "ipv6 = '2001:db8::1'",
            "ipv6 = \"2001:db8::1\": not an IPv6 address with its prefix length (write an address with its prefix length, such as 2001:db8::1/64)",
        ),
        (
            "gateway = '192.0.2.1'",
            "gateway = \"192.0.2.1\": the uplink's own address (write the router's address)",
        ),
        (
            "gateway = '198.51.100.1'",
            "gateway = \"198.51.100.1\": outside the uplink's prefix 192.0.2.0/24 (write a router on the link, or correct the prefix length)",
        ),
        (
            "gateway = ['192.0.2.2', '192.0.2.3']",
            "gateway[1] = \"192.0.2.3\": the second gateway of its family (keep one for IPv4 and one for IPv6)",
        ),
        (
            "gateway = 'fe80::1'",
            "gateway = \"fe80::1\": this uplink has no ipv6 (give it an ipv6 address, or remove the gateway)",
        ),
    ] {
        assert_eq!(report(&uplink(more)), [format!("line 6: port \"up\": {expected}")], "{more}");
    }
    let config = read(&uplink(
        "ipv6 = '2001:db8::1/64'\ngateway = ['fe80::1', '192.0.2.9']\nmac = '02:00:00:00:00:09'",
    ))
    .unwrap();
    let PortKind::Uplink(uplink) = &config.ports[0].kind else { panic!("not an uplink") };
    assert_eq!(uplink.gateway4, Some("192.0.2.9".parse().unwrap()));
    assert_eq!(uplink.gateway6, Some("fe80::1".parse().unwrap()));
    assert_eq!(config.ports[0].mac, Some("02:00:00:00:00:09".parse().unwrap()));
}

#[test]
fn neighbours_are_other_hosts_on_the_link() {
    let station = "02:00:00:00:00:02";
    let form = "write the neighbour's address and MAC address, such as 192.0.2.2=02:00:00:00:00:02";
    for (addr, expected) in [
        ("192.0.2.1", "the uplink's own address (write the neighbour's address)"),
        (
            "198.51.100.2",
            "outside the uplink's prefix 192.0.2.0/24 (write a neighbour on the link, or correct the prefix length)",
        ),
        ("192.0.2.255", "not the address of a neighbour (write the neighbour's unicast address)"),
        ("fe80::2", "this uplink has no ipv6 (give it an ipv6 address, or remove the neighbour)"),
        ("x", &format!("no IP address before the = ({form})")),
    ] {
        let neighbor = format!("{addr}={station}");
        assert_eq!(
            report(&uplink(&format!("neighbors = ['{neighbor}']"))),
            [format!("line 6: port \"up\": neighbors[0] = \"{neighbor}\": {expected}")]
        );
    }
    assert_eq!(
        report(&uplink(&format!(
            "neighbors = [\n'192.0.2.2={station}',\n'192.0.2.2={station}',\n'192.0.2.3']"
        ))),
        [
            format!(
                "line 8: port \"up\": neighbors[1] = \"192.0.2.2={station}\": 192.0.2.2 is listed already (keep one MAC address for it)"
            ),
            format!("line 9: port \"up\": neighbors[2] = \"192.0.2.3\": not ADDRESS=MAC ({form})"),
        ]
    );
    assert_eq!(
        report(&uplink(&format!("neighbors = '192.0.2.2={station}'"))),
        [format!(
            "line 6: port \"up\": neighbors = '192.0.2.2={station}': expected a list of strings, found a string (write [\"…\", \"…\"])"
        )]
    );
    // Nothing is said of neighbours beside an address of the uplink that is wrong itself.
    let wrong =
        uplink("neighbors = ['192.0.2.2=02:00:00:00:00:02']").replace("'192.0.2.1/24'", "'192.0.2.1'");
    assert_eq!(report(&wrong).len(), 1, "{:?}", report(&wrong));
}

#[test]
fn neighbours_are_sorted_and_bounded() {
    let neighbors = |text: &str| {
        let config = read(&uplink(&format!("ipv6 = '2001:db8::1/64'\nneighbors = [{text}]"))).unwrap();
        let PortKind::Uplink(uplink) = &config.ports[0].kind else { panic!("not an uplink") };
        uplink.neighbors.iter().map(|(addr, mac)| format!("{addr}={mac}")).collect::<Vec<_>>()
    };
    assert_eq!(
        neighbors(
            "'fe80::2=02:00:00:00:00:04', '2001:DB8::2=02:00:00:00:00:0B', '192.0.2.10=02:00:00:00:00:02', \
             '192.0.2.9=02:00:00:00:00:02'"
        ),
        [
            "192.0.2.9=02:00:00:00:00:02",
            "192.0.2.10=02:00:00:00:00:02",
            "2001:db8::2=02:00:00:00:00:0b",
            "fe80::2=02:00:00:00:00:04",
        ]
    );
    assert!(neighbors("").is_empty());
    let many = |count: usize| {
        let list: Vec<String> =
            (0..count).map(|i| format!("'fe80::{:x}=02:00:00:00:00:02'", i + 2)).collect();
        list.join(",")
    };
    assert_eq!(neighbors(&many(1024)).len(), 1024);
    assert_eq!(
        report(&uplink(&format!("ipv6 = '2001:db8::1/64'\nneighbors = [{}]", many(1025)))),
        [
            "line 7: port \"up\": neighbors: 1025 neighbours, more than 1024 (leave out those that answer ARP and ND, or reach them through a gateway)"
        ]
    );
}

#[test]
fn an_unknown_kind_hides_no_other_error() {
    assert_eq!(
        report("[[port]]\nname = 'a'\nkind = 'VF'\ndevice = 'x:y'\nip = ['z']\ngateway = 'g'"),
        [
            "line 3: port \"a\": kind = \"VF\": unknown kind of port (did you mean vf?)".to_string(),
            format!("line 4: port \"a\": device = \"x:y\": there is no kind \"x\" (write one of {})", device::FORMS),
            "line 5: port \"a\": ip[0] = \"z\": not an address or prefix (write 10.1.0.1, 10.1.0.0/24, fd00:1::1 or \
             fd00:1::/64)"
                .to_string(),
            "line 6: port \"a\": gateway = \"g\": not an address (write the router's address without a prefix length, \
             such as 192.0.2.254)"
                .to_string(),
        ]
    );
}

#[test]
fn names_and_devices_are_not_shared() {
    // The second port is otherwise wrong as well: that must not hide what it shares.
    let text = vf("") + &vf("mtu = 1");
    assert_eq!(
        report(&text),
        [
            "line 9: port \"vm1\": name = \"vm1\": another port has this name on line 1 (give each port a name of its own)",
            "line 11: port \"vm1\": device = \"tap:vm1\": port \"vm1\" has this device already (give each port a device of its own, or a VLAN of one)",
            "line 14: port \"vm1\": mtu = 1: too small (write 576 to 9600 bytes)",
        ]
    );
    let nulls = vf("").replace("tap:vm1", "null:") + &uplink("").replace("tap:up", "null:");
    assert_eq!(report(&nulls), Vec::<String>::new());
    let functions =
        vf("").replace("tap:vm1", "pci:0000:3b:0a.1") + &uplink("").replace("tap:up", "pci:0000:3B:0A.1");
    assert_eq!(
        report(&functions),
        [
            "line 11: port \"up\": device = \"pci:0000:3B:0A.1\": port \"vm1\" has this device already (give each port a device of its own, or a VLAN of one)"
        ]
    );
}

#[test]
fn vlans_hang_on_a_port_with_a_device() {
    let tenant =
        |name: &str, device: &str| vf("").replace("tap:vm1", device).replace("'vm1'", &format!("'{name}'"));
    // Parents may follow.
    assert_eq!(
        report(&(tenant("a", "vlan:up/7") + &tenant("b", "vlan:up/8") + &uplink(""))),
        Vec::<String>::new()
    );
    for (devices, expected) in [
        (
            ["vlan:nobody/7", "null:"],
            "line 4: port \"a\": device = \"vlan:nobody/7\": there is no port \"nobody\" (declare port \"nobody\", or name another)",
        ),
        (
            ["vlan:a/7", "null:"],
            "line 4: port \"a\": device = \"vlan:a/7\": a port cannot be a VLAN of itself (name the port that has the device)",
        ),
        (
            ["vlan:b/7", "vlan:up/7"],
            "line 4: port \"a\": device = \"vlan:b/7\": port \"b\" is a VLAN of another port itself (name the port that has the device)",
        ),
        (
            ["vlan:up/7", "vlan:up/007"],
            "line 11: port \"b\": device = \"vlan:up/007\": port \"a\" has this device already (give each port a device of its own, or a VLAN of one)",
        ),
        (
            ["vlan:up/0", "null:"],
            "line 4: port \"a\": device = \"vlan:up/0\": \"0\" is not a VLAN identifier (write 1 to 4094 after the /)",
        ),
    ] {
        let text = tenant("a", devices[0]) + &tenant("b", devices[1]) + &uplink("");
        assert_eq!(report(&text), [expected], "{devices:?}");
    }
    assert_eq!(
        report(&(tenant("a", "vlan:up/7") + &uplink("mtu = 1400"))),
        [
            "line 4: port \"a\": device = \"vlan:up/7\": mtu 1500 is more than the 1400 of port \"up\", which carries the packets (set mtu to at most 1400, or raise that of port \"up\")"
        ]
    );
    assert_eq!(
        report(&(vf("") + &uplink("").replace("tap:up", "vlan:vm1/7"))),
        [
            "line 11: port \"up\": device = \"vlan:vm1/7\": a VLAN of another port carries a tenant, not an uplink (write kind = \"vf\", or give the uplink a device of its own)"
        ]
    );
}

#[test]
fn devices_and_ports_are_bounded() {
    let ports = |count: usize, device: fn(usize) -> String| -> String {
        let port = |i: usize| vf("").replace("tap:vm1", &device(i)).replace("'vm1'", &format!("'vm{i}'"));
        (0..count).map(port).collect()
    };
    assert_eq!(report(&ports(32, |i| format!("tap:t{i}"))), Vec::<String>::new());
    assert_eq!(
        report(&ports(34, |i| format!("tap:t{i}"))),
        [
            "line 228: port \"vm32\": device = \"tap:t32\": device 33 of this host, and DPDK has room for 32 (put tenants behind VLAN tags of one device: device = \"vlan:PORT/ID\")"
        ]
    );
    let vlans = |i: usize| match i {
        0..3 => format!("tap:t{i}"),
        _ => format!("vlan:vm{}/{}", i % 3, 1 + i / 3),
    };
    assert_eq!(report(&ports(8192, vlans)), Vec::<String>::new());
    assert_eq!(
        report(&ports(8194, vlans)),
        ["line 57345: port \"vm8192\": this is port 8193, and a host has room for 8192 (remove ports)"]
    );
}

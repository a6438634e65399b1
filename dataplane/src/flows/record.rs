//! What a flow's key says, as people read it: the way back from the words of [`FlowKey`](super::key::FlowKey).

use crate::action::PortId;
use crate::flows::key::{self, HEAD_WORDS, Tail};
use crate::wire::mac_from_bits;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The tunnel that a flow came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The VXLAN network.
    pub vni: u32,
    /// Outer source.
    pub source: IpAddr,
}

/// The fields of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The port that received it.
    pub port: PortId,
    /// Where from, unless a tenant sent it.
    pub outer: Option<Outer>,
    /// Source MAC.
    pub src_mac: [u8; 6],
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub protocol: u8,
    /// Source and destination port, of TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// DSCP.
    pub dscp: u8,
}

impl FlowRecord {
    /// The fields of a key.
    pub fn decode(head: &[u64; HEAD_WORDS], tail: &Tail) -> FlowRecord {
        let outer = key::tunnel(head, tail).map(|(vni, source)| Outer { vni, source });
        let fields = key::fields(head, tail);
        let (src, dst): (IpAddr, IpAddr) = match (fields.ipv4(), fields.ipv6()) {
            (Some((src, dst)), _) => (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into()),
            (None, ends) => {
                let (src, dst) = ends.unwrap_or_default();
                (Ipv6Addr::from(src).into(), Ipv6Addr::from(dst).into())
            }
        };
        FlowRecord {
            port: key::port(head),
            outer,
            src_mac: mac_from_bits(fields.src_mac()),
            dst_mac: mac_from_bits(fields.dst_mac()),
            src,
            dst,
            protocol: fields.proto(),
            ports: fields.ports(),
            dscp: fields.dscp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::key::{FlowKey, Scope};
    use crate::flows::shape::Shape;
    use crate::wire::protocol;
    use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
    use proptest::prelude::*;

    /// The frame of a flow, built without the code under test.
    fn frame(flow: &FlowRecord) -> Vec<u8> {
        let mut transport = Vec::new();
        let (from, to) = flow.ports.unwrap_or_default();
        match flow.protocol {
            protocol::TCP => TcpHeader::new(from, to, 1, 2).write(&mut transport).unwrap(),
            protocol::UDP => {
                UdpHeader { source_port: from, destination_port: to, length: 28, checksum: 0 }
                    .write(&mut transport)
                    .unwrap();
            }
            _ => {}
        }
        transport.extend([7; 20]);
        let (mut out, length, number) = (Vec::new(), transport.len() as u16, IpNumber(flow.protocol));
        let ether_type = if flow.src.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        Ethernet2Header { source: flow.src_mac, destination: flow.dst_mac, ether_type }
            .write(&mut out)
            .unwrap();
        match (flow.src, flow.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header::new(length, 64, number, src.octets(), dst.octets()).unwrap();
                ip.dscp = flow.dscp.try_into().unwrap();
                ip.ecn = 1u8.try_into().unwrap();
                ip.header_checksum = ip.calc_header_checksum();
                ip.write(&mut out).unwrap();
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => Ipv6Header {
                traffic_class: flow.dscp << 2 | 2,
                flow_label: 0xa_bcdeu32.try_into().unwrap(),
                payload_length: length,
                next_header: number,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
            }
            .write(&mut out)
            .unwrap(),
            _ => panic!("two families"),
        }
        out.extend(transport);
        out
    }

    /// Where a flow came from, as the stage that reads the packet says it: words as they stand there.
    fn scope(flow: &FlowRecord, local: u16) -> Scope {
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let Some(Outer { vni, source }) = flow.outer else { return Scope::egress(flow.port.0, 9) };
        let [_, a, b, c] = vni.to_be_bytes();
        let vni = u32::from_le_bytes([a, b, c, 0]);
        match source {
            IpAddr::V4(source) => {
                Scope::vxlan_v4(flow.port.0, vni, local, u32::from_le_bytes(source.octets()), 9)
            }
            IpAddr::V6(source) => {
                let octets = source.octets();
                Scope::vxlan_v6(flow.port.0, vni, local, [word(&octets[..8]), word(&octets[8..])], 9)
            }
        }
    }

    fn address(is_v6: bool, bytes: [u8; 16]) -> IpAddr {
        let [a, b, c, d, ..] = bytes;
        if is_v6 { bytes.into() } else { [a, b, c, d].into() }
    }

    proptest! {
        #[test]
        fn what_is_decoded_is_what_the_packet_says(
            (port, local) in (0u16..8192, any::<u16>()),
            outer in proptest::option::of((0u32..1 << 24, any::<bool>(), any::<[u8; 16]>())),
            macs: ([u8; 6], [u8; 6]),
            is_v6: bool,
            ends: ([u8; 16], [u8; 16]),
            protocol in prop_oneof![Just(6u8), Just(17), Just(47), Just(253)],
            ports: (u16, u16),
            dscp in 0u8..64,
        ) {
            let flow = FlowRecord {
                port: PortId(port),
                outer: outer.map(|(vni, is_v6, source)| Outer { vni, source: address(is_v6, source) }),
                src_mac: macs.0,
                dst_mac: macs.1,
                src: address(is_v6, ends.0),
                dst: address(is_v6, ends.1),
                protocol,
                ports: matches!(protocol, 6 | 17).then_some(ports),
                dscp,
            };
            let bytes = frame(&flow);
            let mut key = FlowKey::NONE;
            let shape = Shape::of(&bytes, bytes.len());
            prop_assert!(shape.is_some(), "{:02x?}", bytes);
            shape.unwrap().write_key(scope(&flow, local), 77.into(), &mut key);
            prop_assert_eq!(FlowRecord::decode(&key.head.words, &key.tail), flow);
        }
    }
}

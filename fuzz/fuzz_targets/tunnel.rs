//! What tunnels bring: the outer headers, the VXLAN header, the inner frame, the words of the ingress rules; and the
//! inner frame put into a tunnel again, which must read back as it was.

#![no_main]

use forebay_dataplane::rules::key::KEY_WORDS;
use forebay_dataplane::rules::pattern::ingress_words;
use forebay_dataplane::rules::rule::Opaque;
use forebay_dataplane::wire::frame::{Fragment, Frame, Network, WINDOW_BYTES};
use forebay_dataplane::wire::vxlan::{self, Checksum, Patch, Template};
use forebay_dataplane::wire::{UDP_BYTES, be16, checksum, protocol};
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

fuzz_target!(|data: &[u8]| {
    if let Some((vni, outer, inner)) = open(data) {
        if let Some(frame) = parse(inner) {
            let words = ingress_words(&frame.key, &outer.key, Opaque::Vxlan(vni), 7);
            assert_eq!(words[..KEY_WORDS], frame.key.0);
            assert_eq!(words[KEY_WORDS] >> 32, u64::from(vni));
            assert_eq!(words[KEY_WORDS] & 0xffff, 8);
        }
        encapsulate(inner, vni);
    }
    encapsulate(data, u32::from(be16(data, 0).unwrap_or(0)));
});

fn parse(data: &[u8]) -> Option<Frame> {
    Frame::parse(&data[..data.len().min(WINDOW_BYTES)], data.len()).ok()
}

/// As the uplink looks at a packet: VNI, outer headers, inner bytes.
fn open(data: &[u8]) -> Option<(u32, Frame, &[u8])> {
    let outer = parse(data)?;
    let is_vxlan = outer.key.proto() == protocol::UDP && outer.key.ports()?.1 == vxlan::UDP_PORT;
    if !is_vxlan || outer.fragment != Fragment::Whole {
        return None;
    }
    let l4 = usize::from(outer.l4_offset);
    let udp_bytes = usize::from(be16(data, l4 + 4).expect("the pass has seen the UDP header"));
    assert!(udp_bytes >= UDP_BYTES && l4 + udp_bytes <= data.len());
    let vni = vxlan::parse_vni(&data[..l4 + udp_bytes], l4 + UDP_BYTES)?;
    assert!(vni < 1 << 24);
    Some((vni, outer, &data[l4 + UDP_BYTES + vxlan::VXLAN_BYTES..l4 + udp_bytes]))
}

fn encapsulate(inner: &[u8], vni: u32) {
    let inner = &inner[..inner.len().min(9000)];
    for (source, remote) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let (source, remote): (IpAddr, IpAddr) = (source.parse().unwrap(), remote.parse().unwrap());
        let template = Template::new([2, 0, 0, 0, 0, 1], source, remote, vni, 64, 46).expect("one family");
        let ecn = inner.first().map_or(0, |byte| byte & 3);
        let flow_hash = vni.wrapping_mul(0x9e37_79b9);
        let checksum = Checksum::Sum(checksum::add(0, inner));
        let patch =
            Patch { next_hop: [2, 0, 0, 0, 0, 2], inner_bytes: inner.len(), ecn, flow_hash, checksum };
        let mut bytes = vec![0xaa; template.len()];
        match source {
            IpAddr::V4(_) => {
                template.write_v4(bytes.first_chunk_mut().expect("the template's length"), &patch)
            }
            IpAddr::V6(_) => {
                template.write_v6(bytes.first_chunk_mut().expect("the template's length"), &patch)
            }
        }
        bytes.extend(inner);
        let (back, outer, payload) = open(&bytes).expect("what was written reads back");
        assert_eq!((back, payload), (vni, inner));
        assert_eq!(bytes[..6], patch.next_hop);
        assert_eq!(outer.traffic_class, 46 << 2 | ecn);
        assert!(matches!(outer.network, Network::Ipv4 | Network::Ipv6));
        if let (IpAddr::V6(source), IpAddr::V6(remote)) = (source, remote) {
            let l4 = usize::from(outer.l4_offset);
            let sum = checksum::pseudo_v6(source, remote, protocol::UDP, (bytes.len() - l4) as u32);
            assert_eq!(checksum::fold(checksum::add(sum, &bytes[l4..])), 0);
        }
    }
}

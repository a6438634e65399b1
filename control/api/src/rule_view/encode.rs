//! From a view to the encoded form: byte for byte what prost writes for the message.
//!
//! Nested messages are written first and moved behind their length: all of them are shorter than 128 bytes in usual rules,
//! so that one byte is reserved and a longer one moves its content once.

use super::{ActionView, ForwardView, IngressView, MatchView, RuleView, TunnelView};

/// Wire types of the protobuf format.
const VARINT: u32 = 0;
const LENGTH_DELIMITED: u32 = 2;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u32, wire: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire), out);
}

/// A field that is left out where it has its default.
fn text(number: u32, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        key(number, LENGTH_DELIMITED, out);
        varint(value.len() as u64, out);
        out.extend_from_slice(value.as_bytes());
    }
}

fn plain(number: u32, value: u32, out: &mut Vec<u8>) {
    if value != 0 {
        optional(number, Some(value), out);
    }
}

/// A field that is there whatever its value, or absent.
fn optional(number: u32, value: Option<u32>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        key(number, VARINT, out);
        varint(u64::from(value), out);
    }
}

fn message(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    key(number, LENGTH_DELIMITED, out);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        varint(length as u64, &mut prefix);
        out.splice(at..=at, prefix);
    }
}

fn tunnel(number: u32, tunnel: Option<TunnelView>, out: &mut Vec<u8>) {
    if let Some(TunnelView::Vxlan(vni)) = tunnel {
        message(number, out, |out| message(1, out, |out| plain(1, vni, out)));
    }
}

fn range(number: u32, range: Option<(u32, u32)>, out: &mut Vec<u8>) {
    if let Some((first, last)) = range {
        message(number, out, |out| {
            plain(1, first, out);
            plain(2, last, out);
        });
    }
}

impl RuleView<'_> {
    /// Appends the encoded rule.
    pub fn encode(&self, out: &mut Vec<u8>) {
        text(1, self.id, out);
        text(2, self.port, out);
        if let Some(ingress) = &self.ingress {
            message(3, out, |out| ingress.encode(out));
        }
        plain(4, self.priority, out);
        if let Some(matches) = &self.matches {
            message(5, out, |out| matches.encode(out));
        }
        if let Some(action) = &self.action {
            message(6, out, |out| action.encode(out));
        }
    }
}

impl IngressView<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        tunnel(1, self.tunnel, out);
        text(2, self.local, out);
        text(3, self.remote, out);
        text(4, self.uplink, out);
    }
}

impl MatchView<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        text(1, self.dst_mac, out);
        text(2, self.src_mac, out);
        optional(3, self.ethertype, out);
        optional(4, self.vlan, out);
        text(5, self.src, out);
        text(6, self.dst, out);
        optional(7, self.proto, out);
        range(8, self.src_port, out);
        range(9, self.dst_port, out);
        optional(10, self.dscp, out);
    }
}

impl ActionView<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            ActionView::Forward(forward) => message(1, out, |out| forward.encode(out)),
            ActionView::Deliver { port, pop_vlan, push_vlan } => message(2, out, |out| {
                text(1, port, out);
                plain(2, u32::from(*pop_vlan), out);
                optional(3, *push_vlan, out);
            }),
            ActionView::Trap => message(3, out, |_| {}),
            ActionView::Drop => message(4, out, |_| {}),
        }
    }
}

impl ForwardView<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        tunnel(1, self.tunnel, out);
        text(2, self.remote, out);
        text(3, self.source, out);
        optional(4, self.ttl, out);
        optional(5, self.dscp, out);
        text(6, self.inner_dst_mac, out);
        optional(7, self.push_vlan, out);
    }
}

//! From the encoded form to a view: a reader of the protobuf wire format (varints and length-delimited fields).
//!
//! It gives up (`None`) where the format leaves room for doubt or for repetition: bytes that are cut off, a field of
//! another type, a nested message that comes in two pieces. Unknown fields are skipped, as prost does.

use super::{ActionView, ForwardView, IngressView, MatchView, RuleView, TunnelView};

/// A value of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed-size; no field of a rule has it.
    Other,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (index, byte) in self.0.iter().enumerate() {
            // Ten bytes hold 64 bits; the last one has a single bit.
            if index == 9 && *byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next field with its number.
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let key = u32::try_from(self.varint()?).ok()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None,
        };
        (key >> 3 != 0).then_some((key >> 3, value))
    }
}

impl<'a> Value<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            Value::Number(_) | Value::Other => None,
        }
    }

    fn number(self) -> Option<u32> {
        match self {
            Value::Number(number) => number.try_into().ok(),
            Value::Bytes(_) | Value::Other => None,
        }
    }

    fn message(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            Value::Number(_) | Value::Other => None,
        }
    }
}

/// Calls `take` for every field; it says `None` where the field's value is not what it should be.
fn fields<'a>(bytes: &'a [u8], mut take: impl FnMut(u32, Value<'a>) -> Option<()>) -> Option<()> {
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let (number, value) = reader.field()?;
        take(number, value)?;
    }
    Some(())
}

/// Sets a field that may come once only: two pieces of a message would have to be merged.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

impl<'a> RuleView<'a> {
    /// The id of an encoded rule that begins with it, as [`RuleView::encode`] writes rules; `None` otherwise.
    pub fn first_id(bytes: &'a [u8]) -> Option<&'a str> {
        let mut reader = Reader(bytes);
        let (number, value) = reader.field()?;
        (number == 1).then(|| value.text()).flatten()
    }

    /// Reads an encoded rule; `None` where it is not a plain encoding of one.
    pub fn decode(bytes: &'a [u8]) -> Option<RuleView<'a>> {
        let mut rule = RuleView::default();
        let mut action = None;
        fields(bytes, |number, value| {
            match number {
                1 => rule.id = value.text()?,
                2 => rule.port = value.text()?,
                3 => once(&mut rule.ingress, ingress(value.message()?)?)?,
                4 => rule.priority = value.number()?,
                5 => once(&mut rule.matches, matches(value.message()?)?)?,
                6 => once(&mut action, action_of(value.message()?)?)?,
                _ => {}
            }
            Some(())
        })?;
        rule.action = action.flatten();
        Some(rule)
    }
}

fn tunnel(bytes: &[u8]) -> Option<Option<TunnelView>> {
    let mut vxlan = None;
    fields(bytes, |number, value| match number {
        1 => once(&mut vxlan, vni(value.message()?)?),
        _ => Some(()),
    })?;
    Some(vxlan.map(TunnelView::Vxlan))
}

fn vni(bytes: &[u8]) -> Option<u32> {
    let mut vni = 0;
    fields(bytes, |number, value| {
        if number == 1 {
            vni = value.number()?;
        }
        Some(())
    })?;
    Some(vni)
}

fn ingress(bytes: &[u8]) -> Option<IngressView<'_>> {
    let mut ingress = IngressView::default();
    let mut named = None;
    fields(bytes, |number, value| {
        match number {
            1 => once(&mut named, tunnel(value.message()?)?)?,
            2 => ingress.local = value.text()?,
            3 => ingress.remote = value.text()?,
            4 => ingress.uplink = value.text()?,
            _ => {}
        }
        Some(())
    })?;
    ingress.tunnel = named.flatten();
    Some(ingress)
}

fn matches(bytes: &[u8]) -> Option<MatchView<'_>> {
    let mut matches = MatchView::default();
    fields(bytes, |number, value| {
        match number {
            1 => matches.dst_mac = value.text()?,
            2 => matches.src_mac = value.text()?,
            3 => matches.ethertype = Some(value.number()?),
            4 => matches.vlan = Some(value.number()?),
            5 => matches.src = value.text()?,
            6 => matches.dst = value.text()?,
            7 => matches.proto = Some(value.number()?),
            8 => once(&mut matches.src_port, range(value.message()?)?)?,
            9 => once(&mut matches.dst_port, range(value.message()?)?)?,
            10 => matches.dscp = Some(value.number()?),
            _ => {}
        }
        Some(())
    })?;
    Some(matches)
}

fn range(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut range = (0, 0);
    fields(bytes, |number, value| {
        match number {
            1 => range.0 = value.number()?,
            2 => range.1 = value.number()?,
            _ => {}
        }
        Some(())
    })?;
    Some(range)
}

fn action_of(bytes: &[u8]) -> Option<Option<ActionView<'_>>> {
    let mut action = None;
    fields(bytes, |number, value| {
        let kind = match number {
            1 => ActionView::Forward(forward(value.message()?)?),
            2 => deliver(value.message()?)?,
            3 => fields(value.message()?, |_, _| Some(())).map(|()| ActionView::Trap)?,
            4 => fields(value.message()?, |_, _| Some(())).map(|()| ActionView::Drop)?,
            _ => return Some(()),
        };
        once(&mut action, kind)
    })?;
    Some(action)
}

fn forward(bytes: &[u8]) -> Option<ForwardView<'_>> {
    let mut forward = ForwardView::default();
    let mut named = None;
    fields(bytes, |number, value| {
        match number {
            1 => once(&mut named, tunnel(value.message()?)?)?,
            2 => forward.remote = value.text()?,
            3 => forward.source = value.text()?,
            4 => forward.ttl = Some(value.number()?),
            5 => forward.dscp = Some(value.number()?),
            6 => forward.inner_dst_mac = value.text()?,
            7 => forward.push_vlan = Some(value.number()?),
            _ => {}
        }
        Some(())
    })?;
    forward.tunnel = named.flatten();
    Some(forward)
}

fn deliver(bytes: &[u8]) -> Option<ActionView<'_>> {
    let (mut port, mut pop_vlan, mut push_vlan) = ("", false, None);
    fields(bytes, |number, value| {
        match number {
            1 => port = value.text()?,
            2 => pop_vlan = value.number()? != 0,
            3 => push_vlan = Some(value.number()?),
            _ => {}
        }
        Some(())
    })?;
    Some(ActionView::Deliver { port, pop_vlan, push_vlan })
}

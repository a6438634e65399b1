//! Rules as people read them in a table: the words of the JSON form without its punctuation.

use std::fmt::Write as _;

use forebay_api::v1::{Action, Forward, Match, PortRange, Rule, Tunnel, action, tunnel};
use forebay_api::validate;

/// Words joined by spaces.
#[derive(Default)]
struct Words(String);

impl Words {
    fn word(&mut self, word: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word);
        self
    }

    /// A key and its text, unless that is empty.
    fn text(&mut self, key: &str, text: &str) -> &mut Self {
        if !text.is_empty() {
            self.word(key).word(text);
        }
        self
    }

    /// A key and its number, where there is one.
    fn number(&mut self, key: &str, number: Option<u32>) -> &mut Self {
        if let Some(number) = number {
            self.word(key);
            // Writing into a String cannot fail.
            let _ = write!(self.0, " {number}");
        }
        self
    }

    fn tunnel(&mut self, tunnel: Option<&Tunnel>) -> &mut Self {
        match tunnel.and_then(|tunnel| tunnel.kind.as_ref()) {
            Some(tunnel::Kind::Vxlan(vxlan)) => self.word("vxlan").number("vni", Some(vxlan.vni)),
            None => self.word("unknown tunnel"),
        }
    }
}

/// Where a rule's packets come from: the port, or the tunnel.
pub fn origin(rule: &Rule) -> String {
    let Some(ingress) = &rule.ingress else {
        return rule.port.clone();
    };
    let mut words = Words::default();
    words
        .tunnel(ingress.tunnel.as_ref())
        .text("local", &ingress.local)
        .text("remote", &ingress.remote)
        .text("uplink", &ingress.uplink);
    words.0
}

/// What a rule matches; `any` where it matches all.
pub fn matching(fields: Option<&Match>) -> String {
    let mut words = Words::default();
    if let Some(fields) = fields {
        let ethertype = |number| match validate::ethertype_name(number) {
            Some(name) => name.to_owned(),
            None => format!("{number:#06x}"),
        };
        let proto =
            |number| validate::protocol_name(number).map_or_else(|| number.to_string(), str::to_owned);
        words
            .text("dst_mac", &fields.dst_mac)
            .text("src_mac", &fields.src_mac)
            .text("ethertype", &fields.ethertype.map(ethertype).unwrap_or_default())
            .number("vlan", fields.vlan)
            .text("src", &fields.src)
            .text("dst", &fields.dst)
            .text("proto", &fields.proto.map(proto).unwrap_or_default())
            .text("src_port", &fields.src_port.as_ref().map(range).unwrap_or_default())
            .text("dst_port", &fields.dst_port.as_ref().map(range).unwrap_or_default())
            .number("dscp", fields.dscp);
    }
    if words.0.is_empty() { "any".to_owned() } else { words.0 }
}

fn range(range: &PortRange) -> String {
    if range.first == range.last {
        range.first.to_string()
    } else {
        format!("{}-{}", range.first, range.last)
    }
}

/// What a rule does.
pub fn action(action: Option<&Action>) -> String {
    let mut words = Words::default();
    match action.and_then(|action| action.kind.as_ref()) {
        Some(action::Kind::Forward(fields)) => forward(&mut words, fields),
        Some(action::Kind::Deliver(deliver)) => {
            words.text("deliver", &deliver.port);
            if deliver.pop_vlan {
                words.word("pop_vlan");
            }
            words.number("push_vlan", deliver.push_vlan);
        }
        Some(action::Kind::Trap(_)) => drop(words.word("trap")),
        Some(action::Kind::Drop(_)) => drop(words.word("drop")),
        None => drop(words.word("unknown")),
    }
    words.0
}

fn forward(words: &mut Words, fields: &Forward) {
    words
        .word("forward")
        .tunnel(fields.tunnel.as_ref())
        .text("remote", &fields.remote)
        .text("source", &fields.source)
        .number("ttl", fields.ttl)
        .number("dscp", fields.dscp)
        .text("inner_dst_mac", &fields.inner_dst_mac)
        .number("push_vlan", fields.push_vlan);
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_api::rule_json::parse_rule;

    fn texts(json: &str) -> [String; 3] {
        let rule = parse_rule(json).unwrap();
        [origin(&rule), matching(rule.r#match.as_ref()), action(rule.action.as_ref())]
    }

    #[test]
    fn reads_like_the_json_without_its_punctuation() {
        assert_eq!(
            texts(
                r#"{"id":"e","port":"vm1","match":{"dst":"10.9.0.0/16","proto":"tcp","dst_port":"8000-8999","vlan":0},
                "action":{"forward":{"tunnel":"vxlan","vni":7,"remote":"192.0.2.2","ttl":9}}}"#
            ),
            [
                "vm1",
                "vlan 0 dst 10.9.0.0/16 proto tcp dst_port 8000-8999",
                "forward vxlan vni 7 remote 192.0.2.2 ttl 9"
            ]
        );
        assert_eq!(
            texts(
                r#"{"id":"i","ingress":{"tunnel":"vxlan","vni":7,"local":"192.0.2.9"},
                "action":{"deliver":{"port":"vm1","pop_vlan":true,"push_vlan":5}}}"#
            ),
            ["vxlan vni 7 local 192.0.2.9", "any", "deliver vm1 pop_vlan push_vlan 5"]
        );
    }

    #[test]
    fn what_a_newer_daemon_says_is_unknown() {
        assert_eq!(action(None), "unknown");
        assert_eq!(
            matching(Some(&Match { ethertype: Some(0x88cc), ..Default::default() })),
            "ethertype 0x88cc"
        );
    }
}

//! The JSON form of a rule, one object a line: to [`v1::Rule`](crate::v1::Rule) and back.
//!
//! Canonical rules survive the way out and back unchanged, and so do the counters' keys that `rule list` adds: what
//! it prints can be loaded again.

mod fast;
mod read;
mod write;

pub use read::{MAX_RULE_BYTES, encode_rule, parse_rule};
pub use write::{rule_to_json, status_to_json};

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{rule_check, v1};

    const EXAMPLES: [&str; 4] = [
        r#"{"id":"e1","port":"vm1","priority":100,"match":{"dst":"10.1.0.2/32"},"action":{"forward":{"tunnel":"vxlan","vni":100,"remote":"192.0.2.2","inner_dst_mac":"02:00:00:00:01:02"}}}"#,
        r#"{"id":"e2","port":"vm1","priority":10,"match":{"dst":"10.9.0.0/16","proto":"tcp","dst_port":"8000-8999"},"action":"drop"}"#,
        r#"{"id":"e3","port":"vm1","priority":0,"match":{"dst_mac":"02:00:00:00:01:09"},"action":{"deliver":{"port":"vm2"}}}"#,
        r#"{"id":"i1","ingress":{"tunnel":"vxlan","vni":100},"priority":0,"match":{"dst_mac":"02:00:00:00:01:01"},"action":{"deliver":{"port":"vm1"}}}"#,
    ];

    fn refused(text: &str) -> String {
        parse_rule(text).unwrap_err().to_string()
    }

    /// A rule "e2" on port vm1 that drops, with these match fields.
    fn refused_match(fields: &str) -> String {
        refused(&format!(r#"{{"id":"e2","port":"vm1","match":{{{fields}}},"action":"drop"}}"#))
    }

    /// A rule "e2" on port vm1 with this action.
    fn refused_action(action: &str) -> String {
        refused(&format!(r#"{{"id":"e2","port":"vm1","match":{{}},"action":{action}}}"#))
    }

    #[test]
    fn the_documented_examples_are_canonical() {
        for example in EXAMPLES {
            assert_eq!(rule_to_json(&parse_rule(example).unwrap()), example);
        }
    }

    #[test]
    fn every_spelling_means_the_same() {
        let spelled = r#" {"action":{"drop":{}},"match":{"proto":6,"dst":"FD00::0:1","dst_port":443,"ethertype":"0x86DD",
            "src_mac":"02:00:00:00:0A:0B"},"port":"vm1","id":"\u0065"} "#;
        assert_eq!(
            rule_to_json(&parse_rule(spelled).unwrap()),
            r#"{"id":"e","port":"vm1","priority":0,"match":{"src_mac":"02:00:00:00:0a:0b","ethertype":"ipv6","dst":"fd00::1/128","proto":"tcp","dst_port":443},"action":"drop"}"#
        );
    }

    #[test]
    fn what_list_prints_can_be_loaded() {
        let rule = parse_rule(EXAMPLES[0]).unwrap();
        let line = status_to_json(&v1::RuleStatus { rule: Some(rule.clone()), packets: 3, bytes: u64::MAX });
        assert!(line.ends_with(r#""packets":3,"bytes":18446744073709551615}"#), "{line}");
        assert_eq!(parse_rule(&line).unwrap(), rule);
    }

    #[test]
    fn errors_name_rule_field_value_and_remedy() {
        assert_eq!(
            refused_match(r#""dst_port":"8999-8000""#),
            "rule \"e2\": match.dst_port: \"8999-8000\" is not a port or a range (write 443 or \"8000-8999\", low end \
             first)"
        );
        assert_eq!(
            refused_match(r#""dst":"10.1.0.1/16""#),
            "rule \"e2\": match.dst: \"10.1.0.1/16\" has bits set behind its prefix length (did you mean 10.1.0.0/16?)"
        );
        assert_eq!(
            refused_match(r#""dport":1"#),
            "rule \"e2\": match: unknown key \"dport\" (allowed: dst_mac, src_mac, ethertype, vlan, src, dst, proto, \
             src_port, dst_port, dscp)"
        );
        assert_eq!(
            refused_match(r#""dst":"10.0.0.0/8","dst":"10.0.0.0/8""#),
            "rule \"e2\": match: key \"dst\" stands there twice (keep one)"
        );
        for (fields, words) in [
            (r#""dst_mac":"x""#, "match.dst_mac: \"x\" is not a MAC address"),
            (r#""dst_mac":5"#, "match.dst_mac: 5 is not a string"),
            (r#""src":"""#, "match.src: \"\" is empty"),
            (r#""vlan":4095"#, "match.vlan: 4095 is not a VLAN identifier"),
            (r#""vlan":"5""#, "match.vlan: \"5\" is not a whole number"),
            (r#""vlan":-5"#, "match.vlan: -5 is not a whole number"),
            (r#""vlan":5.0"#, "match.vlan: 5.0 is not a whole number"),
            (r#""vlan":null"#, "match.vlan: null is not a whole number"),
            (
                r#""proto":"tcpp""#,
                "match.proto: \"tcpp\" is not an IP protocol (write a number from 0 to 255, or one of tcp,",
            ),
            (r#""proto":256"#, "match.proto: 256 is not an IP protocol"),
            (r#""src_port":70000"#, "match.src_port: 70000 is not a port or a range"),
            (r#""src_port":[1]"#, "match.src_port: a list is not a whole number or a string"),
            (r#""ethertype":"0x0100""#, "match.ethertype: \"0x0100\" is not an EtherType"),
            (r#""dscp":64"#, "match.dscp: 64 is not a DSCP"),
        ] {
            let error = refused_match(fields);
            assert!(error.starts_with("rule \"e2\": ") && error.contains(words), "{fields}: {error}");
        }
    }

    #[test]
    fn action_errors_say_what_is_possible() {
        assert_eq!(
            refused_action(
                r#"{"forward":{"tunnel":"geneve","vni":1,"options":[{"class":1}],"remote":"192.0.2.2"}}"#
            ),
            "rule \"e2\": action.forward: tunnel \"geneve\" is not supported by this version (supported: vxlan)"
        );
        for (action, words) in [
            (r#""dorp""#, "action: \"dorp\" is not an action (write \"drop\", \"trap\", {\"forward\":{...}}"),
            ("{}", "action: an object without exactly one key is not an action"),
            (r#"{"drop":{},"trap":{}}"#, "action: an object without exactly one key is not an action"),
            (r#"{"drop":{"a":1}}"#, "action.drop: unknown key \"a\" (allowed: none)"),
            (
                r#"{"forward":{"tunnel":"vxlam"}}"#,
                "action.forward.tunnel: \"vxlam\" is not a tunnel (write vxlan)",
            ),
            (r#"{"forward":{"vni":1}}"#, "action.forward: tunnel is missing"),
            (r#"{"forward":{"tunnel":"vxlan"}}"#, "action.forward: vni is missing"),
            (
                r#"{"forward":{"tunnel":"vxlan","vni":16777216}}"#,
                "action.forward.vni: 16777216 is not a VXLAN",
            ),
            (r#"{"forward":{"tunnel":"vxlan","vni":1}}"#, "action.forward: remote is missing"),
            (
                r#"{"forward":{"tunnel":"vxlan","vni":1,"remote":"224.0.0.1"}}"#,
                "action.forward.remote: \"224.0.0.1\"",
            ),
            (r#"{"deliver":{}}"#, "action.deliver: port is missing"),
            (r#"{"deliver":{"port":"a/b"}}"#, "action.deliver.port: \"a/b\" is not a port name"),
            (r#"{"deliver":{"port":"vm2","pop_vlan":1}}"#, "action.deliver.pop_vlan: 1 is not true or false"),
            (r#"{"deliver":{"port":"vm2","push_vlan":0}}"#, "action.deliver.push_vlan: 0 is not a VLAN"),
        ] {
            let error = refused_action(action);
            assert!(error.contains(words), "{action}: {error}");
        }
    }

    #[test]
    fn objects_that_are_no_rules() {
        assert!(refused("").starts_with("rule: not JSON: EOF while parsing a value at column 0"));
        assert_eq!(refused("[]"), "rule: a list is not an object (write {...})");
        assert!(refused("{}").starts_with("rule: id is missing"));
        assert!(refused(r#"{"id":"x"}"#).starts_with("rule \"x\": port or ingress is missing"));
        assert!(
            refused(r#"{"id":"x","port":"a","ingress":{"tunnel":"vxlan","vni":1}}"#)
                .contains("are both there")
        );
        assert!(refused(r#"{"id":"x","port":"a"}"#).contains("action is missing"));
        assert!(
            refused(r#"{"id":"x","priority":4294967296}"#).contains("priority: 4294967296 is not a priority")
        );
        assert!(refused(&format!(r#"{{"id":"{}"}}"#, "x".repeat(129))).contains("is not an id"));
        assert!(refused(&" ".repeat(MAX_RULE_BYTES + 1)).contains("65537 bytes long, longer than 65536"));
        assert!(
            refused(&format!(r#"{{"id":{}1}}"#, "[".repeat(60_000))).contains("recursion limit exceeded")
        );
        let huge = refused(&format!(r#"{{"id":"a","{}":1}}"#, "k".repeat(60_000)));
        assert!(huge.len() < 300, "{huge}");
    }

    fn mac() -> impl Strategy<Value = String> {
        any::<[u8; 6]>().prop_map(|octets| crate::mac::MacAddr(octets).to_string())
    }

    fn maybe(text: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), text]
    }

    fn host() -> impl Strategy<Value = String> {
        any::<u32>().prop_map(|bits| std::net::Ipv4Addr::from(bits % 0xdfff_ffff + 1).to_string())
    }

    fn prefix() -> impl Strategy<Value = String> {
        (any::<std::net::Ipv6Addr>(), 0..=128_u8)
            .prop_map(|(address, length)| ipnet::Ipv6Net::new(address, length).unwrap().trunc().to_string())
    }

    fn range() -> impl Strategy<Value = Option<v1::PortRange>> {
        proptest::option::of((any::<u16>(), any::<u16>()).prop_map(|(one, other)| v1::PortRange {
            first: one.min(other).into(),
            last: one.max(other).into(),
        }))
    }

    fn tunnel() -> impl Strategy<Value = Option<v1::Tunnel>> {
        (0..1_u32 << 24)
            .prop_map(|vni| Some(v1::Tunnel { kind: Some(v1::tunnel::Kind::Vxlan(v1::Vxlan { vni })) }))
    }

    fn fields() -> impl Strategy<Value = v1::Match> {
        let option = proptest::option::of::<std::ops::Range<u32>>;
        let first = (maybe(mac()), maybe(mac()), option(0x600..0x1_0000), option(0..4095));
        let rest = (maybe(prefix()), maybe(prefix()), option(0..256), range(), range(), option(0..64));
        (first, rest).prop_map(
            |((dst_mac, src_mac, ethertype, vlan), (src, dst, proto, src_port, dst_port, dscp))| v1::Match {
                dst_mac,
                src_mac,
                ethertype,
                vlan,
                src,
                dst,
                proto,
                src_port,
                dst_port,
                dscp,
            },
        )
    }

    fn action() -> impl Strategy<Value = v1::action::Kind> {
        let option = proptest::option::of::<std::ops::Range<u32>>;
        let name = "[a-z0-9][a-z0-9._-]{0,20}";
        let outer =
            (tunnel(), host(), maybe(host()), option(1..256), option(0..64), maybe(mac()), option(1..4095));
        prop_oneof![
            Just(v1::action::Kind::Drop(v1::Drop {})),
            Just(v1::action::Kind::Trap(v1::Trap {})),
            (name, any::<bool>(), option(1..4095)).prop_map(|(port, pop_vlan, push_vlan)| {
                v1::action::Kind::Deliver(v1::Deliver { port, pop_vlan, push_vlan })
            }),
            outer.prop_map(|(tunnel, remote, source, ttl, dscp, inner_dst_mac, push_vlan)| {
                v1::action::Kind::Forward(v1::Forward {
                    tunnel,
                    remote,
                    source,
                    ttl,
                    dscp,
                    inner_dst_mac,
                    push_vlan,
                })
            }),
        ]
    }

    pub(crate) fn rule() -> impl Strategy<Value = v1::Rule> {
        let ingress = (tunnel(), maybe(prefix()), maybe("[a-z][a-z0-9]{0,8}".boxed())).prop_map(
            |(tunnel, remote, uplink)| v1::Ingress { tunnel, local: String::new(), remote, uplink },
        );
        let place = prop_oneof![
            "[A-Za-z0-9][A-Za-z0-9._-]{0,63}".prop_map(|port| (port, None)),
            ingress.prop_map(|ingress| (String::new(), Some(ingress))),
        ];
        ("[ -~äß☂]{1,128}", place, any::<u32>(), fields(), action()).prop_map(
            |(id, (port, ingress), priority, fields, kind)| v1::Rule {
                id,
                port,
                ingress,
                priority,
                r#match: Some(fields),
                action: Some(v1::Action { kind: Some(kind) }),
            },
        )
    }

    proptest! {
        #[test]
        fn rules_survive_the_way_out_and_back(rule in rule()) {
            let mut checked = rule.clone();
            rule_check::canonical(&mut checked).unwrap();
            prop_assert_eq!(&checked, &rule);
            let text = rule_to_json(&rule);
            let back = parse_rule(&text).unwrap();
            prop_assert_eq!(&back, &rule);
            prop_assert_eq!(rule_to_json(&back), &text[..]);
            let mut encoded = Vec::new();
            encode_rule(&text, &mut encoded).unwrap();
            prop_assert_eq!(encoded, rule.encode_to_vec());
            prop_assert!(rule.id.contains(['"', '\\']) || fast::read(&text).is_some(), "{}", text);
        }

        #[test]
        fn any_text_gives_a_rule_or_one_line(text in any::<String>()) {
            if let Err(error) = parse_rule(&text) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }

        #[test]
        fn mutated_rules_give_a_rule_or_one_line(
            rule in rule(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..6),
        ) {
            let mut bytes = rule_to_json(&rule).into_bytes();
            for (place, byte, edit) in edits {
                let at = place.index(bytes.len());
                match edit {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let short = fast::read(&text);
            match parse_rule(&text) {
                Ok(rule) => {
                    prop_assert!(short.is_none_or(|short| short == crate::rule_view::RuleView::of(&rule)));
                    prop_assert_eq!(parse_rule(&rule_to_json(&rule)).unwrap(), rule);
                }
                Err(error) => {
                    prop_assert!(short.is_none(), "{}", text);
                    prop_assert!(!error.to_string().contains('\n'));
                }
            }
        }
    }
}

//! The rule language: what parses is canonical, survives the way out and back, and becomes a rule of the dataplane; what
//! does not gives one line.

#![no_main]

use forebay_api::rule_check::canonical;
use forebay_api::rule_json::{parse_rule, rule_to_json, status_to_json};
use forebay_api::v1;
use forebay_dataplane::rules::pattern::{Pattern, precedence};
use forebay_dataplane::rules::rule::{Rule, Scope};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rule = match parse_rule(text) {
        Ok(rule) => rule,
        Err(error) => {
            let line = error.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
            return;
        }
    };
    let mut again = rule.clone();
    canonical(&mut again).expect("what was parsed is canonical");
    assert_eq!(again, rule);
    let line = rule_to_json(&rule);
    assert_eq!(parse_rule(&line).as_ref(), Ok(&rule), "{line}");
    let status = status_to_json(&v1::RuleStatus { rule: Some(rule.clone()), packets: u64::MAX, bytes: 1 });
    assert_eq!(parse_rule(&status).as_ref(), Ok(&rule), "{status}");
    compile(&rule);
});

fn compile(message: &v1::Rule) {
    let rule = Rule::from_canonical(message).expect("a canonical message becomes a rule");
    assert_eq!((&*rule.id, rule.priority), (message.id.as_str(), message.priority));
    assert!(precedence(rule.priority, &rule.matches) >> 16 == u64::from(rule.priority));
    let sound = |mask: &[u64], value: &[u64]| mask.iter().zip(value).all(|(mask, value)| value & !mask == 0);
    match &rule.scope {
        Scope::Egress(_) => {
            let pattern = Pattern::egress(&rule.matches);
            assert!(sound(&pattern.mask, &pattern.value), "a value outside of its mask matches nothing");
        }
        Scope::Ingress(scope) => {
            let pattern = Pattern::ingress(&rule.matches, scope.tunnel, scope.local, scope.remote, Some(3));
            assert!(sound(&pattern.mask, &pattern.value), "a value outside of its mask matches nothing");
        }
    }
}

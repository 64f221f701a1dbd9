use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> EgressRule {
    text.parse().unwrap()
}

fn host(text: &str) -> Host {
    text.parse().unwrap()
}

fn policy(list: &[&str]) -> NetworkPolicy {
    NetworkPolicy::Allow(list.iter().map(|&text| text.to_owned()).collect())
}

#[test]
fn a_rule_says_hosts_and_ports() {
    for (text, name, port, allowed) in [
        ("example.org", "example.org", 443, true),
        ("example.org", "example.org", 80, true),
        ("example.org", "example.org", 8080, false),
        ("example.org", "EXAMPLE.org", 443, true),
        ("Example.Org", "example.org", 443, true),
        ("example.org", "www.example.org", 443, false),
        ("example.org", "example.org.evil.net", 443, false),
        ("example.org:22", "example.org", 22, true),
        ("example.org:22", "example.org", 443, false),
        ("*.example.org", "a.example.org", 443, true),
        ("*.example.org", "a.b.example.org", 443, true),
        ("*.example.org", "example.org", 443, false),
        ("*.example.org", "badexample.org", 443, false),
        ("*.example.org:22", "a.example.org", 443, false),
        ("127.0.0.1:8080", "127.0.0.1", 8080, true),
        ("127.0.0.1:8080", "[::ffff:127.0.0.1]", 8080, false),
        ("[::1]", "[0:0::1]", 443, true),
        ("[::1]:9", "[::1]", 9, true),
    ] {
        assert_eq!(
            rule(text).allows(&host(name), port),
            allowed,
            "{text} {name}:{port}"
        );
    }
}

#[test]
fn f18_a_host_has_one_spelling() {
    for bad in [
        "",
        ".",
        "example.org.",
        "a..b",
        "-a",
        "a-",
        "a_b",
        "a b",
        "ä.org",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0",
        "1.2.3.4.5",
        "256.0.0.1",
        "a.0x",
        "a.1",
        "a.0X1F",
        "::1",
        "[::1",
        "::1]",
        "[::1%lo]",
        "[1.2.3.4]",
        "[a]",
        "u@a.org",
        "a.org/x",
        "①②⑦.0.0.1",
        "*",
        "a.*",
        "a%00b",
    ] {
        assert_eq!(bad.parse::<Host>(), Err(EgressRuleError::Host), "{bad:?}");
    }
    assert_eq!("a".repeat(64).parse::<Host>(), Err(EgressRuleError::Host));
    assert_eq!("a.".repeat(126).parse::<Host>(), Err(EgressRuleError::Host));
    assert!(host("xn--mnchen-3ya.de") != host("munchen.de"));
}

#[test]
fn what_is_no_rule_is_refused() {
    for (bad, error) in [
        ("", EgressRuleError::Host),
        ("*", EgressRuleError::Host),
        ("*.", EgressRuleError::Host),
        ("*.1", EgressRuleError::Host),
        ("*.127.0.0.1", EgressRuleError::Host),
        ("**.a.org", EgressRuleError::Host),
        ("a.*.org", EgressRuleError::Host),
        ("https://a.org", EgressRuleError::Port),
        ("a.org:", EgressRuleError::Port),
        ("a.org:0", EgressRuleError::Port),
        ("a.org:65536", EgressRuleError::Port),
        ("a.org:+1", EgressRuleError::Port),
        ("a.org:000080", EgressRuleError::Port),
        ("a.org:http", EgressRuleError::Port),
        ("::1", EgressRuleError::Host),
    ] {
        assert_eq!(bad.parse::<EgressRule>(), Err(error), "{bad:?}");
    }
    let long = format!("{}:443", "a".repeat(MAX_RULE_BYTES));
    assert_eq!(long.parse::<EgressRule>(), Err(EgressRuleError::TooLong));
}

#[test]
fn policies_are_ordered_by_what_they_let_reach() {
    let (none, open) = (NetworkPolicy::None, NetworkPolicy::Open);
    let list = policy(&["api.example.org", "*.git.example.org:22"]);
    for (most, other, covered) in [
        (&open, &open, true),
        (&open, &list, true),
        (&open, &none, true),
        (&list, &open, false),
        (&list, &none, true),
        (&none, &none, true),
        (&none, &list, false),
        (&none, &open, false),
        (&list, &policy(&["api.example.org:443"]), true),
        (
            &list,
            &policy(&["API.example.org:80", "a.git.example.org:22"]),
            true,
        ),
        (&list, &policy(&["*.a.git.example.org:22"]), true),
        (&list, &policy(&["*.git.example.org:22"]), true),
        (&list, &policy(&["git.example.org:22"]), false),
        (&list, &policy(&["*.example.org:22"]), false),
        (&list, &policy(&["a.git.example.org"]), false),
        (
            &list,
            &policy(&["api.example.org", "other.example.org"]),
            false,
        ),
        (&list, &policy(&["api.example.org:8443"]), false),
        (&list, &policy(&["0x7f.1"]), false),
        (&list, &policy(&[]), false),
        (&policy(&[]), &policy(&[]), false),
        (
            &policy(&["a.org:80", "a.org:443"]),
            &policy(&["a.org"]),
            true,
        ),
        (&policy(&["a.org:443"]), &policy(&["a.org"]), false),
        (&policy(&["*.0x7f"]), &policy(&["*.0x7f"]), false),
        (&policy(&["[::1]"]), &policy(&["[0::1]:443"]), true),
        (&policy(&["*.org"]), &policy(&["1.2.3.4"]), false),
    ] {
        assert_eq!(most.covers(other), covered, "{most:?} {other:?}");
    }
}

#[test]
fn lists_are_bounded_and_told_where_they_are_wrong() {
    assert_eq!(policy(&["a.org"]).check(), Ok(()));
    assert!(policy(&[]).check().unwrap_err().starts_with("allow: "));
    let wrong = policy(&["a.org", "127.1"]).check().unwrap_err();
    assert!(wrong.starts_with("allow[1]: "), "{wrong}");
    assert!(policy(&["a.org"; MAX_RULES]).check().is_ok());
    assert!(policy(&["a.org"; MAX_RULES + 1]).check().is_err());
}

#[test]
fn the_wire_has_words_and_one_object() {
    for (policy, json) in [
        (NetworkPolicy::None, r#""none""#),
        (NetworkPolicy::Open, r#""open""#),
        (policy(&["a.org"]), r#"{"allow":["a.org"]}"#),
    ] {
        assert_eq!(serde_json::to_string(&policy).unwrap(), json);
        assert_eq!(serde_json::from_str::<NetworkPolicy>(json).unwrap(), policy);
    }
    for bad in [
        r#"{"allow":"a.org"}"#,
        r#"{"allow":[],"x":1}"#,
        r#""allow""#,
        "{}",
    ] {
        assert!(serde_json::from_str::<NetworkPolicy>(bad).is_err(), "{bad}");
    }
}

prop_compose! {
    fn any_rule()(
        wild: bool,
        labels in prop::collection::vec("[ab]", 1..4),
        port in prop::option::of(prop::sample::select(vec![80_u16, 443, 22])),
    ) -> EgressRule {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        rule(&format!("{}{}{port}", if wild { "*." } else { "" }, labels.join(".")))
    }
}

proptest! {
    #[test]
    fn a_rule_reads_what_it_writes(rule in any_rule()) {
        prop_assert_eq!(rule.to_string().parse::<EgressRule>(), Ok(rule));
    }

    /// What is covered allows nothing that what covers it does not.
    #[test]
    fn f14_a_subset_lets_nothing_more_through(
        most in prop::collection::vec(any_rule(), 1..4),
        rules in prop::collection::vec(any_rule(), 1..4),
        labels in prop::collection::vec("[ab]", 1..5),
        port in prop::sample::select(vec![80_u16, 443, 22]),
    ) {
        let host = host(&labels.join("."));
        let allowed = |rules: &[EgressRule]| rules.iter().any(|rule| rule.allows(&host, port));
        if rules_cover(&most, &rules) && allowed(&rules) {
            prop_assert!(allowed(&most));
        }
        prop_assert!(rules_cover(&most, &most));
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = text.parse::<EgressRule>();
        if let Ok(host) = text.parse::<Host>() {
            prop_assert_eq!(host.to_string().parse::<Host>(), Ok(host));
        }
    }
}

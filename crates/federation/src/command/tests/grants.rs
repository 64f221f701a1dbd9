//! What a peer may do, and with how much.

use super::*;

/// F13, F14: default deny, for every command there is, reads as well.
#[test]
fn f14_f13_what_is_not_granted_is_refused() {
    let agent = json!({"agentId": AgentId::generate()});
    for command_type in CommandType::ALL.iter().copied() {
        let payload = match command_type {
            CommandType::AgentSpawn => spawn_payload(),
            CommandType::AgentRenew => json!({"agentIds": [AgentId::generate()], "leaseSecs": 60}),
            CommandType::AgentList | CommandType::AgentKillAll | CommandType::InstancePing => {
                json!({})
            }
            _ => agent.clone(),
        };
        let granted = authorise(command_type, &payload, &everything()).unwrap();
        assert_eq!(granted.command_type(), command_type);
        let mut others = everything();
        others.commands.retain(|other| *other != command_type);
        for grants in [others, Grants::none()] {
            let refused = refusal(authorise(command_type, &payload, &grants));
            assert_eq!(
                refused,
                at(ErrorCode::NotGranted, "commandType"),
                "{command_type}"
            );
        }
    }
}

#[test]
fn f14_spawns_stay_within_the_grant() {
    let spawn = |grants: &Grants, change: &dyn Fn(&mut Value)| {
        let mut payload = spawn_payload();
        change(&mut payload);
        authorise(CommandType::AgentSpawn, &payload, grants).map(|_| ())
    };
    let option = |name: &'static str, value: Value| {
        move |payload: &mut Value| payload["options"][name] = value.clone()
    };
    let mut grants = everything();
    grants.caps.max_timeout_secs = 100;
    grants.caps.max_retries = 1;
    grants.caps.max_memory_mb = Some(512);
    grants.caps.max_cpus = Some(1.5);
    grants.caps.max_budget_usd = Some(2.0);
    grants.caps.max_budget_tokens = Some(1000);
    grants.caps.network = NetworkPolicy::None;
    for (name, most, more) in [
        ("timeoutSecs", json!(100), json!(101)),
        ("maxRetries", json!(1), json!(2)),
        ("memoryMb", json!(512), json!(513)),
        ("cpus", json!(1.5), json!(1.6)),
        ("budgetUsd", json!(2), json!(2.01)),
        ("budgetTokens", json!(1000), json!(1001)),
        ("network", json!("none"), json!("open")),
    ] {
        assert!(spawn(&grants, &option(name, most)).is_ok(), "{name}");
        let refused = refusal(spawn(&grants, &option(name, more)));
        assert_eq!(
            refused,
            at(ErrorCode::GrantExceeded, &format!("options.{name}"))
        );
    }

    let not_granted = |field: &str| at(ErrorCode::NotGranted, field);
    let elsewhere = |payload: &mut Value| {
        payload["context"]["repository"] = json!("file:///srv/git/sub/a.git");
    };
    assert_eq!(
        refusal(spawn(&grants, &elsewhere)),
        not_granted("context.repository")
    );
    let mut broken = grants.clone();
    broken.repositories = vec!["**".to_owned(), "{".to_owned()];
    assert_eq!(
        refusal(spawn(&broken, &|_| {})),
        not_granted("context.repository")
    );

    let shell = |payload: &mut Value| payload["runtime"] = json!("shell");
    let mut narrow = grants.clone();
    narrow.runtimes = vec![RuntimePattern::Named(
        "claude".parse::<RuntimeName>().unwrap(),
    )];
    assert!(spawn(&narrow, &|_| {}).is_ok(), "claude is the default");
    assert_eq!(refusal(spawn(&narrow, &shell)), not_granted("runtime"));
    narrow.runtimes = vec![RuntimePattern::Named(
        "shell".parse::<RuntimeName>().unwrap(),
    )];
    assert!(spawn(&narrow, &shell).is_ok());
    assert_eq!(refusal(spawn(&narrow, &|_| {})), not_granted("runtime"));

    narrow = grants.clone();
    narrow.sandboxes = vec![SandboxKind::Docker];
    assert_eq!(
        refusal(spawn(&narrow, &|_| {})),
        not_granted("options.sandbox")
    );
    assert!(spawn(&narrow, &option("sandbox", json!("docker"))).is_ok());
    let refused = refusal(spawn(&narrow, &option("sandbox", json!("process"))));
    assert_eq!(refused, not_granted("options.sandbox"));
    // A forwarder does not know what an absent sandbox will be.
    let forward = parse(&command(CommandType::AgentSpawn, &spawn_payload()))
        .unwrap()
        .authorise(&narrow, &SpawnDefaults::default());
    assert_eq!(refusal(forward), not_granted("options.sandbox"));
}

/// F14: none, then lists by what they let reach, then open.
#[test]
fn f14_a_network_is_within_the_granted_one() {
    let allow =
        |list: &[&str]| NetworkPolicy::Allow(list.iter().map(|&text| text.to_owned()).collect());
    let open = NetworkPolicy::Open;
    let granted = allow(&["api.example.org", "*.git.example.org:443"]);
    let narrow = allow(&["api.example.org:443", "a.git.example.org:443"]);
    let other = allow(&["elsewhere.example.org"]);
    let bounded = |cap: &NetworkPolicy, asked: Option<&NetworkPolicy>, default: &NetworkPolicy| {
        let mut grants = everything();
        grants.caps.network = cap.clone();
        let mut payload = spawn_payload();
        payload["options"] = json!({});
        if let Some(asked) = asked {
            payload["options"]["network"] = json!(asked);
        }
        let defaults = SpawnOptions {
            network: Some(default.clone()),
            ..SpawnOptions::default()
        };
        authorise(CommandType::AgentSpawn, &payload, &grants).map(|granted| {
            let admitted = granted.within(&Usage::default()).unwrap();
            let admitted = admitted.admit(Claimed::Fresh).unwrap();
            admitted.bounded_options(&defaults).network.unwrap()
        })
    };
    let none = NetworkPolicy::None;
    for (cap, asked, default, runs_with) in [
        (&granted, Some(&narrow), &open, &narrow),
        (&granted, Some(&none), &open, &none),
        (&granted, None, &open, &granted),
        (&granted, None, &narrow, &narrow),
        (&granted, None, &other, &granted),
        (&open, None, &narrow, &narrow),
        (&open, Some(&open), &narrow, &open),
        (&open, Some(&other), &narrow, &other),
        (&none, None, &narrow, &none),
    ] {
        assert_eq!(&bounded(cap, asked, default).unwrap(), runs_with);
    }
    for (cap, asked) in [
        (&granted, &open),
        (&granted, &other),
        (&granted, &allow(&["api.example.org", "git.example.org"])),
        (&none, &narrow),
    ] {
        assert_eq!(
            refusal(bounded(cap, Some(asked), &open)),
            at(ErrorCode::GrantExceeded, "options.network")
        );
    }
}

#[test]
fn caps_hold_for_what_was_left_out() {
    let mut grants = everything();
    grants.caps.max_timeout_secs = 100;
    grants.caps.max_memory_mb = Some(512);
    grants.caps.max_cpus = Some(2.0);
    grants.caps.network = NetworkPolicy::None;
    let mut payload = spawn_payload();
    payload["options"] = json!({"cpus": 1.0});
    let admitted = authorise(CommandType::AgentSpawn, &payload, &grants)
        .unwrap()
        .within(&Usage::default())
        .unwrap()
        .admit(Claimed::Fresh)
        .unwrap();
    let defaults = SpawnOptions {
        sandbox: Some(SandboxKind::Process),
        timeout_secs: Some(3600),
        max_retries: Some(9),
        cpus: Some(4.0),
        network: Some(NetworkPolicy::Open),
        lease_secs: Some(7),
        ..SpawnOptions::default()
    };
    let bounded = admitted.bounded_options(&defaults);
    let expected = SpawnOptions {
        sandbox: Some(SandboxKind::Process),
        timeout_secs: Some(100),
        max_retries: Some(5),
        lease_secs: Some(7),
        memory_mb: Some(512),
        cpus: Some(1.0),
        network: Some(NetworkPolicy::None),
        budget_usd: None,
        secrets: None,
        push: None,
        budget_tokens: None,
    };
    assert_eq!(bounded, expected);
}

// F14: a grant of everything that was made before there were pushes grants none.
#[test]
fn f14_a_push_needs_a_grant_of_its_own() {
    let mut payload = spawn_payload();
    payload["options"] = json!({"push": true});
    let mut grants = everything();
    let refused = authorise(CommandType::AgentSpawn, &payload, &grants).unwrap_err();
    assert_eq!(refused.refusal.code, ErrorCode::NotGranted);
    assert_eq!(refused.refusal.field.as_deref(), Some("options.push"));
    grants.push = true;
    let granted = authorise(CommandType::AgentSpawn, &payload, &grants).unwrap();
    let admitted = granted
        .within(&Usage::default())
        .unwrap()
        .admit(Claimed::Fresh)
        .unwrap();
    let options = admitted.bounded_options(&SpawnOptions::default());
    assert_eq!(options.push, Some(true));
}

#[test]
fn f14_secrets_are_granted_by_name_and_none_by_default() {
    let ask = |grants: &Grants, secrets: Value| {
        let mut payload = spawn_payload();
        payload["options"]["secrets"] = secrets;
        authorise(CommandType::AgentSpawn, &payload, grants).map(|_| ())
    };
    let mut grants = everything();
    assert!(ask(&grants, json!([])).is_ok());
    let refused = refusal(ask(&grants, json!(["npm-token"])));
    assert_eq!(refused, at(ErrorCode::NotGranted, "options.secrets"));
    grants.secrets = vec!["npm-token".parse().unwrap(), "other".parse().unwrap()];
    assert!(ask(&grants, json!(["npm-token"])).is_ok());
    for (secrets, code) in [
        (json!(["npm-token", "anthropic"]), ErrorCode::NotGranted),
        (json!(["npm-token", "npm-token"]), ErrorCode::InvalidRequest),
        (json!(vec!["npm-token"; 17]), ErrorCode::InvalidRequest),
    ] {
        assert_eq!(refusal(ask(&grants, secrets)), at(code, "options.secrets"));
    }
    let refused = refusal(ask(&grants, json!(["../x"])));
    assert_eq!(refused, at(ErrorCode::InvalidRequest, "options.secrets[0]"));
}

#[test]
fn grants_of_an_older_node_grant_no_secret_and_are_read_by_it() {
    let text = serde_json::to_string(&everything()).unwrap();
    assert!(!text.contains("secrets"), "{text}");
    let read: Grants = serde_json::from_str(&text).unwrap();
    assert_eq!(read.secrets, []);
}

//! Secrets that a peer asks for by name.

use mosaic_orchestrator::secrets::{SecretConfig, SecretPlace};

use super::*;

/// F14: what is not granted and what is not there are the same to a peer, so that nobody learns which secrets exist.
#[tokio::test]
async fn f14_a_peer_is_given_the_secrets_of_its_grant_and_learns_of_no_other() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("npm");
    let value = format!("npm_{}", AgentId::generate());
    std::fs::write(&file, &value).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private).unwrap();
    let spoke = Spoke::start_with(|config| {
        for (name, variable) in [
            ("npm-token", Some("NPM_TOKEN")),
            ("runtimes-own", None),
            ("not-for-you", Some("OTHER")),
        ] {
            let secret = SecretConfig {
                place: SecretPlace::File(file.clone()),
                variable: variable.map(str::to_owned),
            };
            config.secrets.insert(name.parse().unwrap(), secret);
        }
    })
    .await;
    let without = Peer::of(&spoke).await;
    let mut wider = grants(&spoke);
    wider.secrets = ["npm-token", "runtimes-own", "absent"]
        .map(|name| name.parse().unwrap())
        .into();
    let with = Peer::with(&spoke, wider).await;
    let body = |names: &[&str]| {
        let agent = AgentId::generate();
        let script = "printf '%s' \"$NPM_TOKEN\" | wc -c; echo \"got $NPM_TOKEN\"";
        let mut body = spoke.spawn_body(agent, script);
        body["options"] = json!({ "secrets": names });
        (agent, body)
    };
    let mut refusals = Vec::new();
    for (peer, name) in [
        (&without, "npm-token"),
        (&without, "absent"),
        (&with, "not-for-you"),
        (&with, "runtimes-own"),
        (&with, "absent"),
    ] {
        let (_, body) = body(&[name]);
        refusals.push(peer.ask(CommandType::AgentSpawn, &body).await.unwrap_err());
    }
    assert_eq!(refusals[0].code, ErrorCode::NotGranted);
    assert_eq!(refusals[0].field.as_deref(), Some("options.secrets"));
    assert!(
        refusals.iter().all(|refusal| *refusal == refusals[0]),
        "{refusals:?}"
    );

    let (agent, body) = body(&["npm-token"]);
    with.ask(CommandType::AgentSpawn, &body).await.unwrap();
    let batches = with.batches(agent, None).await;
    let length = value.len().to_string();
    let told: Vec<_> = output(&batches)
        .into_iter()
        .map(|(line, _)| line.trim())
        .collect();
    assert_eq!(told, [length.as_str(), "got [secret:npm-token]"]);
    with.stop().await;
    without.stop().await;
    spoke.stop().await;
}

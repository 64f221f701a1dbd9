//! Secrets: the agent has them, and nothing else does, whatever it says.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mosaic_types::{
    AgentId,
    agent::{EndReason, ObservedState},
};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::Spoke;

/// Not below `/tmp`, which is private to each agent anyway.
fn folder() -> TempDir {
    fs::create_dir_all(env!("CARGO_TARGET_TMPDIR")).unwrap();
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Every file below a folder, but for what is below `without`.
fn files(dir: &Path, without: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if path == without {
        } else if kind.is_dir() {
            files(&path, without, found);
        } else if kind.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

/// What must not be found of a value: it, what it is in JSON and base64, and its greater half.
fn traces(value: &str) -> Vec<String> {
    let json = serde_json::to_string(value).unwrap();
    vec![
        value.to_owned(),
        json.trim_matches('"').to_owned(),
        STANDARD.encode(value).trim_end_matches('=').to_owned(),
        value[..value.len() / 2 + 1].to_owned(),
    ]
}

fn holds(text: &[u8], trace: &str) -> bool {
    text.windows(trace.len())
        .any(|part| part == trace.as_bytes())
}

/// Says its secrets in every way: whole, in two writes with a pause, encoded, in JSON, to standard error, and last
/// without a line end.
const SAYS_IT_ALL: &str = r#"
printf '%s' "$API_KEY" | wc -c
printf '%s\n' "whole $API_KEY $ENV_TOKEN $FILE_KEY"
printf '%s' "${API_KEY%????????????}"
echo half >&2
while ! test -e go; do sleep 0.05; done
printf '%s\n' "${API_KEY#"${API_KEY%????????????}"}"
printf '%s' "$API_KEY" | base64
printf 'user:%s@host' "$ENV_TOKEN" | base64
printf '{"type":"text","text":"%s"}\n' "$(printf '%s' "$API_KEY" | sed 's/["\\]/\\&/g')"
printf '%s\n' "$FILE_KEY and $API_KEY" >&2
env >&2
echo "files $(cat "$SECRET_FILES"/* | wc -c)"
printf '%s' "last $API_KEY"
"#;

#[tokio::test]
async fn a_secret_is_the_agents_alone_whatever_it_says() {
    let folder = folder();
    let unique = || AgentId::generate().to_string();
    let api_key = format!("sk-\"ant\"-\\{}/+x", unique());
    let (env_token, file_key) = (format!("env_{}", unique()), format!("file-{}", unique()));
    let secret_files = folder.path().join("secrets");
    fs::create_dir(&secret_files).unwrap();
    private(&secret_files.join("api"), &format!("{api_key}\n"));
    private(&secret_files.join("key"), &file_key);
    let settings = format!(
        r#"
[secrets.api-key]
file = {api:?}
[secrets.env-token]
env = "SPOKES_TOKEN"
variable = "ENV_TOKEN"
[[runtimes]]
name = "teller"
program = "sh"
args = ["-c", "{{instructions}}"]
prompt = "argument"
env-allow = ["PATH"]
env = {{ SECRET_FILES = {secret_files:?} }}
secret-env = {{ API_KEY = {{ secret = "api-key" }}, FILE_KEY = {{ file = {key:?} }} }}
"#,
        api = secret_files.join("api"),
        key = secret_files.join("key"),
    );
    let log = folder.path().join("log");
    let spoke = Spoke::start_process_as(&settings, |command| {
        command
            .env("RUST_LOG", "trace")
            .env("SPOKES_TOKEN", &env_token)
            .stderr(File::create(&log).unwrap());
    })
    .await;
    let agent = AgentId::generate();
    let mut body = spoke.spawn_body(agent, SAYS_IT_ALL);
    body["runtime"] = json!("teller");
    body["options"] = json!({"secrets": ["env-token"]});
    let (code, accepted) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(code, StatusCode::ACCEPTED, "{accepted}");
    spoke.wrote(agent, "half").await;

    let secrets = [&api_key, &env_token, &file_key];
    let mut has_it = 0;
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().into_string().unwrap_or_default();
        let Ok(pid) = pid.parse::<u32>() else {
            continue;
        };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let (command, environment) = (read("cmdline"), read("environ"));
        for secret in secrets {
            assert!(!holds(&command, secret), "{pid} has it on its command line");
            if holds(&environment, secret) && pid != spoke.pid() {
                assert!(
                    holds(&environment, "MOSAIC_AGENT_ID="),
                    "{pid} is not the agent"
                );
                has_it += 1;
            }
        }
    }
    assert!(has_it >= secrets.len(), "the agent has its secrets");
    let work = spoke.data_dir().join(format!("agents/{agent}/work"));
    fs::write(work.join("go"), "").unwrap();

    let events = spoke.follow(agent, None, |_| false).await;
    let status = spoke.status(agent).await;
    assert_eq!(
        status.state,
        ObservedState::Completed,
        "{status:?}: {events}"
    );
    let lines: Vec<String> = events
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok())
        .filter_map(|event| Some(event["line"].as_str()?.trim().to_owned()))
        .collect();
    let length = api_key.len().to_string();
    for expected in [
        length.as_str(),
        "whole [secret:api-key] [secret:env-token] [secret:FILE_KEY]",
        "[secret:api-key]",
        r#"{"type":"text","text":"[secret:api-key]"}"#,
        "[secret:FILE_KEY] and [secret:api-key]",
        "API_KEY=[secret:api-key]",
        "ENV_TOKEN=[secret:env-token]",
        "files 0",
        "last [secret:api-key]",
    ] {
        assert!(
            lines.iter().any(|line| line == expected),
            "{expected}: {lines:#?}"
        );
    }
    let mut seen = vec![("events".to_owned(), events.into_bytes())];
    for path in [
        format!("/agents/{agent}/status"),
        format!("/agents/{agent}/result"),
        "/agents".to_owned(),
        "/api/v1/audit?limit=1000".to_owned(),
    ] {
        let (code, answer) = spoke.call(Method::GET, &path, None).await;
        assert_eq!(code, StatusCode::OK, "{path}");
        seen.push((path, answer.to_string().into_bytes()));
    }
    files(spoke.data_dir(), &work, &mut seen);
    seen.push(("log".to_owned(), fs::read(&log).unwrap()));
    assert!(
        seen.iter()
            .any(|(name, text)| name.ends_with("/spool") && holds(text, "[secret:"))
    );
    assert!(
        seen.iter()
            .any(|(name, text)| name == "log" && holds(text, "TRACE"))
    );
    for trace in secrets.iter().flat_map(|secret| traces(secret)) {
        for (name, text) in &seen {
            assert!(!holds(text, &trace), "{name} holds {trace}");
        }
    }
    spoke.stop().await;
}

#[tokio::test]
async fn a_secret_that_cannot_be_had_fails_the_attempt_by_name_and_may_be_there_for_the_next() {
    let folder = folder();
    let file = folder.path().join("key");
    fs::write(&file, "hunter-2222").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let settings = format!("[secrets.api-key]\nfile = {file:?}\nvariable = \"API_KEY\"\n");
    let spoke = Spoke::start_process_with(&settings).await;
    let spawn = |retries: u32, names: &[&str]| {
        let agent = AgentId::generate();
        let mut body = spoke.spawn_body(agent, "echo \"got $API_KEY\"");
        body["options"] = json!({"secrets": names, "maxRetries": retries});
        (agent, body)
    };
    let (_, body) = spawn(0, &["absent"]);
    let (code, problem) = spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    assert_eq!(
        code,
        StatusCode::BAD_REQUEST,
        "the operator is told: {problem}"
    );
    assert_eq!(problem["field"], "options.secrets");
    assert!(
        problem["detail"].as_str().unwrap().contains("`absent`"),
        "{problem}"
    );

    let (agent, body) = spawn(0, &["api-key"]);
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    let status = spoke.finished(agent).await;
    assert_eq!(
        (status.state, status.reason),
        (ObservedState::Failed, Some(EndReason::SpawnFailed))
    );
    let detail = status.detail.unwrap();
    assert!(
        detail.contains("`api-key`") && detail.contains("chmod"),
        "{detail}"
    );
    assert!(!detail.contains("hunter"), "{detail}");

    let (agent, body) = spawn(5, &["api-key"]);
    spoke.call(Method::POST, "/agents/spawn", Some(body)).await;
    spoke
        .follow(agent, None, |seen| {
            seen.contains("failed to get the secret")
        })
        .await;
    private(&file, "hunter-2222");
    spoke.wrote(agent, "got [secret:api-key]").await;
    let status = spoke.finished(agent).await;
    assert_eq!(status.state, ObservedState::Completed, "{status:?}");
    assert!(status.attempt > 1);
    spoke.stop().await;
}

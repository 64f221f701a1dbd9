//! The real command line of Claude Code against the stand-in of the Messages API, without a sandbox: what
//! the `claude` runtime starts, and what the reader makes of its output.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use mosaic_e2e::messages_api::{MessagesApi, Script, Turn, Usage};
use mosaic_orchestrator::runtime::{
    Ending, FailureKind, HostEnv, Outcome, Phase, Prompt, PromptParts, RuntimeCatalog,
    RuntimeConfig, RuntimeEvent, StreamReader, Watchdog, claude,
};
use mosaic_types::command::AgentType;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use crate::support;

/// Far above what a run takes: a run that reaches it has failed.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// A repository and the places the CLI writes to.
struct Stage {
    dir: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stage = Self { dir };
        for place in ["repository", "home", "tmp"] {
            std::fs::create_dir(stage.path(place)).unwrap();
        }
        stage
            .git(&["init", "--quiet", "--initial-branch=main"])
            .await;
        stage
            .git(&["commit", "--quiet", "--allow-empty", "--message=first"])
            .await;
        stage
    }

    fn path(&self, place: &str) -> PathBuf {
        self.dir.path().join(place)
    }

    async fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(args)
            .current_dir(self.path("repository"))
            .env("HOME", self.path("home"))
            .envs(GIT_IDENTITY)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the CLI as the `claude` runtime says, with its prompt on standard input, closed after.
    async fn start(&self, program: &Path, api: &MessagesApi, budget_usd: Option<f64>) -> Child {
        let config = RuntimeConfig {
            program: program.to_str().unwrap().to_owned(),
            ..claude::default_config()
        };
        let host = [
            ("PATH", std::env::var_os("PATH").unwrap()),
            ("ANTHROPIC_BASE_URL", OsString::from(api.base_url())),
            ("ANTHROPIC_API_KEY", OsString::from("not-a-key")),
        ];
        let host = HostEnv::new(host.map(|(name, value)| (name.into(), value)));
        let catalog = RuntimeCatalog::new([config], host).unwrap();
        let prompt = Prompt::compose(&PromptParts {
            task_id: &"MOS-1".parse().unwrap(),
            agent_type: AgentType::Worker,
            branch: "main",
            work_items: &["Write hello.txt".to_owned()],
            skills: &[],
            instructions: None,
        })
        .unwrap();
        let runtime = catalog.resolve(&"claude".parse().unwrap()).unwrap();
        let invocation = runtime.invocation(&prompt, budget_usd).unwrap();
        let mut child = Command::new(&invocation.program)
            .args(&invocation.args)
            .current_dir(self.path("repository"))
            .env_clear()
            .envs(&invocation.env)
            .envs(GIT_IDENTITY)
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let text = invocation.stdin.unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        child
    }
}

const GIT_IDENTITY: [(&str, &str); 4] = [
    ("GIT_AUTHOR_NAME", "agent"),
    ("GIT_AUTHOR_EMAIL", "agent@example.invalid"),
    ("GIT_COMMITTER_NAME", "agent"),
    ("GIT_COMMITTER_EMAIL", "agent@example.invalid"),
];

/// A run that came to its end.
struct Run {
    status: ExitStatus,
    reader: StreamReader,
    events: Vec<RuntimeEvent>,
}

impl Run {
    fn outcome(&self) -> Outcome {
        let code = self.status.code().expect("no signal was sent");
        Outcome::of(Ending::Exited { code }, &self.reader)
    }
}

async fn read_to_end(mut child: Child) -> Run {
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut reader = StreamReader::new(claude::default_config().output);
    let mut events = Vec::new();
    let whole = async {
        let mut diagnostics = Vec::new();
        let mut chunk = vec![0; 4096];
        let read = async {
            loop {
                let n = stdout.read(&mut chunk).await.unwrap();
                if n == 0 {
                    break;
                }
                events.extend(reader.feed(&chunk[..n], Instant::now()));
            }
        };
        let (_, result) = tokio::join!(read, stderr.read_to_end(&mut diagnostics));
        result.unwrap();
        (child.wait().await.unwrap(), diagnostics)
    };
    let (status, diagnostics) = tokio::time::timeout(RUN_LIMIT, whole).await.unwrap();
    events.extend(reader.finish(Instant::now()));
    reader.feed_diagnostics(&diagnostics, Instant::now());
    Run {
        status,
        reader,
        events,
    }
}

async fn run(script: Script, budget_usd: Option<f64>) -> Option<(Stage, Run, MessagesApi)> {
    let program = support::claude_cli()?;
    let stage = Stage::new().await;
    let api = MessagesApi::start(script).await.unwrap();
    let child = stage.start(&program, &api, budget_usd).await;
    let run = read_to_end(child).await;
    Some((stage, run, api))
}

fn write_and_commit() -> Script {
    let command = "echo hello > hello.txt && git add hello.txt && git commit --quiet -m hello";
    Script::new(Turn::bash(command)).then(Turn::text("Done: wrote hello.txt"))
}

#[tokio::test]
async fn a_run_is_read_from_start_to_result() {
    let Some((stage, run, api)) = run(write_and_commit(), Some(5.0)).await else {
        return;
    };
    assert_eq!(
        run.outcome(),
        Outcome::Completed {
            summary: "Done: wrote hello.txt".to_owned()
        },
        "{:?}",
        run.reader.diagnostics_tail()
    );
    let log = stage.git(&["log", "--format=%s"]).await;
    assert_eq!(log, "hello\nfirst\n");
    // Nothing of its own is left in the worktree.
    assert_eq!(stage.git(&["status", "--porcelain", "--ignored"]).await, "");

    let progress = run.reader.snapshot();
    assert_eq!(progress.phase, Phase::Finished);
    assert_eq!((progress.turns, progress.tool_calls), (2, 1));
    assert_eq!(progress.last_tool.as_deref(), Some("Bash"));
    assert!(progress.last_tool_brief.unwrap().starts_with("echo hello"));
    assert!(progress.model.is_some() && progress.session_id.is_some());
    assert!(progress.cost_usd.unwrap() > 0.0);
    // A17: two messages over three lines.
    let turn = Usage::EACH_TURN;
    assert_eq!(progress.tokens.input, 2 * turn.input_tokens);
    assert_eq!(progress.tokens.output, 2 * turn.output_tokens);
    assert_eq!(progress.tokens.cache_read, 2 * turn.cache_read_input_tokens);
    assert_eq!(
        progress.tokens.cache_creation,
        2 * turn.cache_creation_input_tokens
    );
    assert_eq!(progress.counters.unknown_lines, 0);
    assert_eq!(progress.counters.plain_lines, 0);
    assert!(
        run.events
            .contains(&RuntimeEvent::ToolResult { is_error: false })
    );

    let requests = api.requests();
    // Nothing but messages was asked for: no telemetry, no updates.
    assert!(
        requests
            .iter()
            .all(|request| request.route == "POST /v1/messages")
    );
    assert_eq!(requests.len(), 2);
    assert!(requests[0].user_text().contains("Write hello.txt"));
    assert_eq!(requests[0].api_key.as_deref(), Some("not-a-key"));
    assert_eq!(requests[1].tool_results().count(), 1);
    api.shutdown().await.unwrap();
}

#[tokio::test]
async fn work_in_the_background_ends_in_a_result_of_its_own() {
    let background = Turn::ToolUse {
        name: "Bash".to_owned(),
        input: json!({
            "command": "while ! test -e go; do sleep 0.1; done",
            "description": "wait",
            "run_in_background": true,
        }),
    };
    let script = Script::new(background)
        .then(Turn::text("It runs"))
        .then(Turn::text("It has run"));
    let Some(program) = support::claude_cli() else {
        return;
    };
    let stage = Stage::new().await;
    let api = MessagesApi::start(script).await.unwrap();
    let mut child = stage.start(&program, &api, None).await;
    let config = claude::default_config();
    let watchdog = Watchdog::new(&config, Instant::now());
    let mut reader = StreamReader::new(config.output);
    let mut stdout = child.stdout.take().unwrap();
    let mut chunk = vec![0; 4096];
    let to_the_end = async {
        loop {
            let n = stdout.read(&mut chunk).await.unwrap();
            if n == 0 {
                return child.wait().await.unwrap();
            }
            reader.feed(&chunk[..n], Instant::now());
            if let Some(result) = reader.final_result()
                && result.text == "It runs"
                && reader.waits_for_background()
            {
                // A15: past the grace of a result, and yet no hang.
                let later = Instant::now() + Duration::from_secs(60);
                assert_eq!(watchdog.verdict(&reader, later), None);
                std::fs::write(stage.path("repository").join("go"), "").unwrap();
            }
        }
    };
    let status = tokio::time::timeout(RUN_LIMIT, to_the_end).await.unwrap();
    assert_eq!(
        Outcome::of(
            Ending::Exited {
                code: status.code().unwrap()
            },
            &reader
        ),
        Outcome::Completed {
            summary: "It has run".to_owned()
        }
    );
    let progress = reader.snapshot();
    assert_eq!(progress.turns, 3);
    assert_eq!(progress.tokens.input, 3 * Usage::EACH_TURN.input_tokens);
    api.shutdown().await.unwrap();
}

#[tokio::test]
async fn refusals_of_the_service_are_waited_out() {
    let script = Script::new(Turn::RateLimited {
        retry_after_secs: 1,
    })
    .then(Turn::Overloaded)
    .then(Turn::Cut)
    .then(Turn::text("At last"));
    let Some((_stage, run, api)) = run(script, None).await else {
        return;
    };
    assert_eq!(
        run.outcome(),
        Outcome::Completed {
            summary: "At last".to_owned()
        }
    );
    assert_eq!(run.reader.snapshot().retries, 3);
    let statuses: Vec<_> = run
        .events
        .iter()
        .filter_map(|event| match event {
            RuntimeEvent::Retrying { status, .. } => Some(*status),
            _ => None,
        })
        .collect();
    assert_eq!(statuses, [Some(429), Some(529), None]);
    // A16: the text of the message that was cut is nowhere.
    let cut =
        |event: &RuntimeEvent| matches!(event, RuntimeEvent::Text { text } if text != "At last");
    assert!(!run.events.iter().any(cut));
    api.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_final_refusal_is_a_failure_in_its_words() {
    let refused = Turn::Refused {
        status: 400,
        kind: "invalid_request_error".to_owned(),
        message: "credit balance is too low".to_owned(),
    };
    let Some((_stage, run, api)) = run(Script::new(refused), None).await else {
        return;
    };
    let Outcome::Failed { kind, message } = run.outcome() else {
        panic!("not a failure: {:?}", run.outcome());
    };
    assert_eq!(kind, FailureKind::RuntimeError);
    assert!(!message.is_empty());
    assert_eq!(
        run.reader.final_result().unwrap().api_error_status,
        Some(400)
    );
    api.shutdown().await.unwrap();
}

#[tokio::test]
async fn a16_a_run_killed_mid_way_has_no_answer() {
    let Some(program) = support::claude_cli() else {
        return;
    };
    let stage = Stage::new().await;
    let script = Script::new(Turn::bash("true")).then(Turn::Hang);
    let api = MessagesApi::start(script).await.unwrap();
    let mut child = stage.start(&program, &api, None).await;
    let mut stdout = child.stdout.take().unwrap();
    let mut reader = StreamReader::new(claude::default_config().output);
    let mut chunk = vec![0; 4096];
    let until_tool_answered = async {
        loop {
            let n = stdout.read(&mut chunk).await.unwrap();
            assert_ne!(n, 0, "the run ended: {:?}", reader.snapshot());
            let events = reader.feed(&chunk[..n], Instant::now());
            if events.contains(&RuntimeEvent::ToolResult { is_error: false }) {
                break;
            }
        }
    };
    tokio::time::timeout(RUN_LIMIT, until_tool_answered)
        .await
        .unwrap();
    child.kill().await.unwrap();
    assert!(reader.snapshot().last_text.is_some());
    assert_eq!(reader.final_result(), None);
    assert_eq!(Outcome::of(Ending::Killed, &reader), Outcome::Killed);
    let by_signal = Outcome::of(Ending::Signalled { signal: 9 }, &reader);
    assert!(matches!(by_signal, Outcome::Failed { .. }));
    api.shutdown().await.unwrap();
}

//! `claude`: Claude Code's command line, run without a terminal.
//!
//! Facts, observed with version 2.1.330 against a stub of the Messages API:
//!
//! - **Start.** `claude --version` takes about 0.1 s and a whole run of two model turns and one Bash
//!   call 0.8 s (first request after 0.1 s), one file of 380 MB being in the page cache.
//!   `CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1` keeps it from updates, telemetry and surveys: with it,
//!   only `POST /v1/messages?beta=true` is sent, and nothing is written to standard error.
//! - **Files.** It writes `$HOME/.claude.json` and `$HOME/.claude/` (the session's transcript, backups,
//!   shell snapshots, plugins) and `$TMPDIR/claude-<uid>/` and `$TMPDIR/cc-socks/`. So each agent has a
//!   `HOME` and `TMPDIR` of its own: agents neither read each other's sessions nor the operator's login.
//!   `--no-session-persistence` spares the transcript, of which nothing is ever resumed here.
//!   Nothing is written to the worktree by itself.
//! - **Permissions.** Without a terminal nobody can be asked. Without `--dangerously-skip-permissions` the
//!   tool is refused (`system`/`permission_denied`, a `tool_result` that is an error), and the run *still
//!   ends as a success* with nothing done. The flag is therefore part of the default argv: the sandbox is
//!   the boundary, the flag only stops a question that has no one to answer it. As root the CLI refuses the
//!   flag with status 1 and a line on standard error unless `IS_SANDBOX=1`, which is set for that.
//! - **Usage.** An `assistant` line is written for each content block and repeats the usage of
//!   `message_start`: input is right, output a placeholder. True totals and the cost are in the `result`.
//! - **Refusals of the service.** 429, 529 and 401 are tried again up to ten times
//!   (`CLAUDE_CODE_MAX_RETRIES`), each told as `system`/`api_retry` with `attempt`, `retry_delay_ms` and
//!   `error_status`, after 0.5 s at first and doubling to some 35 s; ten of them took three minutes. A
//!   stream that is cut is tried again once (`error_status` null), then once more without streaming;
//!   nothing of a cut message is written. 400 is final. Where it gives up, it writes an `assistant` line
//!   of model `<synthetic>` and a `result` whose subtype is `success` *and* `is_error` true, with
//!   `api_error_status` where there was a status, and leaves with status 1.
//! - **Silence.** A stream that hangs says nothing: only the watchdog ends that. A tool that runs says
//!   nothing either; Bash is limited by the CLI to ten minutes, so that the limit here is fifteen.
//! - **Several results.** With a command in the background the run writes its `result`, stays, and when the
//!   command ends begins another turn (`system`/`init` again) with another `result`. Usage and turns are told
//!   for each result, the cost in total. `system`/`background_tasks_changed` lists what it waits for, and it
//!   waits without saying anything more, for longer than eight minutes (no end of it was seen). On SIGTERM
//!   it stops that work and goes.
//! - A `result` line's members come in no order: `type` need not be the first.

use super::config::{self, BUDGET_PLACEHOLDER, OutputFormat, PromptChannel, RuntimeConfig};

/// The runtime every spoke has, unless its configuration names another `claude`.
#[must_use]
pub fn default_config() -> RuntimeConfig {
    let mut env_allow = config::common_env();
    env_allow.extend(CREDENTIALS_AND_NETWORK.map(str::to_owned));
    RuntimeConfig {
        name: config::literal_name("claude"),
        program: "claude".to_owned(),
        args: [
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            "--no-session-persistence",
            "--dangerously-skip-permissions",
        ]
        .map(str::to_owned)
        .into(),
        budget_args: vec!["--max-budget-usd".to_owned(), BUDGET_PLACEHOLDER.to_owned()],
        prompt: PromptChannel::Stdin,
        output: OutputFormat::ClaudeStreamJson,
        env_allow,
        env: [
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
            ("IS_SANDBOX", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        secret_env: [].into(),
        read_only_paths: Vec::new(),
        silence_timeout_secs: Some(900),
        result_grace_secs: 10,
        prices: Vec::new(),
    }
}

const CREDENTIALS_AND_NETWORK: [&str; 12] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
];

//! Agents, their events, deaths and work.

use mosaic_types::{
    Timestamp,
    agent::AgentStatus,
    api::SpokeKillAll,
    command::{AgentResult, KillAllReport, KillOutcome, KillReport, PatchEncoding},
    event::{AgentEvent, EventKind, OutputStream},
    kill::{KillIntent, KillIntentState, KillTarget},
    work::{Pushed, Salvaged},
};

use super::{
    BAD, BOLD, Cell, DIM, GOOD, Table, WARN, clean, foreign::colours, line, micros, span, state,
    state_style, styled, time,
};
use crate::{
    client::{KilledAll, Listed},
    error::CliError,
};

/// Longest text in a table's cell.
const CELL_CHARS: usize = 48;

/// A list of agents.
pub(crate) fn listed(listed: &Listed, now: Timestamp) -> Result<(), CliError> {
    let agents = listed.agents();
    if agents.is_empty() {
        line(styled(DIM, "no agents"))?;
    } else {
        let mut table = Table::new([
            "AGENT", "STATE", "SPOKE", "TASK", "RUNTIME", "SANDBOX", "AGE", "DETAIL",
        ]);
        let pending = listed.kills_pending();
        for (spoke, status) in agents {
            let state = if pending.contains(&status.agent_id) {
                Cell::styled(WARN, format!("{}, kill pending", status.state))
            } else {
                Cell::styled(state_style(status.state), status.state)
            };
            table.row([
                status.agent_id.to_string().into(),
                state,
                spoke.unwrap_or("-").into(),
                status.task_id.to_string().into(),
                status.runtime.to_string().into(),
                status.sandbox.to_string().into(),
                span(now.since(status.queued_at)).into(),
                shorten(&gist(status)).into(),
            ]);
        }
        line(table)?;
    }
    if let Listed::Hub(list) = listed {
        for connection in &list.unreachable {
            line(styled(
                WARN,
                format!("not asked: the spoke of connection {connection}"),
            ))?;
        }
    }
    if listed.more() {
        line(styled(
            DIM,
            "there are more: --before <the last AGENT above>, --limit",
        ))?;
    }
    Ok(())
}

/// What matters most about an agent, in a few words.
fn gist(status: &AgentStatus) -> String {
    let progress = || {
        status
            .progress
            .last_tool
            .clone()
            .or_else(|| status.progress.last_text.clone())
    };
    let text = status
        .detail
        .clone()
        .or_else(|| status.summary.clone())
        .or_else(progress);
    match (status.reason, text) {
        (Some(reason), Some(text)) => format!("{}: {text}", word(reason)),
        (Some(reason), None) => word(reason),
        (None, text) => text.unwrap_or_default(),
    }
}

/// A unit variant as the API writes it.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn shorten(text: &str) -> String {
    let first = clean(text.lines().next().unwrap_or_default());
    if first.chars().count() <= CELL_CHARS {
        return first;
    }
    first.chars().take(CELL_CHARS - 1).chain(['…']).collect()
}

/// All of an agent.
pub(crate) fn status(status: &AgentStatus) -> Result<(), CliError> {
    let mut rows: Vec<(&str, String)> = vec![
        ("agent", status.agent_id.to_string()),
        ("state", state(status.state)),
    ];
    let mut put = |name, value: Option<String>| rows.extend(value.map(|value| (name, value)));
    put("reason", status.reason.map(word));
    put("detail", status.detail.as_deref().map(clean));
    put(
        "task",
        Some(format!("{} ({})", status.task_id, status.agent_type)),
    );
    put(
        "repository",
        Some(format!(
            "{} at {}",
            clean(&status.repository),
            clean(&status.branch)
        )),
    );
    put("branch", Some(clean(&status.agent_branch)));
    put(
        "runs in",
        Some(format!("{}, sandbox {}", status.runtime, status.sandbox)),
    );
    put(
        "attempt",
        (status.attempt > 1).then(|| status.attempt.to_string()),
    );
    let labels: Vec<_> = status
        .labels
        .iter()
        .map(|(key, value)| clean(&format!("{key}={value}")))
        .collect();
    put("labels", (!labels.is_empty()).then(|| labels.join(" ")));
    put("lease", status.lease_secs.map(|secs| format!("{secs} s")));
    put("queued", Some(time(status.queued_at)));
    put("started", status.started_at.map(time));
    put("ended", status.ended_at.map(time));
    put(
        "exit",
        status.exit_code.map(|code| format!("status {code}")),
    );
    put("signal", status.signal.map(|signal| signal.to_string()));
    put("model", status.progress.model.as_deref().map(clean));
    put("tool", status.progress.last_tool.as_deref().map(clean));
    put("tokens", tokens(status));
    put("budget", budget(status));
    put(
        "summary",
        status.summary.as_deref().map(|text| {
            text.lines()
                .map(clean)
                .collect::<Vec<_>>()
                .join("\n            ")
        }),
    );
    if let Some(work) = &status.work {
        put(
            "work",
            Some(format!(
                "{} commits, {} files, {} {}, patch of {} bytes",
                work.commits.len(),
                work.files_changed,
                styled(GOOD, format!("+{}", work.insertions)),
                styled(BAD, format!("-{}", work.deletions)),
                work.patch_bytes,
            )),
        );
        put("ref", Some(clean(&work.git_ref)));
        put("pushed", work.pushed.as_ref().map(pushed));
    }
    put(
        "death",
        status.death.as_ref().map(|proof| {
            format!(
                "proven by {} in {}",
                word(proof.method),
                micros(proof.elapsed_micros)
            )
        }),
    );
    for (name, value) in rows {
        line(format!("{}  {value}", styled(DIM, format!("{name:>10}"))))?;
    }
    for step in &status.cleanup {
        let ok = if step.ok {
            styled(GOOD, "done")
        } else {
            styled(BAD, "failed")
        };
        let detail = step.detail.as_deref().map(clean).unwrap_or_default();
        line(format!(
            "{}  {} {ok} {detail}",
            styled(DIM, "  clean-up"),
            word(step.step)
        ))?;
    }
    Ok(())
}

fn pushed(pushed: &Pushed) -> String {
    let there = clean(&pushed.git_ref);
    match &pushed.why_not {
        None => there,
        Some(why) => format!("{} to {there}: {}", styled(BAD, "not"), clean(why)),
    }
}

fn tokens(status: &AgentStatus) -> Option<String> {
    let usage = &status.usage;
    if usage.input_tokens + usage.output_tokens == 0 {
        return None;
    }
    let about = if usage.cost_is_estimate { "about " } else { "" };
    let cost = usage
        .cost_usd
        .map(|cost| format!(", {about}${cost:.4}"))
        .unwrap_or_default();
    Some(format!(
        "{} in, {} out, {} cached{cost}",
        usage.input_tokens, usage.output_tokens, usage.cache_read_tokens
    ))
}

/// What it may use, and what is left of it.
fn budget(status: &AgentStatus) -> Option<String> {
    let (budget, usage) = (status.budget?, &status.usage);
    let usd = budget.usd.map(|usd| {
        let left = (usd - usage.cost_usd.unwrap_or(0.0)).max(0.0);
        format!("${left:.4} left of ${usd:.4}")
    });
    let tokens = budget.tokens.map(|tokens| {
        let left = tokens.saturating_sub(usage.tokens());
        format!("{left} tokens left of {tokens}")
    });
    let bounds: Vec<String> = usd.into_iter().chain(tokens).collect();
    (!bounds.is_empty()).then(|| bounds.join(", "))
}

/// An agent on one line.
pub(crate) fn status_line(status: &AgentStatus) -> String {
    let gist = gist(status);
    let gap = if gist.is_empty() { "" } else { ": " };
    format!(
        "{} {}{gap}{}",
        status.agent_id,
        state(status.state),
        shorten(&gist)
    )
}

/// An event as a line; states go to standard error by the caller's choice, so only output is given here.
///
/// Of the agent's own lines colours pass, and nothing else that acts on a terminal; what it wrote to standard error
/// is marked.
pub(crate) fn event_line(event: &AgentEvent) -> Option<String> {
    match &event.kind {
        EventKind::Output {
            stream: OutputStream::Stdout,
            line,
            ..
        } => Some(colours(line)),
        EventKind::Output {
            stream: OutputStream::Stderr,
            line,
            ..
        } => Some(format!("{} {}", styled(WARN, "!"), colours(line))),
        EventKind::OutputTruncated { dropped_bytes } => Some(styled(
            WARN,
            format!("[the spool is full; {dropped_bytes} bytes dropped]"),
        )),
        EventKind::EgressRefused {
            destination,
            not_public,
            last_told,
        } => {
            let why = if *not_public {
                ": not a public address"
            } else {
                ""
            };
            let last = if *last_told {
                "; more are not told"
            } else {
                ""
            };
            let text = format!("[{} refused{why}{last}]", clean(destination));
            Some(styled(WARN, text))
        }
        EventKind::Status { .. } => None,
    }
}

/// Writes an agent's output to standard output, and puts lines together that came in parts.
#[derive(Debug, Default)]
pub(crate) struct OutputWriter {
    /// Whether the agent's output passes as it is, whatever it does to the terminal.
    raw: bool,
    /// The stream whose line has not ended yet.
    open: Option<OutputStream>,
}

impl OutputWriter {
    /// One that lets everything pass if `raw`.
    pub(crate) fn new(raw: bool) -> Self {
        Self { raw, open: None }
    }

    /// Writes the event, if it is output.
    pub(crate) fn write(&mut self, event: &AgentEvent) -> Result<(), CliError> {
        let EventKind::Output {
            stream,
            line: part,
            unfinished,
        } = &event.kind
        else {
            return event_line(event).map_or(Ok(()), line);
        };
        let continued = self.open == Some(*stream);
        let mut text = String::new();
        if self.open.is_some() && !continued {
            text.push('\n');
        }
        match event_line(event) {
            _ if self.raw => text.push_str(part),
            Some(marked) if !continued => text.push_str(&marked),
            _ => text.push_str(&colours(part)),
        }
        if !unfinished {
            text.push('\n');
        }
        self.open = unfinished.then_some(*stream);
        if self.raw {
            return super::raw(text.as_bytes());
        }
        super::text(&text)
    }
}

/// What the spoke's mirror holds of an agent.
pub(crate) fn salvaged(salvaged: &Salvaged) -> Result<(), CliError> {
    if salvaged.refs.is_empty() {
        super::note("nothing: the agent left no work");
        return Ok(());
    }
    let mut table = Table::new(["COMMIT", "COMMITS", "FILES", "REF", "SUBJECT"]);
    for held in &salvaged.refs {
        table.row([
            held.commit.chars().take(10).collect::<String>(),
            held.commits.to_string(),
            held.files_changed.to_string(),
            held.git_ref.clone(),
            held.subject.clone(),
        ]);
    }
    line(&table)?;
    if salvaged.more {
        super::note("and more; `--salvaged --bundle FILE` has them all");
    }
    Ok(())
}

/// What a kill did.
pub(crate) fn kill_report(report: &KillReport) -> Result<(), CliError> {
    line(kill_line(report))?;
    match &report.status {
        Some(after) => status(after),
        None => Ok(()),
    }
}

fn kill_line(report: &KillReport) -> String {
    let outcome = match report.outcome {
        KillOutcome::Killed => styled(GOOD, "killed"),
        KillOutcome::AlreadyEnded => styled(DIM, "had ended"),
        KillOutcome::Unverified => styled(BAD, "NOT PROVEN DEAD"),
    };
    let proof = report.proof.as_ref().map_or_else(String::new, |proof| {
        format!(
            ", proven by {} in {}",
            word(proof.method),
            micros(proof.elapsed_micros)
        )
    });
    let detail = report
        .detail
        .as_deref()
        .map(|text| format!(": {}", clean(text)))
        .unwrap_or_default();
    format!("{} {outcome}{proof}{detail}", report.agent_id)
}

/// What a kill-all did, whose order has a hold if `hold`.
pub(crate) fn killed_all(report: &KilledAll, hold: bool) -> Result<(), CliError> {
    let all = match report {
        KilledAll::Spoke(report) => {
            for agent in &report.agents {
                line(kill_line(agent))?;
            }
            return line(kill_all_line(report, hold));
        }
        KilledAll::Hub(all) => all,
    };
    for spoke in &all.spokes {
        killed_at(spoke, hold)?;
    }
    if all.pending > 0 {
        line(styled(
            WARN,
            format!("{} pending: see `mosaic kills`", all.pending),
        ))?;
    }
    let verdict = if all.complete {
        styled(GOOD, "complete")
    } else {
        styled(BAD, "INCOMPLETE")
    };
    line(format!(
        "{verdict}: {} killed, {} not proven, {} spokes not reached, in {}",
        all.killed,
        all.unverified,
        all.unreachable,
        micros(all.elapsed_micros)
    ))
}

/// What a kill-all did at one spoke, and what it left open there.
fn killed_at(spoke: &SpokeKillAll, hold: bool) -> Result<(), CliError> {
    let name = styled(BOLD, clean(&spoke.name));
    let why = spoke.error.as_ref().map(|error| clean(&error.message));
    if let Some(report) = &spoke.report {
        line(format!("{name}: {}", kill_all_line(report, hold)))?;
        for agent in &report.agents {
            line(format!("  {}", kill_line(agent)))?;
        }
        if let Some(why) = &why {
            line(format!("  {}", styled(BAD, why)))?;
        }
    } else {
        let why = why.as_deref().unwrap_or_default();
        line(format!("{name}: {}: {why}", styled(BAD, "NO ANSWER")))?;
    }
    match spoke.pending.map(|kill| kill.to_string()) {
        // The reason mostly says so itself.
        Some(kill) if !why.is_some_and(|why| why.contains(&kill)) => {
            line(styled(WARN, format!("  pending as {kill}")))
        }
        _ => Ok(()),
    }
}

fn kill_all_line(report: &KillAllReport, hold: bool) -> String {
    let held = match (report.held, report.hold_durable) {
        (true, Some(false)) => format!(
            ", {}",
            styled(BAD, "spawns are held ONLY UNTIL THE SPOKE RESTARTS")
        ),
        (true, _) => ", spawns are held".to_owned(),
        (false, _) if hold => format!(", {}", styled(BAD, "spawns are NOT HELD")),
        (false, _) => String::new(),
    };
    format!(
        "{} killed, {} not proven, in {}{held}",
        report.killed,
        report.unverified,
        micros(report.elapsed_micros)
    )
}

/// The kills that a hub keeps.
pub(crate) fn kept_kills(kills: &[KillIntent]) -> Result<(), CliError> {
    if kills.is_empty() {
        return line(styled(DIM, "no kill is pending"));
    }
    let mut table = Table::new([
        "KILL",
        "STATE",
        "WHAT",
        "CONNECTION",
        "ORDERED",
        "SENT",
        "WHY NOT YET",
    ]);
    for kill in kills {
        let style = match kill.state {
            KillIntentState::Pending => WARN,
            KillIntentState::Proven => GOOD,
            KillIntentState::Cancelled => DIM,
        };
        let what = match &kill.target {
            KillTarget::Agent { agent_id } => agent_id.to_string(),
            KillTarget::All { task_id, label } => {
                let mut what = "all".to_owned();
                what.extend(task_id.iter().map(|task| format!(", task {task}")));
                what.extend(
                    label
                        .iter()
                        .map(|label| format!(", {}", clean(&label.to_string()))),
                );
                what
            }
        };
        let why = kill
            .last_error
            .as_ref()
            .map(|error| shorten(&error.message));
        table.row([
            kill.intent_id.to_string().into(),
            Cell::styled(style, word(kill.state)),
            what.into(),
            kill.connection_id.to_string().into(),
            time(kill.ordered_at).into(),
            kill.attempts.to_string().into(),
            why.unwrap_or_default().into(),
        ]);
    }
    line(table)
}

/// A patch in colours, at most `limit` lines of it.
pub(crate) fn patch(result: &AgentResult, limit: usize) -> Result<(), CliError> {
    let Some(part) = &result.patch else {
        return line(styled(DIM, "no patch: the agent left no work"));
    };
    if part.encoding == PatchEncoding::Base64 {
        return line(styled(
            DIM,
            format!("a patch of {} bytes, not all of it text", part.total_bytes),
        ));
    }
    let total = part.content.lines().count();
    for text in part.content.lines().take(limit) {
        let style = match text.as_bytes() {
            [b'+', b'+', b'+', ..] | [b'-', b'-', b'-', ..] | [b'd', b'i', b'f', b'f', ..] => BOLD,
            [b'+', ..] => GOOD,
            [b'-', ..] => BAD,
            [b'@', b'@', ..] => WARN,
            _ => anstyle::Style::new(),
        };
        line(format!("  {}", styled(style, clean(text))))?;
    }
    if total > limit {
        line(styled(DIM, format!("  … {} more lines", total - limit)))?;
    }
    Ok(())
}

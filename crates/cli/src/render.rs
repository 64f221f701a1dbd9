//! What people see. Colours are dropped where output is no terminal, or NO_COLOR is set; with `--json` nothing here
//! but [`json`] is used.

mod agents;
mod foreign;
mod table;

use std::io::Write;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use mosaic_types::{
    Timestamp,
    agent::ObservedState,
    api::AuditVerdict,
    audit::{Actor, AuditEntry, AuditEvent, AuditHead},
    command::Pong,
    connection::{Connection, ConnectionState},
    grant::{Grants, RuntimePattern},
};
use serde::Serialize;

use crate::error::CliError;

pub(crate) use agents::{
    OutputWriter, event_line, kept_kills, kill_report, killed_all, listed, patch, salvaged, status,
    status_line,
};
pub(crate) use foreign::clean;
pub(crate) use table::{Cell, Table};

/// For what is good.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// For what is wrong.
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
/// For what asks for attention.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// For what matters less.
pub(crate) const DIM: Style = Style::new().dimmed();
/// For headings.
pub(crate) const BOLD: Style = Style::new().bold();

/// `text` in a style.
pub(crate) fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// A line on standard output. A reader that went away, as `head` does, is no failure.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    tolerate_closed(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Text on standard output, without a line feed of its own.
pub(crate) fn text(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    tolerate_closed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Bytes on standard output, as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    tolerate_closed(out.write_all(bytes).and_then(|()| out.flush()))
}

/// Bytes that others wrote, for a person to see: colours pass, and nothing else that acts on a terminal.
pub(crate) fn shown(bytes: &[u8]) -> Result<(), CliError> {
    for part in String::from_utf8_lossy(bytes).lines() {
        line(foreign::colours(part))?;
    }
    Ok(())
}

fn tolerate_closed(written: std::io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(CliError::Stdio),
    }
}

/// A line on standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    // Nothing is left to tell it to if standard error is gone.
    drop(writeln!(anstream::stderr().lock(), "{text}"));
}

/// A value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let mut text = foreign::escaped(&serde_json::to_string(value)?);
    text.push('\n');
    raw(text.as_bytes())
}

/// A failure: what, why, and of a refusal its code and field.
pub(crate) fn error(error: &CliError) {
    match error {
        CliError::NotProven(source) => return self::error(source),
        CliError::MayRun { agent, source } => {
            self::error(source);
            let hint = "  it may run; ask for the same again, as one agent still, with";
            return note(styled(WARN, format!("{hint} `--agent-id {agent}`")));
        }
        _ => {}
    }
    note(format!(
        "{} {}",
        styled(BAD, "error:"),
        clean(&mosaic_node::with_causes(error))
    ));
    if let CliError::Refused(problem) = error {
        let field = problem
            .field
            .as_ref()
            .map(|field| format!(", field: {}", clean(field)))
            .unwrap_or_default();
        let hint = if problem.retryable {
            "; it may work later"
        } else {
            ""
        };
        note(styled(
            DIM,
            format!("  code: {}{field}{hint}", problem.code),
        ));
    }
}

/// A line that says what is waited for; gone when dropped, and never shown where standard error is no terminal.
pub(crate) struct Waiting(ProgressBar);

impl Waiting {
    /// Shows it.
    pub(crate) fn for_what(what: impl Into<String>) -> Self {
        let bar = ProgressBar::new_spinner().with_message(clean(&what.into()));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        Self(bar)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A state in its colour.
pub(crate) fn state(state: ObservedState) -> String {
    styled(state_style(state), state)
}

fn state_style(state: ObservedState) -> Style {
    match state {
        ObservedState::Completed => GOOD,
        ObservedState::Failed | ObservedState::Killed => BAD,
        ObservedState::Killing | ObservedState::Unknown => WARN,
        ObservedState::Queued | ObservedState::Spawning => DIM,
        ObservedState::Running => AnsiColor::Cyan.on_default(),
    }
}

/// A span of time as people say it.
pub(crate) fn span(time: std::time::Duration) -> String {
    match time.as_secs() {
        0 if time.as_micros() < 1000 => format!("{} µs", time.as_micros()),
        0 if time.as_millis() < 10 => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        0 => format!("{} ms", time.as_millis()),
        secs @ 1..60 => format!("{secs}s"),
        secs @ 60..3600 => format!("{}m{:02}s", secs / 60, secs % 60),
        secs @ 3600..86_400 => format!("{}h{:02}m", secs / 3600, secs % 3600 / 60),
        secs => format!("{}d{:02}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// Microseconds as people say them.
pub(crate) fn micros(micros: u64) -> String {
    span(std::time::Duration::from_micros(micros))
}

/// What a grant allows, on one line.
pub(crate) fn grants(grants: &Grants) -> String {
    if grants.commands.is_empty() {
        return "nothing".to_owned();
    }
    let runtimes: Vec<_> = grants
        .runtimes
        .iter()
        .map(|pattern| match pattern {
            RuntimePattern::Any => "*",
            RuntimePattern::Named(name) => name.as_str(),
        })
        .collect();
    let mut text = format!(
        "{} commands on {} in {}, {} agents{}",
        grants.commands.len(),
        clean(&grants.repositories.join(" ")),
        runtimes.join(" "),
        grants.caps.max_agents,
        if grants.push { ", push" } else { "" },
    );
    for (index, secret) in grants.secrets.iter().enumerate() {
        text.push_str(if index == 0 { ", secrets " } else { " " });
        text.push_str(secret.as_str());
    }
    text
}

/// Connections as a table.
pub(crate) fn connections(connections: &[Connection]) -> Result<(), CliError> {
    if connections.is_empty() {
        return line(styled(
            DIM,
            "no connections: `mosaic invite` at one node, `mosaic connect` at the other",
        ));
    }
    let mut table = Table::new([
        "CONNECTION",
        "NAME",
        "ROLE",
        "STATE",
        "URL",
        "MAY ASK US",
        "WE MAY ASK",
    ]);
    for connection in connections {
        let style = match connection.state {
            ConnectionState::Active => GOOD,
            ConnectionState::Pending | ConnectionState::Suspended => WARN,
            ConnectionState::Disconnected => DIM,
        };
        table.row([
            connection.connection_id.to_string().into(),
            connection.name.as_str().into(),
            connection.role.to_string().into(),
            Cell::styled(style, connection.state),
            connection.url.as_deref().unwrap_or("-").into(),
            grants(&connection.granted).into(),
            grants(&connection.received).into(),
        ]);
    }
    line(table)
}

/// What a peer tells of itself.
pub(crate) fn pong(pong: &Pong, took: std::time::Duration) -> Result<(), CliError> {
    line(format!(
        "{} is a Mosaic {} {}, answered in {}",
        clean(&pong.name),
        pong.role,
        clean(&pong.version),
        span(took)
    ))?;
    for sandbox in &pong.sandboxes {
        let limits = clean(&sandbox.limits.join(", "));
        line(format!(
            "  sandbox {}: {} (limits: {limits})",
            sandbox.kind,
            clean(&sandbox.containment)
        ))?;
    }
    for runtime in &pong.runtimes {
        let there = if runtime.available {
            "available"
        } else {
            "not installed"
        };
        line(format!("  runtime {}: {there}", runtime.name))?;
    }
    let held = if pong.held { ", spawns are held" } else { "" };
    line(format!("  {} active agents{held}", pong.active_agents))
}

/// Entries of an audit trail.
pub(crate) fn audit(entries: &[AuditEntry]) -> Result<(), CliError> {
    let mut table = Table::new(["SEQ", "TIME", "WHO", "ACTION", "SUBJECT", "OUTCOME"]);
    for entry in entries {
        match serde_json::from_str::<AuditEvent>(&entry.event_json) {
            Ok(event) => table.row([
                entry.seq.to_string().into(),
                time(event.at).into(),
                actor(&event.actor).into(),
                event.action.into(),
                event.subject.as_deref().unwrap_or("-").into(),
                Cell::styled(
                    if event.outcome == "ok" { GOOD } else { WARN },
                    event.outcome,
                ),
            ]),
            Err(_) => table.row([
                entry.seq.to_string().into(),
                "-".into(),
                "-".into(),
                Cell::styled(BAD, "not readable"),
                entry.event_json.chars().take(60).collect::<String>().into(),
                "-".into(),
            ]),
        }
    }
    line(table)
}

/// What a verification found.
pub(crate) fn verdict(verdict: &AuditVerdict) -> Result<(), CliError> {
    if verdict.valid {
        let sound = styled(GOOD, "sound");
        return line(format!(
            "{sound}: {} entries, head {}",
            verdict.entries,
            head(&verdict.head)
        ));
    }
    let place = verdict
        .first_bad_seq
        .map(|seq| format!(" at entry {seq}"))
        .unwrap_or_default();
    let fault = verdict.fault.as_deref().unwrap_or("it does not verify");
    line(format!(
        "{}{place}: {}",
        styled(BAD, "not sound"),
        clean(fault)
    ))
}

/// A head of a trail, short.
pub(crate) fn head(head: &AuditHead) -> String {
    let hash = head.hash.get(..12).unwrap_or(&head.hash);
    format!("{}:{}", head.seq, clean(hash))
}

/// A time to the second.
pub(crate) fn time(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(..19)
        .map_or(text.clone(), |text| text.replace('T', " "))
}

fn actor(actor: &Actor) -> String {
    match actor {
        Actor::Operator { token } => format!("operator {token}"),
        Actor::Peer { instance, .. } => {
            format!("peer {}", instance.as_str().get(..11).unwrap_or_default())
        }
        Actor::System => "system".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn spans_are_short() {
        for (time, text) in [
            (Duration::from_micros(90), "90 µs"),
            (Duration::from_micros(1100), "1.1 ms"),
            (Duration::from_millis(250), "250 ms"),
            (Duration::from_secs(59), "59s"),
            (Duration::from_secs(61), "1m01s"),
            (Duration::from_secs(3660), "1h01m"),
            (Duration::from_secs(90_000), "1d01h"),
        ] {
            assert_eq!(span(time), text);
        }
    }
}

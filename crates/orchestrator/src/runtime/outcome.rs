//! How a run ended: the one place where text may become an answer (A16).

use serde::{Deserialize, Serialize};

use super::{OutputFormat, stream::StreamReader, text, watchdog::Verdict};

/// How the process came to its end. The caller has proven its death before it asks for an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It left by itself.
    Exited {
        /// Its exit status, 0 to 255.
        code: i32,
    },
    /// A signal ended it that was not ours: the kernel's out-of-memory killer, a crash.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// It is gone, and its exit status with it.
    Unknown,
    /// The watchdog gave it up and it was killed for that.
    GivenUp(Verdict),
    /// It ran into its time limit and was killed for that.
    TimedOut,
    /// It was killed by command.
    Killed,
}

/// Why a run failed. The names are stable: clients see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It left with success and never gave a result.
    NoResult,
    /// It said itself that it failed.
    RuntimeError,
    /// It left with a status other than 0.
    ExitStatus,
    /// A signal ended it.
    Signal,
    /// It vanished, and nothing says how.
    ExitUnknown,
    /// It said nothing for too long.
    Silent,
    /// It ran into its time limit.
    TimedOut,
}

impl FailureKind {
    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoResult => "no-result",
            Self::RuntimeError => "runtime-error",
            Self::ExitStatus => "exit-status",
            Self::Signal => "signal",
            Self::ExitUnknown => "exit-unknown",
            Self::Silent => "silent",
            Self::TimedOut => "timed-out",
        }
    }
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it was asked, by its own word.
    Completed {
        /// Its result; for plain output, the end of that.
        summary: String,
    },
    /// It did not.
    Failed {
        /// Why.
        kind: FailureKind,
        /// One sentence and what the runtime said of it, bounded.
        message: String,
    },
    /// It was killed by command. Whatever it wrote is not an answer.
    Killed,
}

impl Outcome {
    /// The outcome of a run that ended so, with all its output fed to `reader`.
    #[must_use]
    pub fn of(ending: Ending, reader: &StreamReader) -> Self {
        match reader.format() {
            OutputFormat::ClaudeStreamJson => Self::of_claude(ending, reader),
            OutputFormat::Plain => Self::of_plain(ending, reader),
        }
    }

    fn of_claude(ending: Ending, reader: &StreamReader) -> Self {
        let result = reader.final_result();
        match ending {
            Ending::Killed => Self::Killed,
            // The result was there before we ended it, and the reader held it to be the last word.
            Ending::Exited { code: 0 } | Ending::GivenUp(Verdict::HungAfterResult) => {
                match result {
                    Some(result) if result.success => Self::Completed {
                        summary: result.text.clone(),
                    },
                    Some(result) => runtime_error(&result.subtype, &result.text),
                    None => failed(
                        FailureKind::NoResult,
                        "the runtime left without a result",
                        reader,
                    ),
                }
            }
            // What it said of its own failure tells more than its exit status.
            Ending::Exited { .. } => match result {
                Some(result) if !result.success => runtime_error(&result.subtype, &result.text),
                _ => Self::of_process(ending, reader),
            },
            _ => Self::of_process(ending, reader),
        }
    }

    fn of_plain(ending: Ending, reader: &StreamReader) -> Self {
        match ending {
            Ending::Killed => Self::Killed,
            Ending::Exited { code: 0 } => Self::Completed {
                summary: reader.output_tail(),
            },
            _ => Self::of_process(ending, reader),
        }
    }

    fn of_process(ending: Ending, reader: &StreamReader) -> Self {
        let (kind, what) = match ending {
            Ending::Killed => return Self::Killed,
            Ending::Exited { code } => (
                FailureKind::ExitStatus,
                format!("the runtime left with status {code}"),
            ),
            Ending::Signalled { signal } => (
                FailureKind::Signal,
                format!("the runtime was ended by signal {signal}"),
            ),
            Ending::Unknown => (
                FailureKind::ExitUnknown,
                "the runtime vanished and its exit status is lost".to_owned(),
            ),
            Ending::GivenUp(Verdict::Silent) => (
                FailureKind::Silent,
                "the runtime said nothing for too long and was stopped".to_owned(),
            ),
            Ending::GivenUp(Verdict::HungAfterResult) => (
                FailureKind::NoResult,
                "the runtime was stopped without a result".to_owned(),
            ),
            Ending::TimedOut => (
                FailureKind::TimedOut,
                "the runtime ran into its time limit and was stopped".to_owned(),
            ),
        };
        failed(kind, &what, reader)
    }
}

const MAX_MESSAGE_BYTES: usize = 8 * 1024;

fn failed(kind: FailureKind, what: &str, reader: &StreamReader) -> Outcome {
    let said = [reader.diagnostics_tail(), reader.output_tail()]
        .into_iter()
        .find(|tail| !tail.is_empty());
    let message = match said {
        Some(said) => format!("{what}: {said}"),
        None => what.to_owned(),
    };
    Outcome::Failed {
        kind,
        message: text::bounded(&message, MAX_MESSAGE_BYTES),
    }
}

fn runtime_error(subtype: &str, said: &str) -> Outcome {
    let message = if said.is_empty() { subtype } else { said };
    Outcome::Failed {
        kind: FailureKind::RuntimeError,
        message: text::bounded(message, MAX_MESSAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn claude(output: &str) -> StreamReader {
        let mut reader = StreamReader::new(OutputFormat::ClaudeStreamJson);
        reader.feed(output.as_bytes(), Instant::now());
        reader.finish(Instant::now());
        reader
    }

    fn kind(outcome: Outcome) -> FailureKind {
        match outcome {
            Outcome::Failed { kind, .. } => kind,
            other => panic!("not a failure: {other:?}"),
        }
    }

    const SUCCESS: &str =
        r#"{"type":"result","subtype":"success","is_error":false,"result":"done"}"#;
    const TEXT: &str = r#"{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"all done"}]}}"#;

    #[test]
    fn success_needs_both_exit_and_result() {
        let done = Outcome::Completed {
            summary: "done".to_owned(),
        };
        assert_eq!(
            Outcome::of(Ending::Exited { code: 0 }, &claude(SUCCESS)),
            done
        );
        let hung = Ending::GivenUp(Verdict::HungAfterResult);
        assert_eq!(Outcome::of(hung, &claude(SUCCESS)), done);
        let exit_1 = Outcome::of(Ending::Exited { code: 1 }, &claude(SUCCESS));
        assert_eq!(kind(exit_1), FailureKind::ExitStatus);
    }

    #[test]
    fn a16_text_without_a_result_is_never_an_answer() {
        let exit_0 = Outcome::of(Ending::Exited { code: 0 }, &claude(TEXT));
        assert_eq!(kind(exit_0), FailureKind::NoResult);
        // Half a result line is no result.
        let half = &SUCCESS[..SUCCESS.len() - 2];
        let cut = Outcome::of(Ending::Exited { code: 0 }, &claude(half));
        assert_eq!(kind(cut), FailureKind::NoResult);
    }

    #[test]
    fn a16_a_killed_run_has_no_answer_even_with_a_result() {
        assert_eq!(
            Outcome::of(Ending::Killed, &claude(SUCCESS)),
            Outcome::Killed
        );
        for ending in [
            Ending::Signalled { signal: 9 },
            Ending::TimedOut,
            Ending::Unknown,
            Ending::GivenUp(Verdict::Silent),
        ] {
            let outcome = Outcome::of(ending, &claude(SUCCESS));
            assert!(matches!(outcome, Outcome::Failed { .. }), "{ending:?}");
        }
    }

    #[test]
    fn an_error_result_fails_with_its_text() {
        // As the real CLI says it: the subtype is `success` even so.
        let error = r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: 400 bad"}"#;
        for code in [0, 1] {
            assert_eq!(
                Outcome::of(Ending::Exited { code }, &claude(error)),
                Outcome::Failed {
                    kind: FailureKind::RuntimeError,
                    message: "API Error: 400 bad".to_owned()
                }
            );
        }
        let no_text = r#"{"type":"result","subtype":"error_max_turns"}"#;
        assert_eq!(
            Outcome::of(Ending::Exited { code: 0 }, &claude(no_text)),
            Outcome::Failed {
                kind: FailureKind::RuntimeError,
                message: "error_max_turns".to_owned()
            }
        );
    }

    #[test]
    fn a_failure_tells_what_the_runtime_said() {
        let mut reader = claude("");
        reader.feed_diagnostics(b"cannot be used with root\n", Instant::now());
        let Outcome::Failed { message, .. } = Outcome::of(Ending::Exited { code: 1 }, &reader)
        else {
            panic!("it failed");
        };
        assert_eq!(
            message,
            "the runtime left with status 1: cannot be used with root"
        );
    }

    #[test]
    fn plain_goes_by_the_exit_status_alone() {
        let mut reader = StreamReader::new(OutputFormat::Plain);
        reader.feed(b"one\ntwo", Instant::now());
        reader.finish(Instant::now());
        assert_eq!(
            Outcome::of(Ending::Exited { code: 0 }, &reader),
            Outcome::Completed {
                summary: "one\ntwo".to_owned()
            }
        );
        let failure = Outcome::of(Ending::Exited { code: 3 }, &reader);
        assert_eq!(kind(failure), FailureKind::ExitStatus);
        assert_eq!(Outcome::of(Ending::Killed, &reader), Outcome::Killed);
    }
}

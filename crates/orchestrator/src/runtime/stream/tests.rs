use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::runtime::{Ending, FailureKind, Outcome, Tokens};

const SUCCESS: &str = include_str!("../testdata/claude-success.jsonl");
const REFUSED: &str = include_str!("../testdata/claude-refused.jsonl");
const OVERLOADED: &str = include_str!("../testdata/claude-overloaded.jsonl");
const CUT_STREAM: &str = include_str!("../testdata/claude-cut-stream.jsonl");
const BACKGROUND: &str = include_str!("../testdata/claude-background.jsonl");
const PERMISSION_DENIED: &str = include_str!("../testdata/claude-permission-denied.jsonl");

fn read(format: OutputFormat, output: &[u8]) -> (StreamReader, Vec<RuntimeEvent>) {
    let now = Instant::now();
    let mut reader = StreamReader::new(format);
    let mut events = reader.feed(output, now);
    events.extend(reader.finish(now));
    (reader, events)
}

fn claude(output: &str) -> (StreamReader, Vec<RuntimeEvent>) {
    read(OutputFormat::ClaudeStreamJson, output.as_bytes())
}

fn assistant(id: &str, output_tokens: &str) -> String {
    format!(
        "{{\"type\":\"assistant\",\"message\":{{\"id\":\"{id}\",\"content\":[],\
         \"usage\":{{\"input_tokens\":10,\"output_tokens\":{output_tokens}}}}}}}\n"
    )
}

#[test]
fn a_real_run_is_read_in_full() {
    let (reader, events) = claude(SUCCESS);
    insta::assert_json_snapshot!("success_progress", reader.snapshot());
    insta::assert_json_snapshot!("success_events", events);
    assert_eq!(
        Outcome::of(Ending::Exited { code: 0 }, &reader),
        Outcome::Completed {
            summary: "Done: wrote hello.txt".to_owned()
        }
    );
}

#[test]
fn a_real_run_mid_way_is_no_result() {
    // Without its last line.
    let cut = SUCCESS.trim_end().rfind('\n').unwrap() + 1;
    let (reader, _) = claude(&SUCCESS[..cut]);
    let progress = reader.snapshot();
    assert_eq!(progress.phase, Phase::Working);
    assert_eq!(progress.last_text.as_deref(), Some("Done: wrote hello.txt"));
    // A17: two messages of 100 tokens over three lines.
    assert_eq!(progress.tokens.input, 200);
    let outcome = Outcome::of(Ending::Exited { code: 0 }, &reader);
    assert!(matches!(
        outcome,
        Outcome::Failed {
            kind: FailureKind::NoResult,
            ..
        }
    ));
}

#[test]
fn a_refusal_of_the_service_is_a_failure_in_its_words() {
    let (reader, _) = claude(REFUSED);
    assert_eq!(reader.final_result().unwrap().api_error_status, Some(400));
    assert_eq!(reader.final_result().unwrap().subtype, "success");
    assert_eq!(
        Outcome::of(Ending::Exited { code: 1 }, &reader),
        Outcome::Failed {
            kind: FailureKind::RuntimeError,
            message: "API Error: 400 bad".to_owned(),
        }
    );
    assert_ne!(reader.snapshot().model.as_deref(), Some("<synthetic>"));
}

#[test]
fn waits_for_the_service_are_told() {
    let (reader, events) = claude(OVERLOADED);
    assert_eq!(reader.snapshot().retries, 2);
    let retry = events
        .iter()
        .find(|event| matches!(event, RuntimeEvent::Retrying { .. }));
    assert_eq!(
        retry,
        Some(&RuntimeEvent::Retrying {
            attempt: 1,
            status: Some(529),
            delay_ms: 599
        })
    );
    assert!(reader.final_result().unwrap().success);
    let first_retry = OVERLOADED.lines().take(2).collect::<Vec<_>>().join("\n");
    assert_eq!(claude(&first_retry).0.snapshot().phase, Phase::Retrying);

    let (reader, events) = claude(CUT_STREAM);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, RuntimeEvent::Retrying { status: None, .. }))
    );
    // What the cut message used is in the runtime's own total alone.
    assert_eq!(reader.snapshot().tokens.input, 300);
}

#[test]
fn work_in_the_background_makes_two_results_of_one_run() {
    let waiting = BACKGROUND.find(r#""subtype":"task_updated""#).unwrap();
    let (reader, _) = claude(&BACKGROUND[..waiting]);
    assert!(reader.waits_for_background());
    assert!(reader.result_seen_at().is_some());
    let (reader, _) = claude(BACKGROUND);
    let progress = reader.snapshot();
    assert_eq!(progress.background_tasks, 0);
    // Usage and turns are told for each result, the cost in total.
    assert_eq!(progress.turns, 3);
    assert_eq!((progress.tokens.input, progress.tokens.output), (300, 75));
    assert!(progress.cost_usd.is_some_and(|cost| cost > 0.0027));
    assert!(reader.final_result().unwrap().success);
}

#[test]
fn a_refused_tool_is_told() {
    let (_, events) = claude(PERMISSION_DENIED);
    assert!(events.contains(&RuntimeEvent::ToolResult { is_error: true }));
}

#[test]
fn a17_usage_is_counted_once_for_each_message() {
    let lines = [
        assistant("a", "1"),
        assistant("a", "1"),
        assistant("b", "2"),
        assistant("a", "9"),
    ];
    let (reader, _) = claude(&lines.concat());
    let progress = reader.snapshot();
    assert_eq!(progress.turns, 2);
    assert_eq!(
        progress.tokens,
        Tokens {
            input: 20,
            output: 11,
            ..Tokens::default()
        }
    );
}

#[test]
fn a17_the_result_has_the_last_word_on_usage_and_cost() {
    let told = |of_models: &str| {
        let result = format!(
            r#"{{"type":"result","subtype":"success","total_cost_usd":0.5,"usage":{{"output_tokens":300}}{of_models}}}"#
        );
        let (reader, _) = claude(&format!("{}{result}", assistant("a", "100")));
        let progress = reader.snapshot();
        assert_eq!(progress.cost_usd, Some(0.5));
        progress.tokens
    };
    let main_loop = Tokens {
        input: 10,
        output: 300,
        ..Tokens::default()
    };
    for nothing in ["", r#","modelUsage":{}"#, r#","modelUsage":[1]"#] {
        assert_eq!(told(nothing), main_loop);
    }
    // By model, with what sub-agents have used.
    let of_models = r#","modelUsage":{"large":{"inputTokens":10,"outputTokens":300,"cacheReadInputTokens":1},
        "small":{"inputTokens":7,"outputTokens":9,"cacheCreationInputTokens":2}}"#;
    let with_sub_agents = Tokens {
        input: 17,
        output: 309,
        cache_read: 1,
        cache_creation: 2,
    };
    assert_eq!(told(&of_models.replace('\n', "")), with_sub_agents);
}

#[test]
fn a16_half_a_result_and_the_end_of_another_line_are_none() {
    let now = Instant::now();
    let result = br#"{"type":"result","subtype":"success","result":"done"}"#;
    for cut in 1..result.len() {
        let mut reader = StreamReader::new(OutputFormat::ClaudeStreamJson);
        reader.feed(&result[..cut], now);
        reader.drop_line();
        reader.feed(&[&result[cut..], b"\n"].concat(), now);
        assert_eq!(reader.final_result(), None, "{cut}");
        // What is whole is read.
        reader.feed(&[result, b"\n".as_slice()].concat(), now);
        assert!(reader.final_result().is_some());
    }
}

#[test]
fn a17_sub_agents_are_counted_before_and_after_a_result() {
    let sub_agent = assistant("s", "40").replacen('{', r#"{"parent_tool_use_id":"t","#, 1);
    let before = format!("{}{sub_agent}", assistant("a", "1"));
    let result =
        r#"{"type":"result","subtype":"success","usage":{"input_tokens":10,"output_tokens":1}}"#;
    let (reader, _) = claude(&before);
    let counted = reader.snapshot().tokens;
    let (reader, _) = claude(&format!("{before}{result}"));
    assert_eq!(reader.snapshot().tokens, counted);
}

#[test]
fn a16_a_turn_after_a_result_takes_it_back() {
    let result = r#"{"type":"result","subtype":"success","result":"first"}"#;
    let (reader, _) = claude(&format!("{result}\n{}", assistant("later", "1")));
    assert_eq!(reader.final_result(), None);
    assert_eq!(reader.result_seen_at(), None);
    let (reader, _) = claude(&format!("{result}\n{}{result}", assistant("later", "1")));
    assert_eq!(reader.final_result().unwrap().text, "first");
    // A sub-agent's message is not a turn.
    let sub_agent = assistant("s", "1").replacen('{', r#"{"parent_tool_use_id":"t","#, 1);
    let (reader, _) = claude(&format!("{result}\n{sub_agent}"));
    assert!(reader.final_result().unwrap().success);
}

#[test]
fn only_what_is_plainly_a_success_is_one() {
    for (line, success) in [
        (r#"{"type":"result","subtype":"success"}"#, true),
        (
            r#"{"type":"result","subtype":"success","is_error":false}"#,
            true,
        ),
        (
            r#"{"type":"result","subtype":"success","is_error":true}"#,
            false,
        ),
        (
            r#"{"type":"result","subtype":"success","is_error":"false"}"#,
            false,
        ),
        (
            r#"{"type":"result","subtype":"success","is_error":0}"#,
            false,
        ),
        (
            r#"{"type":"result","subtype":"error_during_execution"}"#,
            false,
        ),
        (r#"{"type":"result","subtype":["success"]}"#, false),
        (r#"{"type":"result"}"#, false),
    ] {
        let (reader, _) = claude(line);
        assert_eq!(reader.final_result().unwrap().success, success, "{line}");
    }
}

#[test]
fn errors_of_a_result_stand_in_for_its_text() {
    let line = r#"{"type":"result","subtype":"error_during_execution","errors":["a","b",3]}"#;
    assert_eq!(claude(line).0.final_result().unwrap().text, "a; b");
}

#[test]
fn what_is_not_known_is_tolerated_and_counted() {
    let output = concat!(
        "{\"type\":\"rate_limit_event\"}\n",
        "{\"type\":7}\n",
        "{\"type\":\"assistant\",\"message\":[]}\n",
        "{}\n",
        "npm warn something\n",
        "{half of a json\n",
        "[1]\n",
        "\"text\"\n",
        "\n",
    );
    let (reader, events) = claude(output);
    let counters = reader.snapshot().counters;
    assert_eq!(counters.lines, 9);
    assert_eq!(counters.unknown_lines, 4);
    assert_eq!(counters.plain_lines, 5);
    assert!(events.contains(&RuntimeEvent::Output {
        line: "{half of a json".to_owned()
    }));
    assert!(reader.output_tail().contains("npm warn something"));
}

#[test]
fn an_overlong_line_is_passed_over_and_not_held() {
    let now = Instant::now();
    let mut reader = StreamReader::new(OutputFormat::ClaudeStreamJson);
    let chunk = vec![b'x'; 1024 * 1024];
    for _ in 0..8 {
        reader.feed(&chunk, now);
        assert!(reader.line.capacity() <= 2 * MAX_LINE_BYTES);
    }
    let events = reader.feed(b"\n", now);
    assert_eq!(events, [RuntimeEvent::OverlongLine]);
    assert_eq!(reader.line.capacity(), 0);
    reader.feed(SUCCESS.as_bytes(), now);
    assert!(reader.final_result().unwrap().success);
    assert_eq!(reader.snapshot().counters.overlong_lines, 1);
}

#[test]
fn a_line_of_a_mebibyte_is_read_whole() {
    let text = "x".repeat(1024 * 1024);
    let line = format!(r#"{{"type":"result","subtype":"success","result":"{text}"}}"#);
    let (reader, _) = claude(&line);
    let result = reader.final_result().unwrap();
    assert!(result.success);
    assert_eq!(result.text.len(), MAX_RESULT_BYTES);
}

#[test]
fn hostile_json_neither_overflows_nor_spoils_its_neighbours() {
    let deep = "[".repeat(200_000);
    let deep_closed = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let hostile = [
        format!("{{\"type\":\"assistant\",\"message\":{{\"content\":{deep}"),
        format!("{{\"type\":\"assistant\",\"message\":{{\"content\":{deep_closed}}}}}"),
        format!("{{\"type\":\"assistant\",\"message\":{deep_closed}}}"),
        format!("{{\"type\":{deep_closed}}}"),
        "{\"type\":\"result\",\"type\":\"result\",\"subtype\":\"success\"}".to_owned(),
        "{\"type\":\"assistant\",\"message\":NaN}".to_owned(),
        "{\"type\":\"result\",\"total_cost_usd\":1e999,\"num_turns\":-3}".to_owned(),
        "{\"type\":\"result\",\"total_cost_usd\":-1,\"num_turns\":1e308,\"duration_ms\":1.5}"
            .to_owned(),
        assistant("h", "-5"),
        assistant("i", "1.5e308"),
        assistant("j", "18446744073709551615"),
        assistant("k", "\"12\""),
        assistant("l", "99999999999999999999999999999999"),
    ];
    let (reader, _) = claude(&hostile.join("\n"));
    let progress = reader.snapshot();
    assert_eq!(progress.tokens.output, Tokens::MAX);
    // Of what it wrote itself, by our prices: no cost that it could not tell.
    assert!(progress.cost_is_estimate);
    assert!(progress.cost_usd.is_some_and(f64::is_finite));
    assert_eq!(reader.final_result(), None);
    let round: Progress = serde_json::from_str(&serde_json::to_string(&progress).unwrap()).unwrap();
    assert_eq!(round, progress);
}

#[test]
fn one_line_does_not_make_events_without_end() {
    let blocks = vec![r#"{"type":"tool_use"}"#; 50_000].join(",");
    let line = format!(r#"{{"type":"assistant","message":{{"id":"m","content":[{blocks}]}}}}"#);
    let (_, events) = claude(&line);
    assert_eq!(events.len(), 256);
}

#[test]
fn plain_output_is_never_taken_for_claude() {
    let line = "{\"type\":\"result\",\"subtype\":\"success\",\"result\":\"x\"}\nlast\n\n";
    let (reader, _) = read(OutputFormat::Plain, line.as_bytes());
    assert_eq!(reader.final_result(), None);
    assert_eq!(reader.snapshot().last_text.as_deref(), Some("last"));
}

#[test]
fn a6_a_replay_from_the_start_stands_where_it_stood() {
    let now = Instant::now();
    let mut live = StreamReader::new(OutputFormat::ClaudeStreamJson);
    let (first, rest) = SUCCESS.as_bytes().split_at(SUCCESS.len() / 2);
    live.feed_at(0, first, now).unwrap();
    let stood = live.snapshot();
    // The same part again changes nothing; a part that overlaps is read from where it is new.
    assert_eq!(live.feed_at(0, first, now).unwrap(), []);
    assert_eq!(live.snapshot(), stood);
    let gap = first.len() as u64 + 1;
    assert_eq!(live.feed_at(gap, &rest[1..], now), None);
    assert_eq!(live.offset(), first.len() as u64);
    live.feed_at(0, SUCCESS.as_bytes(), now).unwrap();
    let (replayed, _) = claude(SUCCESS);
    assert_eq!(live.snapshot(), replayed.snapshot());
    assert_eq!(live.final_result(), replayed.final_result());
}

#[test]
fn skipped_bytes_are_no_sign_of_life() {
    let start = Instant::now();
    let mut reader = StreamReader::new(OutputFormat::Plain);
    reader.feed_at(0, b"abc", start);
    reader.feed_at(0, b"abc", start + Duration::from_secs(1));
    assert_eq!(reader.last_activity(), Some(start));
}

/// Lines that are nearly what is known, and what is not.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let real = SUCCESS
        .lines()
        .chain(OVERLOADED.lines())
        .chain(REFUSED.lines());
    let real: Vec<Vec<u8>> = real.map(|line| line.as_bytes().to_vec()).collect();
    let damaged = (
        prop::sample::select(real.clone()),
        any::<prop::sample::Index>(),
        any::<u8>(),
    )
        .prop_map(|(mut line, at, byte)| {
            let at = at.index(line.len());
            line[at] = byte;
            line
        });
    let number = prop_oneof![
        any::<f64>().prop_map(|n| n.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        Just("1e999".to_owned()),
        Just("null".to_owned()),
    ];
    let usage = ("[a-c]", number).prop_map(|(id, n)| assistant(&id, &n).trim_end().into());
    prop_oneof![
        prop::sample::select(real),
        damaged,
        usage,
        prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn chunks_do_not_matter(
        lines in prop::collection::vec(line(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        plain in any::<bool>(),
    ) {
        let format = if plain { OutputFormat::Plain } else { OutputFormat::ClaudeStreamJson };
        let output = lines.join(&b'\n');
        let (whole, whole_events) = read(format, &output);
        let now = Instant::now();
        let mut reader = StreamReader::new(format);
        let mut events = Vec::new();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(output.len() + 1)).collect();
        cuts.extend([0, output.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            events.extend(reader.feed(&output[pair[0]..pair[1]], now));
        }
        events.extend(reader.finish(now));
        prop_assert_eq!(events, whole_events);
        prop_assert_eq!(reader.snapshot(), whole.snapshot());
        prop_assert_eq!(reader.final_result(), whole.final_result());
        prop_assert_eq!(reader.output_tail(), whole.output_tail());
    }

    #[test]
    fn totals_never_shrink_before_a_result(
        figures in prop::collection::vec(("[a-d]", any::<u64>()), 1..40),
    ) {
        let now = Instant::now();
        let mut reader = StreamReader::new(OutputFormat::ClaudeStreamJson);
        let mut before = 0;
        for (id, figure) in figures {
            reader.feed(assistant(&id, &figure.to_string()).as_bytes(), now);
            let output = reader.snapshot().tokens.output;
            prop_assert!(output >= before && output <= Tokens::MAX);
            before = output;
        }
    }
}

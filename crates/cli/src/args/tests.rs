use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn what_is_documented_is_taken() {
    for line in [
        "mosaic dev --dir /tmp/x --spokes 3 --sandbox process --json",
        "mosaic dev --port 7600 --keep-agents",
        "mosaic dev --sandbox docker",
        "mosaic demo --yes --repository .",
        "mosaic demo --sandbox docker --image mosaic-agent:1",
        "mosaic invite --node spoke-1 --repository file://** --runtime shell --max-agents 4 --ttl 60",
        "mosaic connect mpt1abc",
        "mosaic connect --url https://spoke.example",
        "mosaic connections",
        "mosaic connections suspend spoke-1",
        "mosaic connections accept spoke-1 --repository https://example.com/**",
        "mosaic spawn -r file:///x -b main -t MOS-1 --type reviewer -i one -i two --follow",
        "mosaic spawn -r file:///x --instructions-file - --timeout 60 --retries 1 --memory-mb 512 --cpus 0.5 --network none",
        "mosaic spawn -r file:///x --network allow:api.anthropic.com,*.example.org:443,[::1]:8080",
        "mosaic invite --repository file://** --network allow:api.anthropic.com",
        "mosaic ps --all --task MOS-1",
        "mosaic status 019a",
        "mosaic logs -f 019a",
        "mosaic result 019a --patch",
        "mosaic result 019a --output x.patch",
        "mosaic result 019a --apply",
        "mosaic result 019a --salvaged --bundle FILE",
        "mosaic result 019a --fetch",
        "mosaic result 019a --salvaged",
        "mosaic kill 019a --wait --reason over",
        "mosaic kill --all --hold --connection spoke-1",
        "mosaic --json kill --all",
        "mosaic hold status --node spoke-1",
        "mosaic hold release",
        "mosaic audit --after 5",
        "mosaic audit verify",
        "mosaic tokens create ci --role viewer",
        "mosaic tokens delete ci",
        "mosaic completions zsh",
        "mosaic ps --hub http://127.0.0.1:7600 --token-file t",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "mosaic",
        "mosaic kill",
        "mosaic kill 019a --all",
        "mosaic kill 019a --hold",
        "mosaic spawn -r file:///x --network allow:",
        "mosaic spawn -r file:///x --network allow:127.1",
        "mosaic spawn -r file:///x --network allow",
        "mosaic kill 019a --task x",
        "mosaic kill --hold",
        "mosaic result 019a --patch --apply",
        "mosaic result 019a --bundle FILE --fetch",
        "mosaic connect",
        "mosaic connect token --url https://x.example",
        "mosaic spawn",
        "mosaic spawn -r file:///x --type boss",
        "mosaic spawn -r file:///x --task ../x",
        "mosaic spawn -r file:///x --agent-id 9b2e4a54-6a58-4f6f-9d30-0b1d1b2f9f3c",
        "mosaic dev --spokes 0",
        "mosaic invite --command agent.fly",
        "mosaic ps --limit 501",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn the_exit_codes_are_in_the_help() {
    let help = Cli::command().render_help().to_string();
    for code in [
        "  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  5 ", "  6 ", "  7 ", "  130 ",
    ] {
        assert!(help.contains(code), "{code}");
    }
}

#[test]
fn an_image_is_of_containers() {
    let image = |line: &str| {
        let Command::Dev(args) = parse(line).unwrap().command else {
            panic!("{line}");
        };
        args.contained.image().map(|image| image.map(str::to_owned))
    };
    assert_eq!(image("mosaic dev").unwrap(), None);
    assert_eq!(
        image("mosaic dev --sandbox docker").unwrap().as_deref(),
        Some("mosaic-agent:1")
    );
    assert_eq!(
        image("mosaic dev --sandbox docker --image x")
            .unwrap()
            .as_deref(),
        Some("x")
    );
    assert!(image("mosaic dev --image x").is_err());
}

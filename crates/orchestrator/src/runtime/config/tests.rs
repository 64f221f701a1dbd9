use super::*;
use crate::runtime::claude;

fn parse(toml: &str) -> Result<RuntimeConfig, toml::de::Error> {
    toml::from_str(toml)
}

#[test]
fn built_in_runtimes_are_valid_and_survive_toml() {
    for config in [claude::default_config(), RuntimeConfig::shell()] {
        config.validate().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(parse(&text).unwrap(), config);
    }
}

#[test]
fn a_config_says_what_it_means() {
    let config = parse(
        r#"
        name = "aider"
        program = "/usr/bin/aider"
        args = ["--yes", "--settings", '{"a": {"b": 1}}', "--message", "{prompt}"]
        prompt = "argument"
        env-allow = ["PATH"]
        env = { NO_COLOR = "1" }
        secret-env = { API_KEY = { file = "/run/secrets/key" }, TOKEN = { secret = "npm-token" } }
        read-only-paths = ["/opt/aider"]
        silence-timeout-secs = 60
        "#,
    )
    .unwrap();
    config.validate().unwrap();
    assert_eq!(config.result_grace_secs, 10);
    assert_eq!(config.output, OutputFormat::Plain);
}

#[test]
fn unknown_members_are_refused() {
    for toml in [
        "name = 'x'\nprogram = 'x'\nshell = true",
        "name = 'x'\nprogram = 'x'\nprompt = 'shell'",
        "name = 'x'\nprogram = 'x'\nsecret-env = { A = { file = '/a', value = 'b' } }",
        "name = 'x'\nprogram = 'x'\nsecret-env = { A = { file = '/a', secret = 'b' } }",
        "name = 'x'\nprogram = 'x'\nsecret-env = { A = { secret = '../b' } }",
        "name = '--x'\nprogram = 'x'",
        "name = 'x'\nprogram = 'x'\nsilence-timeout-secs = -1",
    ] {
        assert!(parse(toml).is_err(), "{toml}");
    }
}

#[test]
fn placeholders_are_whole_arguments() {
    for arg in [
        "{instruction}",
        "-m={prompt}",
        "x{instructions}",
        "{prompt}{prompt}",
        "{budget_usd}",
        "{}",
        "{ prompt }",
        "a {prompt} b {",
        "{{prompt}}",
    ] {
        let config = RuntimeConfig {
            args: vec![arg.to_owned(), PROMPT_PLACEHOLDER.to_owned()],
            ..RuntimeConfig::shell()
        };
        let fault = config.validate();
        assert!(
            matches!(fault, Err(ConfigError::Placeholder { .. })),
            "{arg}: {fault:?}"
        );
    }
}

#[test]
fn placeholders_fit_the_channel() {
    let none: Vec<String> = vec![];
    let one = vec![PROMPT_PLACEHOLDER.to_owned()];
    let two = vec![
        PROMPT_PLACEHOLDER.to_owned(),
        INSTRUCTIONS_PLACEHOLDER.to_owned(),
    ];
    for (prompt, args, fits) in [
        (PromptChannel::Stdin, &none, true),
        (PromptChannel::Stdin, &one, false),
        (PromptChannel::None, &none, true),
        (PromptChannel::None, &one, false),
        (PromptChannel::Argument, &none, false),
        (PromptChannel::Argument, &one, true),
        (PromptChannel::Argument, &two, false),
    ] {
        let config = RuntimeConfig {
            prompt,
            args: args.clone(),
            ..RuntimeConfig::shell()
        };
        assert_eq!(config.validate().is_ok(), fits, "{prompt} {args:?}");
    }
}

#[test]
fn programs_are_names_or_absolute_paths() {
    for (program, fits) in [
        ("claude", true),
        ("/opt/x/claude", true),
        ("", false),
        ("./claude", false),
        ("bin/claude", false),
        ("../claude", false),
        ("a\0b", false),
    ] {
        let config = RuntimeConfig {
            program: program.to_owned(),
            ..RuntimeConfig::shell()
        };
        assert_eq!(config.validate().is_ok(), fits, "{program:?}");
    }
}

#[test]
fn the_environment_is_checked() {
    for variable in ["HOME", "TMPDIR", "", "A=B", "1A", "A B", "LD PRELOAD"] {
        let config = RuntimeConfig {
            env_allow: [variable.to_owned()].into(),
            ..RuntimeConfig::shell()
        };
        assert!(config.validate().is_err(), "{variable:?}");
    }
    let twice = RuntimeConfig {
        env: [("PATH".to_owned(), "/bin".to_owned())].into(),
        ..RuntimeConfig::shell()
    };
    assert!(matches!(
        twice.validate(),
        Err(ConfigError::VariableTwice { .. })
    ));
    let relative = RuntimeConfig {
        secret_env: [("KEY".to_owned(), SecretSource::File("key".into()))].into(),
        ..RuntimeConfig::shell()
    };
    assert!(matches!(
        relative.validate(),
        Err(ConfigError::RelativePath { .. })
    ));
}

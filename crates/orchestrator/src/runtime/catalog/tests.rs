use std::{fs, process::Command};

use super::*;
use mosaic_types::command::{AgentType, RuntimeInfo};

use crate::runtime::{OutputFormat, PromptParts, config::SecretSource};

fn host_env(pairs: &[(&str, &str)]) -> HostEnv {
    HostEnv::new(
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
}

fn this_path() -> String {
    std::env::var("PATH").unwrap()
}

fn path_of(dir: &tempfile::TempDir) -> String {
    dir.path().canonicalize().unwrap().display().to_string()
}

fn prompt(instructions: &str) -> Prompt {
    Prompt::compose(&PromptParts {
        task_id: &"T-1".parse().unwrap(),
        agent_type: AgentType::Worker,
        branch: "main",
        work_items: &[],
        skills: &[],
        instructions: Some(instructions),
    })
    .unwrap()
}

fn name(name: &str) -> RuntimeName {
    name.parse().unwrap()
}

fn shell_catalog(host: &[(&str, &str)]) -> RuntimeCatalog {
    RuntimeCatalog::new([RuntimeConfig::shell()], host_env(host)).unwrap()
}

#[test]
fn shell_is_there_only_if_configured_and_claude_always() {
    let bare = RuntimeCatalog::new([], host_env(&[("PATH", "/nowhere")])).unwrap();
    let refusal = bare.resolve(&name("shell")).unwrap_err();
    assert!(matches!(refusal, ResolveError::Unknown { .. }));
    assert_eq!(
        refusal.to_string(),
        "no runtime `shell` here; there are: claude"
    );
    let refusal = bare.resolve(&name("claude")).unwrap_err();
    assert!(matches!(refusal, ResolveError::Unavailable { .. }));
    assert_eq!(
        bare.availability(),
        [RuntimeInfo {
            name: name("claude"),
            available: false
        }]
    );
}

#[test]
fn two_of_one_name_are_refused_and_claude_can_be_replaced() {
    let twice = RuntimeCatalog::new(
        [RuntimeConfig::shell(), RuntimeConfig::shell()],
        HostEnv::default(),
    );
    assert!(matches!(twice, Err(ConfigError::Duplicate { .. })));
    let mine = RuntimeConfig {
        program: "/bin/sh".to_owned(),
        ..claude::default_config()
    };
    let catalog = RuntimeCatalog::new([mine], HostEnv::default()).unwrap();
    let resolved = catalog.resolve(&name("claude")).unwrap();
    assert_eq!(resolved.program(), Path::new("/bin/sh"));
}

#[test]
fn programs_are_files_that_can_be_run_in_absolute_directories() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tool");
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(&program, "#!/bin/sh\n").unwrap();
    let path = format!("relative::{}", dir.path().display());
    let catalog = RuntimeCatalog::new(
        [RuntimeConfig {
            program: "tool".to_owned(),
            ..RuntimeConfig::shell()
        }],
        host_env(&[("PATH", &path)]),
    )
    .unwrap();
    assert!(catalog.resolve(&name("shell")).is_err(), "not executable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(catalog.resolve(&name("shell")).unwrap().program(), program);
    assert!(!is_program(&dir.path().join("sub")));

    // The same directory, told from where we stand.
    let relative = format!("{}{}", "../".repeat(32), &path_of(&dir)[1..]);
    assert!(is_program(&Path::new(&relative).join("tool")));
    let config = RuntimeConfig {
        program: "tool".to_owned(),
        ..RuntimeConfig::shell()
    };
    let catalog = RuntimeCatalog::new([config], host_env(&[("PATH", &relative)])).unwrap();
    assert!(catalog.resolve(&name("shell")).is_err());
}

#[test]
fn instructions_are_one_argument_whatever_they_hold() {
    let catalog = shell_catalog(&[("PATH", &this_path())]);
    let shell = catalog.resolve(&name("shell")).unwrap();
    let script = "printf '%s' \"$0:$#\"; echo ' \"; {prompt}'";
    let invocation = shell.invocation(&prompt(script), None).unwrap();
    assert_eq!(invocation.args, ["-c", script]);
    assert_eq!(invocation.stdin, None);
    let output = Command::new(&invocation.program)
        .args(&invocation.args)
        .env_clear()
        .envs(&invocation.env)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .ends_with(":0 \"; {prompt}\n")
    );
}

#[test]
fn instructions_never_become_options() {
    let catalog = shell_catalog(&[("PATH", &this_path())]);
    let shell = catalog.resolve(&name("shell")).unwrap();
    let refusal = shell.invocation(&prompt("-s"), None).unwrap_err();
    assert!(matches!(refusal, InvocationError::Prompt(_)));
}

#[test]
fn the_environment_is_made_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    fs::write(&file, "hunter-2222\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let config = RuntimeConfig {
        env: [("FIXED".to_owned(), "1".to_owned())].into(),
        secret_env: [("KEY".to_owned(), SecretSource::File(file.clone()))].into(),
        ..RuntimeConfig::shell()
    };
    let path = this_path();
    let host = host_env(&[("PATH", &path), ("HOME", "/root"), ("AWS_SECRET", "x")]);
    let catalog = RuntimeCatalog::new([config], host).unwrap();
    let shell = catalog.resolve(&name("shell")).unwrap();
    let invocation = shell.invocation(&prompt("true"), None).unwrap();
    let names: Vec<_> = invocation.env.keys().map(String::as_str).collect();
    assert_eq!(names, ["FIXED", "KEY", "PATH"]);
    assert_eq!(invocation.env["KEY"], "hunter-2222");
    assert!(!format!("{invocation:?}").contains("hunter"));
    fs::remove_file(&file).unwrap();
    let refusal = shell.invocation(&prompt("true"), None).unwrap_err();
    assert!(matches!(refusal, InvocationError::Secret { .. }));
}

#[test]
fn secrets_by_name_come_with_a_mask_and_take_no_variable_of_the_runtimes() {
    let host = host_env(&[
        ("PATH", &this_path()),
        ("SPOKES_OWN", "hunter-2222"),
        ("ANTHROPIC_API_KEY", "sk-ant-3333"),
    ]);
    let secrets = "[own]\nenv = 'SPOKES_OWN'\n\
        [npm-token]\nenv = 'SPOKES_OWN'\nvariable = 'NPM_TOKEN'\n\
        [other]\nenv = 'SPOKES_OWN'\nvariable = 'NPM_TOKEN'\n\
        [path]\nenv = 'SPOKES_OWN'\nvariable = 'PATH'\n";
    let config = RuntimeConfig {
        env_allow: ["PATH".to_owned(), "ANTHROPIC_API_KEY".to_owned()].into(),
        secret_env: [(
            "KEY".to_owned(),
            SecretSource::Secret("own".parse().unwrap()),
        )]
        .into(),
        ..RuntimeConfig::shell()
    };
    let unknown = RuntimeCatalog::new([config.clone()], host.clone());
    assert!(matches!(unknown, Err(ConfigError::UnknownSecret { .. })));
    let secrets = Secrets::new(toml::from_str(secrets).unwrap(), &host).unwrap();
    let catalog = RuntimeCatalog::with_secrets([config], host, secrets).unwrap();
    let shell = || catalog.resolve(&name("shell")).unwrap();
    let choose = |names: &[&str]| {
        let names: Vec<SecretName> = names.iter().map(|name| name.parse().unwrap()).collect();
        shell().with_secrets(&names)
    };
    let invocation = choose(&["npm-token"])
        .unwrap()
        .invocation(&prompt("true"), None)
        .unwrap();
    assert_eq!(invocation.env["KEY"], "hunter-2222");
    assert_eq!(invocation.env["NPM_TOKEN"], "hunter-2222");
    assert!(!invocation.env.contains_key("SPOKES_OWN"));
    let masks = format!("{:?}", invocation.masks);
    assert_eq!(
        masks,
        r#"[Mask("ANTHROPIC_API_KEY"), Mask("own"), Mask("npm-token")]"#
    );
    for unknown in ["absent", "own"] {
        let refusal = choose(&[unknown]).unwrap_err();
        assert!(matches!(refusal, SecretChoiceError::Unknown { .. }));
    }
    for taken in [&["path"][..], &["npm-token", "other"]] {
        let refusal = choose(taken).unwrap_err();
        assert!(matches!(refusal, SecretChoiceError::VariableTaken { .. }));
    }
}

#[test]
fn a_budget_is_kept_or_refused() {
    let claude = RuntimeConfig {
        program: "/bin/sh".to_owned(),
        ..claude::default_config()
    };
    let host = host_env(&[("PATH", &this_path())]);
    let catalog = RuntimeCatalog::new([claude, RuntimeConfig::shell()], host).unwrap();
    let claude = catalog.resolve(&name("claude")).unwrap();
    let invocation = claude.invocation(&prompt("x"), Some(2.5)).unwrap();
    assert!(
        invocation
            .args
            .ends_with(&["--max-budget-usd".to_owned(), "2.5".to_owned()])
    );
    assert!(invocation.stdin.unwrap().contains("## Instructions\n\nx\n"));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let refusal = claude.invocation(&prompt("x"), Some(bad)).unwrap_err();
        assert!(matches!(refusal, InvocationError::BudgetInvalid));
    }
    let shell = catalog.resolve(&name("shell")).unwrap();
    let refusal = shell.invocation(&prompt("x"), Some(1.0)).unwrap_err();
    assert!(matches!(refusal, InvocationError::BudgetUnsupported { .. }));
    // What tells what it uses is held to it by the spoke.
    let telling = RuntimeConfig {
        output: OutputFormat::ClaudeStreamJson,
        ..RuntimeConfig::shell()
    };
    let catalog = RuntimeCatalog::new([telling], host_env(&[("PATH", &this_path())])).unwrap();
    let telling = catalog.resolve(&name("shell")).unwrap();
    let invocation = telling.invocation(&prompt("x"), Some(1.0)).unwrap();
    assert_eq!(invocation.args.len(), 2);
}

#[test]
fn the_file_behind_a_link_can_be_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("tool");
    std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
    let config = RuntimeConfig {
        program: link.display().to_string(),
        ..RuntimeConfig::shell()
    };
    let catalog = RuntimeCatalog::new([config], HostEnv::default()).unwrap();
    let shell = catalog.resolve(&name("shell")).unwrap();
    let paths = shell
        .invocation(&prompt("x"), None)
        .unwrap()
        .read_only_paths;
    assert_eq!(paths[0], link);
    assert_eq!(paths[1], fs::canonicalize("/bin/sh").unwrap());
}

use std::os::unix::fs::PermissionsExt;

use super::*;

fn config(toml: &str) -> Result<BTreeMap<SecretName, SecretConfig>, toml::de::Error> {
    toml::from_str(toml)
}

fn host_env(variables: &[(&str, &str)]) -> HostEnv {
    HostEnv::new(
        variables
            .iter()
            .map(|(name, value)| (name.into(), value.into())),
    )
}

#[test]
fn a_secret_has_one_place() {
    let read =
        config("[npm-token]\nfile = '/run/npm'\nvariable = 'NPM_TOKEN'\n[a]\nenv = 'A'").unwrap();
    assert_eq!(read.len(), 2);
    for bad in [
        "[x]\n",
        "[x]\nfile = '/a'\nenv = 'A'",
        "[x]\nvalue = 'hunter-2222'",
        "[X]\nfile = '/a'",
        "[a_b]\nfile = '/a'",
    ] {
        assert!(config(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let host = host_env(&[
        ("GOOD", "hunter-2222"),
        ("SHORT", "hunter"),
        ("DULL", "111111111111"),
    ]);
    let start = |toml: &str| Secrets::new(config(toml).unwrap(), &host);
    let secrets = start("[a]\nenv = 'GOOD'\nvariable = 'TOKEN'").unwrap();
    let name: SecretName = "a".parse().unwrap();
    assert_eq!(secrets.read(&name).unwrap().expose(), "hunter-2222");
    assert_eq!(secrets.variable(&name), Some("TOKEN"));
    assert!(!format!("{secrets:?} {host:?}").contains("hunter"));
    for bad in [
        "[a]\nenv = 'SHORT'",
        "[a]\nenv = 'DULL'",
        "[a]\nenv = 'ABSENT'",
        "[a]\nfile = 'relative'",
        "[a]\nenv = 'GOOD'\nvariable = 'HOME'",
        "[a]\nenv = 'GOOD'\nvariable = 'A=B'",
    ] {
        let error = start(bad).unwrap_err();
        let text = format!("{error} {:?}", error);
        assert!(
            text.contains("secret `a`") && !text.contains("hunter"),
            "{text}"
        );
    }
}

#[test]
fn secrets_are_read_from_private_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    assert!(SecretText::read(&file).is_err());
    let write = |text: &str, mode| {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    write("hunter-2222\n", 0o600);
    let secret = SecretText::read(&file).unwrap();
    assert_eq!(secret.expose(), "hunter-2222");
    assert!(!format!("{secret:?}").contains("hunter"));
    write("hunter-2222", 0o644);
    assert!(SecretText::read(&file).is_err());
    write("\n", 0o600);
    assert!(SecretText::read(&file).is_err());
    write(&"x".repeat(65 * 1024), 0o600);
    assert!(SecretText::read(&file).is_err());
    let toml = format!("[a]\nfile = {file:?}");
    let secrets = Secrets::new(config(&toml).unwrap(), &HostEnv::default()).unwrap();
    assert_eq!(secrets.faults().len(), 1);
    write("hunter-2222", 0o600);
    assert!(secrets.faults().is_empty(), "a file is read anew each time");
}

//! `result`.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
};

use mosaic_types::{AgentId, command::AgentResult};

use super::{client, names};

mod bundles;

use crate::{
    args::{Globals, ResultArgs},
    client::{Client, Prefer},
    error::{CliError, Exit},
    render,
};

/// Lines of a patch that are shown without `--patch`.
const SHOWN_LINES: usize = 60;

pub(super) async fn result(globals: &Globals, args: ResultArgs) -> Result<Exit, CliError> {
    let client = client(globals, Prefer::Hub)?;
    let agent = names::agent(&client, &args.agent.agent).await?;
    if args.fetch || args.bundle.is_some() {
        return bundles::take(globals, &client, agent, &args).await;
    }
    if args.salvaged && !args.patch && !args.apply && args.output.is_none() {
        let salvaged = awaited(client.salvaged(agent)).await?;
        if globals.json {
            render::json(&salvaged)?;
        } else {
            render::salvaged(&salvaged)?;
        }
        return Ok(Exit::Ok);
    }
    if args.patch && !globals.json {
        let patch = patch(&client, agent, args.salvaged).await?;
        // What git takes is passed as it is; what a person sees must not act on the terminal.
        if args.raw || !std::io::stdout().is_terminal() {
            render::raw(&patch)?;
        } else {
            render::shown(&patch)?;
        }
    } else if let Some(path) = args.output {
        let patch = patch(&client, agent, args.salvaged).await?;
        std::fs::write(&path, &patch).map_err(|source| CliError::File {
            action: "write",
            path: path.clone(),
            source,
        })?;
        if globals.json {
            render::json(&serde_json::json!({ "written": path, "bytes": patch.len() }))?;
        } else {
            let path = path.display();
            render::note(format!("{} bytes written to {path}", patch.len()));
        }
    } else if args.apply {
        let patch = patch(&client, agent, args.salvaged).await?;
        git_am(&patch, Path::new("."), globals.json)?;
        if globals.json {
            render::json(&serde_json::json!({ "applied": true, "bytes": patch.len() }))?;
        }
    } else {
        let result = result_of(&client, agent, args.salvaged).await?;
        if globals.json {
            render::json(&result)?;
        } else {
            render::status(&result.status)?;
            render::patch(&result, SHOWN_LINES)?;
        }
    }
    Ok(Exit::Ok)
}

/// Shows that the agent's work is waited for, for as long as it is.
async fn awaited<T>(asking: impl Future<Output = T>) -> T {
    let _waiting = render::Waiting::for_what("waiting for the agent's work");
    asking.await
}

/// An agent's result; with `salvaged` only of one whose patch leads up to what was salvaged, as that of an agent that was
/// killed does.
async fn result_of(
    client: &Client,
    agent: AgentId,
    salvaged: bool,
) -> Result<AgentResult, CliError> {
    let result = awaited(client.result(agent)).await?;
    let work = result.status.work.as_ref();
    if salvaged && !work.is_some_and(|work| work.git_ref.starts_with("refs/mosaic/salvage/")) {
        return Err(CliError::NotSalvaged);
    }
    Ok(result)
}

/// The patch alone, of the same.
async fn patch(client: &Client, agent: AgentId, salvaged: bool) -> Result<Vec<u8>, CliError> {
    if salvaged {
        return client.patch_of(&result_of(client, agent, salvaged).await?);
    }
    awaited(client.patch(agent)).await
}

/// Has git put the commits on top of the branch that is checked out in `dir`. With `quiet` standard output stays ours.
///
/// The patch is an agent's: it may hold what the repository's hooks path leads to, which must not be run, and it must
/// not be signed in the operator's name.
fn git_am(patch: &[u8], dir: &Path, quiet: bool) -> Result<(), CliError> {
    let mut git = Command::new("git");
    git.current_dir(dir)
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(["-c", "commit.gpgSign=false"])
        .args(["am", "--3way"])
        .stdin(Stdio::piped());
    if quiet {
        git.stdout(std::io::stderr());
    }
    let mut git = git.spawn().map_err(CliError::Git)?;
    let written = match git.stdin.take() {
        Some(mut stdin) => stdin.write_all(patch),
        None => Ok(()),
    };
    let status = git.wait().map_err(CliError::Git)?;
    if !status.success() {
        return Err(CliError::GitAm {
            status: status.to_string(),
        });
    }
    written.map_err(CliError::Git)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    pub(super) fn git(dir: &Path, args: &[&str]) -> Vec<u8> {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        let output = Command::new("git")
            .current_dir(dir)
            .args(identity)
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        output.stdout
    }

    // A20: applying an agent's work must not run it, nor sign it.
    #[test]
    fn a20_hooks_that_the_patch_brings_are_not_run() {
        let base = tempfile::tempdir().unwrap();
        let (agent, ours) = (base.path().join("agent"), base.path().join("ours"));
        fs::create_dir(&agent).unwrap();
        git(&agent, &["init", "-q", "-b", "main"]);
        git(&agent, &["commit", "-q", "--allow-empty", "-m", "start"]);
        git(base.path(), &["clone", "-q", "agent", "ours"]);
        let hooks = agent.join(".husky");
        fs::create_dir(&hooks).unwrap();
        let ran = base.path().join("ran");
        for name in ["pre-applypatch", "post-applypatch", "applypatch-msg"] {
            let hook = hooks.join(name);
            fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
            fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        }
        git(&agent, &["add", "."]);
        git(&agent, &["commit", "-q", "-m", "hooks"]);
        fs::write(agent.join("work"), "done\n").unwrap();
        git(&agent, &["add", "."]);
        git(&agent, &["commit", "-q", "-m", "work"]);
        let patch = git(&agent, &["format-patch", "--stdout", "HEAD~2"]);
        for (name, value) in [
            ("core.hooksPath", ".husky"),
            ("commit.gpgSign", "true"),
            ("gpg.program", "false"),
            ("user.name", "t"),
            ("user.email", "t@example.org"),
        ] {
            git(&ours, &["config", name, value]);
        }
        git_am(&patch, &ours, false).unwrap();
        assert_eq!(fs::read_to_string(ours.join("work")).unwrap(), "done\n");
        assert!(!ran.exists());
    }
}

//! `result --bundle` and `result --fetch`.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use mosaic_types::{AgentId, agent::AgentStatus};
use tempfile::NamedTempFile;

use super::awaited;
use crate::{
    args::{Globals, ResultArgs},
    client::Client,
    error::{CliError, Exit},
    render,
};

/// Writes the bundle to its file, or fetches it into the repository that one stands in.
pub(super) async fn take(
    globals: &Globals,
    client: &Client,
    agent: AgentId,
    args: &ResultArgs,
) -> Result<Exit, CliError> {
    if let Some(path) = &args.bundle {
        let failed = |action| {
            move |source| CliError::File {
                action,
                path: path.clone(),
                source,
            }
        };
        // Beside its place, so that it is there whole or not at all.
        let dir = path.parent().filter(|dir| *dir != Path::new(""));
        let mut file =
            NamedTempFile::new_in(dir.unwrap_or(Path::new("."))).map_err(failed("write"))?;
        let bytes = awaited(client.bundle(agent, args.salvaged, &mut file)).await?;
        file.persist(path)
            .map_err(|error| failed("write")(error.error))?;
        if globals.json {
            render::json(&serde_json::json!({ "written": path, "bytes": bytes }))?;
        } else {
            render::note(format!("{bytes} bytes written to {}", path.display()));
        }
        return Ok(Exit::Ok);
    }
    let here = Path::new(".");
    let early = client.status(agent).await?;
    has_base(&early, here)?;
    let mut file = NamedTempFile::new()?;
    let bytes = awaited(client.bundle(agent, args.salvaged, &mut file)).await?;
    if early.work.is_none() {
        // It was not home then, so its base was not known.
        has_base(&client.status(agent).await?, here)?;
    }
    fetch(file.path(), agent, args.salvaged, here)?;
    let branch = format!("mosaic/{agent}");
    if globals.json {
        render::json(&serde_json::json!({ "fetched": true, "branch": branch, "bytes": bytes }))?;
    } else if args.salvaged {
        render::salvaged(&client.salvaged(agent).await?)?;
    } else {
        render::note(format!("the branch {branch} is here: `git log {branch}`"));
    }
    Ok(Exit::Ok)
}

/// A git that runs no hook, and speaks to nobody.
fn git(dir: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(dir)
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(["-c", "protocol.allow=never"])
        .args(["-c", "protocol.file.allow=always"])
        .args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    git
}

/// A bundle has only what the agent did: what it started from must be here.
fn has_base(status: &AgentStatus, dir: &Path) -> Result<(), CliError> {
    let Some(work) = &status.work else {
        // Not known yet, or there is none: then there is no bundle either, as the node will say.
        return Ok(());
    };
    let base = &work.base_commit;
    let found = base.len() == 40
        && base.bytes().all(|byte| byte.is_ascii_hexdigit())
        && git(dir)
            .args(["cat-file", "-e", &format!("{base}^{{commit}}")])
            .stderr(Stdio::null())
            .status()
            .map_err(CliError::Git)?
            .success();
    if found {
        return Ok(());
    }
    Err(CliError::NoBase {
        commit: base.clone(),
        repository: status.repository.clone(),
        branch: status.branch.clone(),
    })
}

/// Fetches the agent's own refs, and no others that the bundle may name. What is here and would be lost stays.
fn fetch(bundle: &Path, agent: AgentId, salvaged: bool, dir: &Path) -> Result<(), CliError> {
    let branch = format!("refs/heads/mosaic/{agent}");
    let refspecs = if salvaged {
        // As globs, for none of them need be there.
        [
            format!("{branch}*"),
            format!("refs/mosaic/salvage/{agent}*"),
            format!("refs/mosaic/agents/{agent}/*"),
            format!("refs/mosaic/previous/{agent}/*"),
        ]
        .map(|glob| format!("{glob}:{glob}"))
        .to_vec()
    } else {
        vec![format!("{branch}:{branch}")]
    };
    let status = git(dir)
        .args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"])
        .args(["--no-recurse-submodules", "--no-prune", "--"])
        .arg(bundle)
        .args(refspecs)
        .status()
        .map_err(CliError::Git)?;
    if status.success() {
        return Ok(());
    }
    Err(CliError::GitFetch {
        status: status.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::verbs::results::tests::git as run;

    // A20: what an agent wrote comes as objects. Nothing runs, and no ref but its own is touched.
    #[test]
    fn a20_a_bundle_moves_its_agents_refs_alone_and_runs_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (theirs, ours) = (base.path().join("theirs"), base.path().join("ours"));
        fs::create_dir(&theirs).unwrap();
        run(&theirs, &["init", "-q", "-b", "main"]);
        run(&theirs, &["commit", "-q", "--allow-empty", "-m", "start"]);
        run(base.path(), &["clone", "-q", "theirs", "ours"]);
        let agent = AgentId::generate();
        let (branch, salvage) = (
            format!("mosaic/{agent}"),
            format!("refs/mosaic/salvage/{agent}"),
        );
        run(&theirs, &["commit", "-q", "--allow-empty", "-m", "work"]);
        run(&theirs, &["branch", &branch]);
        let other = format!("refs/mosaic/salvage/{}", AgentId::generate());
        for name in [&salvage, &other] {
            run(&theirs, &["update-ref", name, "HEAD"]);
        }
        let bundle = base.path().join("bundle");
        let file = bundle.to_str().unwrap();
        let of = [
            branch.as_str(),
            salvage.as_str(),
            other.as_str(),
            "main",
            "^main~1",
        ];
        run(
            &theirs,
            &[&["bundle", "create", "-q", file][..], &of].concat(),
        );

        let ran = base.path().join("ran");
        let hook = ours.join(".git/hooks/reference-transaction");
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let main = run(&ours, &["rev-parse", "main"]);
        fetch(&bundle, agent, false, &ours).unwrap();
        run(
            &ours,
            &[
                "-c",
                "core.hooksPath=/dev/null",
                "rev-parse",
                "--verify",
                &branch,
            ],
        );
        assert!(!ran.exists());
        fetch(&bundle, agent, true, &ours).unwrap();
        assert!(!ran.exists());
        let refs = run(
            &ours,
            &["for-each-ref", "--format=%(refname)", "refs/mosaic"],
        );
        assert_eq!(String::from_utf8(refs).unwrap().trim(), salvage);
        assert_eq!(run(&ours, &["rev-parse", "main"]), main);

        // What is here already and is not contained in the agent's branch is not lost.
        run(&ours, &["checkout", "-q", "-b", "mine"]);
        run(&ours, &["commit", "-q", "--allow-empty", "-m", "mine"]);
        run(&ours, &["branch", "-f", &branch, "mine"]);
        let mine = run(&ours, &["rev-parse", "mine"]);
        let refused = fetch(&bundle, agent, false, &ours);
        assert!(matches!(refused, Err(CliError::GitFetch { .. })));
        assert_eq!(run(&ours, &["rev-parse", &branch]), mine);
    }
}

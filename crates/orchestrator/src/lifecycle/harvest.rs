//! Brings an agent's work home after its end, and removes its tree once nothing in it would be lost.

use mosaic_node::with_causes;
use mosaic_store::AgentRecord;
use mosaic_types::{
    Timestamp,
    agent::{CleanupKind, CleanupStep, CommitSummary, WorkSummary},
    work::Pushed,
};

use crate::{
    layout::AgentLayout,
    surroundings::Surroundings,
    worktree::{
        HarvestRequest, KeptWhy, Landing, NotBroughtHome, Removal, RemovalMode, WorkResult,
        WorktreeError, told,
    },
};

/// How many commits a summary names.
const COMMITS_NAMED: usize = 100;
/// How many things a summary names that were not brought home.
const MISSED_NAMED: usize = 100;

/// What came home, and how it went.
#[derive(Debug)]
pub struct Homecoming {
    /// The work, if the agent had a tree.
    pub summary: Option<WorkSummary>,
    /// The step, for the clean-up report.
    pub step: CleanupStep,
}

/// Brings the work of a dead agent home: its commits to its branch, what it had not committed to where `landing`
/// says.
pub async fn bring_home(
    around: &Surroundings,
    record: &AgentRecord,
    landing: Landing,
) -> Homecoming {
    let request = HarvestRequest {
        agent: record.agent_id,
        now_secs: Timestamp::now().unix_millis() / 1000,
        landing,
    };
    match around.worktrees.harvest(&request).await {
        Ok(work) => {
            let detail = format!("{} at {}", work.reference, work.head_commit);
            let complete = work.not_brought_home.is_empty();
            Homecoming {
                summary: Some(summarise(work)),
                step: step(complete, Some(detail)),
            }
        }
        Err(error) => failed(&error),
    }
}

fn step(ok: bool, detail: Option<String>) -> CleanupStep {
    CleanupStep {
        step: CleanupKind::Salvage,
        ok,
        detail,
    }
}

fn failed(error: &WorktreeError) -> Homecoming {
    let step = match error {
        WorktreeError::NotPrepared => step(true, Some("there was no working tree".to_owned())),
        // What git has to say of it may have names in it that the agent chose.
        _ => step(false, Some(told(&with_causes(error)))),
    };
    Homecoming {
        summary: None,
        step,
    }
}

fn summarise(work: WorkResult) -> WorkSummary {
    let mut notes: Vec<String> = work
        .not_brought_home
        .iter()
        .take(MISSED_NAMED)
        .map(|missed| {
            format!(
                "{} was not brought home ({:?}); the tree is kept",
                told(&missed.path),
                missed.why
            )
        })
        .collect();
    if work.not_brought_home.len() > MISSED_NAMED {
        notes.push(format!(
            "{} more things were not brought home",
            work.not_brought_home.len() - MISSED_NAMED
        ));
    }
    if work.commits.len() > COMMITS_NAMED {
        notes.push(format!(
            "{} more commits",
            work.commits.len() - COMMITS_NAMED
        ));
    }
    if work.patch.is_none() {
        let why = "the patch exceeds its size limit, or git cannot compare the commits";
        notes.push(format!("{why}; the branch has the work"));
    }
    WorkSummary {
        base_commit: work.base_commit,
        head_commit: work.head_commit,
        git_ref: work.reference,
        commits: work
            .commits
            .into_iter()
            .take(COMMITS_NAMED)
            .map(|commit| CommitSummary {
                id: commit.id,
                author: commit.author,
                subject: commit.subject,
                time: Timestamp::from_unix_millis(commit.time_secs.saturating_mul(1000)),
            })
            .collect(),
        uncommitted_included: work.uncommitted_committed,
        files_changed: work.files_changed as u64,
        insertions: work.insertions as u64,
        deletions: work.deletions as u64,
        patch_bytes: work.patch.map_or(0, |patch| patch.bytes),
        notes,
        pushed: None,
    }
}

/// Pushes the branch of an agent that has completed. What came of it, and the step of the clean-up.
pub async fn push(around: &Surroundings, record: &AgentRecord) -> (Option<Pushed>, CleanupStep) {
    let step = |ok, detail| CleanupStep {
        step: CleanupKind::Push,
        ok,
        detail: Some(detail),
    };
    match around.worktrees.push(&record.agent_id).await {
        Ok(Some(result)) => {
            let step = match &result.why_not {
                None => step(true, format!("{} at {}", result.reference, result.commit)),
                Some(why) => step(false, why.clone()),
            };
            let pushed = Pushed {
                git_ref: result.reference,
                commit: result.commit,
                why_not: result.why_not,
            };
            (Some(pushed), step)
        }
        Ok(None) => (None, step(true, "there is nothing to push".to_owned())),
        Err(error) => (None, step(false, told(&with_causes(&error)))),
    }
}

/// Removes the working tree, unless that would lose work, and the private HOME once it is known that there is none in
/// it. Also says whether it may go better later: a tree that is kept for the work in it stays.
pub async fn remove_tree(
    around: &Surroundings,
    record: &AgentRecord,
    layout: &AgentLayout,
) -> (CleanupStep, bool) {
    let step = |ok, detail| CleanupStep {
        step: CleanupKind::Worktree,
        ok,
        detail,
    };
    let tree = around
        .worktrees
        .remove(&record.agent_id, RemovalMode::OnlySecured)
        .await;
    let home = match &tree {
        Ok(removal) if !may_need_home(removal) => {
            around.worktrees.remove_scratch(layout.home()).await
        }
        _ => Ok(()),
    };
    match (tree, home) {
        (Err(error), _) | (Ok(_), Err(error)) => {
            (step(false, Some(told(&with_causes(&error)))), true)
        }
        (Ok(Removal::Kept { why }), Ok(())) => (step(false, Some(kept(&why))), false),
        (Ok(Removal::Removed), Ok(())) => (step(true, None), false),
    }
}

/// Whether the agent may have worked in its HOME, in a tree that is linked to the one which is kept.
fn may_need_home(removal: &Removal) -> bool {
    match removal {
        Removal::Removed => false,
        Removal::Kept { why } => match why {
            KeptWhy::NotBroughtHome { items } => items.iter().any(NotBroughtHome::is_in_home),
            KeptWhy::NoRecord => true,
            // Told only once all that is there has been looked at.
            KeptWhy::Uncommitted | KeptWhy::Unreferenced { .. } => false,
        },
    }
}

fn kept(why: &KeptWhy) -> String {
    match why {
        KeptWhy::Uncommitted => "kept: it differs from every commit that is referenced".to_owned(),
        KeptWhy::Unreferenced { what } => format!("kept: {what} is not reachable from any ref"),
        KeptWhy::NotBroughtHome { items } => {
            format!(
                "kept: {} parts of it could not be brought home",
                items.len()
            )
        }
        KeptWhy::NoRecord => "kept: nothing tells how it came to be".to_owned(),
    }
}

//! What an agent is told.

use std::fmt::Write as _;

use mosaic_types::{TaskId, command::AgentType};
use thiserror::Error;

/// Why a prompt cannot be made or handed over. Each names the member of the request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PromptError {
    /// A member is longer than it may be. Nothing is cut: half an instruction is another instruction.
    #[error("`{field}` is too large: {actual} above {limit} bytes or items")]
    TooLarge {
        /// The member, such as `context.workItems[3]`.
        field: String,
        /// What was given.
        actual: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A NUL, which neither an argument nor a prompt can hold.
    #[error("`{field}` holds a NUL character")]
    Nul {
        /// The member.
        field: String,
    },
    /// Nothing to do.
    #[error("`context.instructions` and `context.workItems` are both empty")]
    Empty,
    /// This runtime takes the instructions alone, and there are none.
    #[error("`context.instructions` is required by this runtime")]
    InstructionsRequired,
    /// The program would take it for an option of its own.
    #[error("`context.instructions` must not begin with `-` for this runtime")]
    LooksLikeOption,
}

impl PromptError {
    /// The member of the request at fault.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::TooLarge { field, .. } | Self::Nul { field } => field,
            Self::Empty => "context.workItems",
            Self::InstructionsRequired | Self::LooksLikeOption => "context.instructions",
        }
    }
}

/// What a prompt is made of, as the caller gave it.
#[derive(Debug, Clone, Copy)]
pub struct PromptParts<'a> {
    /// The caller's task.
    pub task_id: &'a TaskId,
    /// The kind of work.
    pub agent_type: AgentType,
    /// The branch the agent stands on.
    pub branch: &'a str,
    /// What is to be done, item by item.
    pub work_items: &'a [String],
    /// Skills to use, by name.
    pub skills: &'a [String],
    /// What else is to be known, or the whole task.
    pub instructions: Option<&'a str>,
}

/// What an agent is told: checked for size, ready to be handed over.
#[derive(Clone, PartialEq, Eq)]
pub struct Prompt {
    text: Option<String>,
    instructions: Option<String>,
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.text.as_ref().map_or(0, String::len);
        f.debug_struct("Prompt")
            .field("bytes", &bytes)
            .finish_non_exhaustive()
    }
}

impl Prompt {
    /// The most work items, and the most skills.
    pub const MAX_ITEMS: usize = 100;
    /// The longest work item, skill or branch, in bytes.
    pub const MAX_ITEM_BYTES: usize = 16 * 1024;
    /// The longest instructions, in bytes.
    pub const MAX_INSTRUCTIONS_BYTES: usize = 256 * 1024;
    /// The longest prompt, in bytes.
    pub const MAX_BYTES: usize = 512 * 1024;
    /// The longest argument the kernel takes, in bytes (`MAX_ARG_STRLEN`, less its NUL).
    pub const MAX_ARGUMENT_BYTES: usize = 128 * 1024 - 1;

    /// Makes the prompt.
    ///
    /// # Errors
    /// A part that is too large or holds a NUL. Whether enough was given is for the runtime to say,
    /// when it is handed over.
    pub fn compose(parts: &PromptParts<'_>) -> Result<Self, PromptError> {
        check_text("context.branch", parts.branch, Self::MAX_ITEM_BYTES)?;
        check_list("context.workItems", parts.work_items)?;
        check_list("context.skills", parts.skills)?;
        if let Some(instructions) = parts.instructions {
            check_text(
                "context.instructions",
                instructions,
                Self::MAX_INSTRUCTIONS_BYTES,
            )?;
        }
        let instructions = parts.instructions.filter(|text| !text.trim().is_empty());
        let has_items = parts.work_items.iter().any(|item| !item.trim().is_empty());
        let text = (has_items || instructions.is_some()).then(|| write_text(parts, instructions));
        if let Some(text) = &text {
            check_size("context", text.len(), Self::MAX_BYTES)?;
        }
        Ok(Self {
            text,
            instructions: instructions.map(str::to_owned),
        })
    }

    /// The whole prompt.
    ///
    /// # Errors
    /// Neither instructions nor work items were given.
    pub fn text(&self) -> Result<&str, PromptError> {
        self.text.as_deref().ok_or(PromptError::Empty)
    }

    /// The instructions alone.
    ///
    /// # Errors
    /// None were given.
    pub fn instructions(&self) -> Result<&str, PromptError> {
        self.instructions
            .as_deref()
            .ok_or(PromptError::InstructionsRequired)
    }

    /// `text` as a whole argument that no program takes for an option.
    pub(super) fn argument(&self, text: &str) -> Result<String, PromptError> {
        if text.starts_with('-') {
            return Err(PromptError::LooksLikeOption);
        }
        check_size("context.instructions", text.len(), Self::MAX_ARGUMENT_BYTES)?;
        Ok(text.to_owned())
    }
}

fn write_text(parts: &PromptParts<'_>, instructions: Option<&str>) -> String {
    let mut text = String::new();
    let role = match parts.agent_type {
        AgentType::Worker => "You do the work described below in this repository.",
        AgentType::Reviewer => {
            "You review this repository with regard to what is described below. Change no file; your \
             last message is the review: findings in order of weight, each with file and line."
        }
        AgentType::Tester => {
            "You test this repository with regard to what is described below: write the tests that are \
             missing, run them, and say in your last message what passes and what fails."
        }
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# Task {}\n\n{role}", parts.task_id);
    let items = parts
        .work_items
        .iter()
        .filter(|item| !item.trim().is_empty());
    for (index, item) in items.enumerate() {
        if index == 0 {
            text.push_str("\n## Work items\n\n");
        }
        let _ = writeln!(
            text,
            "{}. {}",
            index + 1,
            item.trim().replace('\n', "\n   ")
        );
    }
    if let Some(instructions) = instructions {
        let _ = writeln!(text, "\n## Instructions\n\n{}", instructions.trim());
    }
    if !parts.skills.is_empty() {
        let _ = writeln!(text, "\n## Skills to use\n");
        for skill in parts.skills {
            let _ = writeln!(text, "- {}", skill.trim());
        }
    }
    text.push_str("\n## How to work here\n\n");
    let _ = writeln!(
        text,
        "- You stand in a git worktree of your own, on the branch `{}`.",
        parts.branch
    );
    if parts.agent_type != AgentType::Reviewer {
        text.push_str(
            "- Commit your work on this branch, in commits that each make sense, with clear messages. \
             What you commit is what is handed on.\n",
        );
    }
    text.push_str(
        "- Never push, never switch or rewrite branches, and leave other worktrees and the git \
         configuration alone.\n\
         - Nobody can answer questions: decide, and say in your last message what you decided.\n\
         - Stop what you started in the background before you end. Your last message is kept as the \
         summary of the result.\n",
    );
    text
}

fn check_list(field: &str, items: &[String]) -> Result<(), PromptError> {
    check_size(field, items.len(), Prompt::MAX_ITEMS)?;
    for (index, item) in items.iter().enumerate() {
        check_text(&format!("{field}[{index}]"), item, Prompt::MAX_ITEM_BYTES)?;
    }
    Ok(())
}

fn check_text(field: &str, text: &str, limit: usize) -> Result<(), PromptError> {
    if text.contains('\0') {
        return Err(PromptError::Nul {
            field: field.to_owned(),
        });
    }
    check_size(field, text.len(), limit)
}

fn check_size(field: &str, actual: usize, limit: usize) -> Result<(), PromptError> {
    if actual > limit {
        return Err(PromptError::TooLarge {
            field: field.to_owned(),
            actual,
            limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

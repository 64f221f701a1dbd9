use super::*;

fn task() -> TaskId {
    "MOS-1".parse().unwrap()
}

fn parts<'a>(task_id: &'a TaskId, work_items: &'a [String]) -> PromptParts<'a> {
    PromptParts {
        task_id,
        agent_type: AgentType::Worker,
        branch: "mosaic/x",
        work_items,
        skills: &[],
        instructions: Some("Keep the style of the code."),
    }
}

#[test]
fn a_worker_is_told_all_of_it() {
    let task = task();
    let items = ["Add a test\nfor the parser".to_owned(), "Fix it".to_owned()];
    let skills = ["rust".to_owned()];
    let prompt = Prompt::compose(&PromptParts {
        skills: &skills,
        ..parts(&task, &items)
    })
    .unwrap();
    insta::assert_snapshot!(prompt.text().unwrap());
}

#[test]
fn a_reviewer_is_not_told_to_commit() {
    let task = task();
    let prompt = Prompt::compose(&PromptParts {
        agent_type: AgentType::Reviewer,
        ..parts(&task, &[])
    })
    .unwrap();
    assert!(!prompt.text().unwrap().contains("Commit your work"));
    assert!(prompt.text().unwrap().contains("Never push"));
}

#[test]
fn nothing_to_do_is_refused() {
    let task = task();
    let items = ["  ".to_owned()];
    let nothing = PromptParts {
        instructions: Some(" \n"),
        ..parts(&task, &items)
    };
    let prompt = Prompt::compose(&nothing).unwrap();
    assert_eq!(prompt.text(), Err(PromptError::Empty));
    assert_eq!(
        prompt.instructions(),
        Err(PromptError::InstructionsRequired)
    );
}

#[test]
fn sizes_are_bounded_and_the_member_is_named() {
    let task = task();
    let field = |parts: &PromptParts<'_>| match Prompt::compose(parts) {
        Err(PromptError::TooLarge { field, .. } | PromptError::Nul { field }) => field,
        other => panic!("not refused: {other:?}"),
    };
    // As many as the protocol has.
    let many = vec!["x".to_owned(); 100];
    assert!(Prompt::compose(&parts(&task, &many)).is_ok());
    let many = vec!["x".to_owned(); 101];
    assert_eq!(field(&parts(&task, &many)), "context.workItems");
    let long = ["x".to_owned(), "x".repeat(Prompt::MAX_ITEM_BYTES + 1)];
    assert_eq!(field(&parts(&task, &long)), "context.workItems[1]");
    let nul = ["a\0b".to_owned()];
    assert_eq!(
        field(&PromptParts {
            skills: &nul,
            ..parts(&task, &[])
        }),
        "context.skills[0]"
    );
    let huge = "x".repeat(Prompt::MAX_INSTRUCTIONS_BYTES + 1);
    let huge = PromptParts {
        instructions: Some(&huge),
        ..parts(&task, &[])
    };
    assert_eq!(field(&huge), "context.instructions");
    let full = vec!["x".repeat(Prompt::MAX_ITEM_BYTES); Prompt::MAX_ITEMS];
    assert_eq!(field(&parts(&task, &full)), "context");
}

#[test]
fn an_argument_is_no_option_and_fits_the_kernel() {
    let task = task();
    let prompt = Prompt::compose(&parts(&task, &[])).unwrap();
    assert_eq!(
        prompt.argument("--upload-pack=x"),
        Err(PromptError::LooksLikeOption)
    );
    assert!(
        prompt
            .argument(&"x".repeat(Prompt::MAX_ARGUMENT_BYTES))
            .is_ok()
    );
    assert!(
        prompt
            .argument(&"x".repeat(Prompt::MAX_ARGUMENT_BYTES + 1))
            .is_err()
    );
}

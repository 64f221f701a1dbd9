//! Annotated tags: objects of their own, with a text, that lead to a commit, maybe by way of further tags.

use git2::{ObjectType, Oid, Repository};

/// Tags of tags that are followed. Nobody makes as many.
const MAX_TAGS: usize = 100;

/// Where a ref leads.
#[derive(Clone)]
pub(super) struct Followed {
    /// The tags on the way, the outermost first.
    pub(super) tags: Vec<Oid>,
    pub(super) commit: Oid,
}

/// From what a ref points to on to the commit; none if there is none, or if something on the way is missing.
pub(super) fn follow(repository: &Repository, id: Oid) -> Option<Followed> {
    let mut tags = Vec::new();
    let mut at = id;
    loop {
        let object = repository.find_object(at, None).ok()?;
        match object.kind()? {
            ObjectType::Commit => return Some(Followed { tags, commit: at }),
            ObjectType::Tag if tags.len() < MAX_TAGS => {
                tags.push(at);
                at = object.as_tag()?.target_id();
            }
            _ => return None,
        }
    }
}

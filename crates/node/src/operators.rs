//! Operators' tokens. The store holds only their hashes; all are cached, so that whoever may kill can kill with the
//! store gone.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use mosaic_federation::{RandomError, operator_token};
use mosaic_store::{OperatorToken, SharedStore, StoreError};
use mosaic_types::{
    ErrorCode, Refusal, TaskId, Timestamp,
    api::{Role, TokenCreated, TokenInfo, TokenRequest},
    audit::{Actor, AuditEvent},
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::http::{Operator, problem::store_refusal};

/// Name of the first token.
pub const FIRST_TOKEN_NAME: &str = "admin";

/// The first token's file in the data folder, mode 0600.
pub const FIRST_TOKEN_FILE: &str = "admin.token";

const MAX_TOKENS: usize = 1000;

/// Why the first token could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OperatorsError {
    /// Reading the stored tokens.
    #[error("failed to read the operators' tokens")]
    Load(#[source] StoreError),
    /// Writing the first token's file.
    #[error("failed to write {}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is there, but it holds no token.
    #[error("{} holds no token", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Storing the first token.
    #[error("failed to store the first token")]
    Save(#[source] StoreError),
    /// The system gave no randomness.
    #[error("failed to draw a random token")]
    Random(#[source] RandomError),
}

/// The tokens that operators may come with.
#[derive(Debug)]
pub struct Operators {
    store: SharedStoreDebug,
    tokens: RwLock<Arc<Vec<Known>>>,
    changes: tokio::sync::Mutex<()>,
}

/// A token that is good.
#[derive(Debug, Clone)]
struct Known {
    token: OperatorToken,
    /// Cancelled once the token is deleted.
    revoked: CancellationToken,
}

impl Known {
    fn new(token: OperatorToken) -> Self {
        Self {
            token,
            revoked: CancellationToken::new(),
        }
    }
}

struct SharedStoreDebug(SharedStore);

impl std::fmt::Debug for SharedStoreDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Operators {
    /// Loads the tokens. If there is none, makes the first, an admin's, and writes it to a file that only the
    /// owner can read, before it is good: whoever crashes in between finds the same token again.
    pub(crate) async fn open(store: SharedStore, data_dir: &Path) -> Result<Self, OperatorsError> {
        let mut tokens = store.tokens().await.map_err(OperatorsError::Load)?;
        if tokens.is_empty() {
            let text = first_token(&data_dir.join(FIRST_TOKEN_FILE))?;
            let token = OperatorToken {
                name: FIRST_TOKEN_NAME.to_owned(),
                role: Role::Admin,
                hash: operator_token::hash(&text),
                created_at: Timestamp::now(),
            };
            let audit = event(Actor::System, "token.create", &token.name, Some(token.role));
            store
                .save_token(token.clone(), audit)
                .await
                .map_err(OperatorsError::Save)?;
            tokens.push(token);
        }
        Ok(Self {
            store: SharedStoreDebug(store),
            tokens: RwLock::new(Arc::new(tokens.into_iter().map(Known::new).collect())),
            changes: tokio::sync::Mutex::new(()),
        })
    }

    /// Whose token it is, if it is anybody's. From memory; the time that it takes does not depend on how much of
    /// a token is right.
    #[must_use]
    pub fn authenticate(&self, token: &str) -> Option<Operator> {
        self.find(token).map(|known| Operator {
            name: known.token.name,
            role: known.token.role,
        })
    }

    /// As [`authenticate`](Self::authenticate); answers with what is cancelled once the token is deleted, for whoever
    /// goes on for longer than a request.
    pub(crate) fn revocation(&self, token: &str) -> Option<CancellationToken> {
        self.find(token).map(|known| known.revoked)
    }

    fn find(&self, token: &str) -> Option<Known> {
        let mut found = None;
        // Every one is looked at, so that the time does not tell which one it was.
        for known in self.snapshot().iter() {
            if operator_token::matches(token, &known.token.hash) {
                found = Some(known.clone());
            }
        }
        found
    }

    /// The tokens, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<TokenInfo> {
        self.snapshot()
            .iter()
            .map(|known| info(&known.token))
            .collect()
    }

    /// Makes a token. It is shown this once.
    ///
    /// # Errors
    /// `invalid-request` for a name that is none, `conflict` for one that is taken, `overloaded` past 1000 tokens,
    /// or what the store says.
    pub async fn create(
        &self,
        request: TokenRequest,
        actor: Actor,
    ) -> Result<TokenCreated, Refusal> {
        let name: TaskId = request
            .name
            .parse()
            .map_err(|error: mosaic_types::IdError| {
                Refusal::field(ErrorCode::InvalidRequest, "name", error.to_string())
            })?;
        let _changes = self.changes.lock().await;
        if self.snapshot().len() >= MAX_TOKENS {
            return Err(Refusal::new(
                ErrorCode::Overloaded,
                "there are too many tokens",
            ));
        }
        if self
            .snapshot()
            .iter()
            .any(|known| known.token.name == name.as_str())
        {
            return Err(Refusal::field(
                ErrorCode::Conflict,
                "name",
                "there is a token of that name",
            ));
        }
        let text = operator_token::generate().map_err(|error| {
            tracing::error!(%error, "failed to draw a random token");
            Refusal::new(ErrorCode::Internal, "no randomness is available")
        })?;
        let token = OperatorToken {
            name: name.as_str().to_owned(),
            role: request.role,
            hash: operator_token::hash(&text),
            created_at: Timestamp::now(),
        };
        let audit = event(actor, "token.create", &token.name, Some(token.role));
        self.store
            .0
            .save_token(token.clone(), audit)
            .await
            .map_err(|error| store_refusal(&error))?;
        let created = TokenCreated {
            info: info(&token),
            token: text.to_string(),
        };
        self.replace(|tokens| tokens.push(Known::new(token)));
        Ok(created)
    }

    /// Deletes a token. It is refused from then on, and event streams that were opened with it end. If the store fails
    /// that holds all the same, until a restart, and the caller is told so; deleting it again may then succeed.
    ///
    /// # Errors
    /// `not-found`; `conflict` for the last admin's token, without which nobody could make another; or what the
    /// store says.
    pub async fn delete(&self, name: &str, actor: Actor) -> Result<(), Refusal> {
        let _changes = self.changes.lock().await;
        let tokens = self.snapshot();
        let known = tokens.iter().find(|known| known.token.name == name);
        let admins = tokens
            .iter()
            .filter(|known| known.token.role == Role::Admin)
            .count();
        if known.is_some_and(|known| known.token.role == Role::Admin) && admins == 1 {
            return Err(Refusal::new(
                ErrorCode::Conflict,
                "it is the last token of an admin",
            ));
        }
        if let Some(known) = known {
            self.replace(|tokens| tokens.retain(|known| known.token.name != name));
            known.revoked.cancel();
        }
        let role = known.map(|known| known.token.role);
        let audit = event(actor, "token.delete", name, role);
        match self.store.0.delete_token(name, audit).await {
            Ok(()) => Ok(()),
            Err(StoreError::NotFound) => {
                Err(Refusal::new(ErrorCode::NotFound, "no token of that name"))
            }
            Err(error) => {
                let refusal = store_refusal(&error);
                Err(Refusal {
                    message: format!(
                        "{}; the token is refused until a restart, delete it again once the store is well",
                        refusal.message
                    ),
                    ..refusal
                })
            }
        }
    }

    fn snapshot(&self) -> Arc<Vec<Known>> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, change: impl FnOnce(&mut Vec<Known>)) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut tokens));
    }
}

fn info(token: &OperatorToken) -> TokenInfo {
    TokenInfo {
        name: token.name.clone(),
        role: token.role,
        created_at: token.created_at,
    }
}

fn event(actor: Actor, action: &str, name: &str, role: Option<Role>) -> AuditEvent {
    AuditEvent {
        at: Timestamp::now(),
        actor,
        action: action.to_owned(),
        subject: Some(name.to_owned()),
        outcome: "ok".to_owned(),
        detail: serde_json::json!({ "role": role }),
    }
}

/// The token in the file of a start that did not live to store its hash; else a fresh one, in a file that appears
/// whole or not at all.
fn first_token(path: &Path) -> Result<Zeroizing<String>, OperatorsError> {
    let failed = |source| OperatorsError::WriteFile {
        path: path.to_owned(),
        source,
    };
    let text = operator_token::generate().map_err(OperatorsError::Random)?;
    let kept = match std::fs::read_to_string(path) {
        Ok(kept) => Zeroizing::new(kept),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Zeroizing::default(),
        Err(error) => return Err(failed(error)),
    };
    let kept = kept.trim();
    if kept.is_empty() {
        write_whole(path, &text).map_err(failed)?;
        return Ok(text);
    }
    if kept.starts_with(operator_token::PREFIX) && kept.len() == text.len() {
        return Ok(Zeroizing::new(kept.to_owned()));
    }
    Err(OperatorsError::Malformed {
        path: path.to_owned(),
    })
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

//! A data folder that goes away with the test.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use tempfile::TempDir;

use crate::{
    Limits, SharedStore, StoreError,
    contract::Backend,
    sqlite::{DATABASE_FILE, SqliteStore},
};

pub(super) struct TempBackend {
    pub(super) folder: TempDir,
}

impl TempBackend {
    pub(super) fn fresh() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn store(&self) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(self.folder.path(), Limits::default())
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.path().join(DATABASE_FILE)
    }
}

#[async_trait]
impl Backend for TempBackend {
    async fn open(&self, limits: Limits) -> Result<SharedStore, StoreError> {
        Ok(Arc::new(SqliteStore::open(self.folder.path(), limits)?))
    }
}

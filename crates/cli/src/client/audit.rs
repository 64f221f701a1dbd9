//! The audit trail, verified on this side: the node is asked for its entries, not for its opinion.

use mosaic_store::audit::Verifier;
use mosaic_types::{
    InstanceId,
    api::{AuditPage, AuditVerdict, WitnessedHead},
    audit::AuditHead,
};
use reqwest::Method;

use super::{Client, LONG};
use crate::error::CliError;

/// Entries asked for at once.
const PAGE: u32 = 1000;

impl Client {
    /// A page of the audit trail.
    pub(crate) async fn audit(&self, after: u64, limit: u32) -> Result<AuditPage, CliError> {
        self.get(&format!("/audit?after={after}&limit={limit}"))
            .await
    }

    /// The heads of peers' trails that the node has seen.
    pub(crate) async fn witnessed(&self) -> Result<Vec<WitnessedHead>, CliError> {
        self.get("/audit/witnessed").await
    }

    /// The heads of one peer's trail that the node has seen.
    pub(crate) async fn witnessed_of(
        &self,
        instance: &InstanceId,
    ) -> Result<Vec<AuditHead>, CliError> {
        let mut heads = self.witnessed().await?;
        heads.retain(|seen| seen.instance == *instance);
        Ok(heads.into_iter().map(|seen| seen.head).collect())
    }

    /// Fetches every entry up to where the trail ends now and checks it here, against heads of this trail that others
    /// have seen before now. Then the node's own verdict counts too, if it is worse: it knows the head in its memory.
    pub(crate) async fn audit_verify(
        &self,
        witnessed: Vec<AuditHead>,
    ) -> Result<AuditVerdict, CliError> {
        let end = self.audit(0, 1).await?.head;
        let mut verifier = Verifier::new(witnessed.into_iter().chain([end.clone()]));
        while !verifier.is_decided() && verifier.sound_up_to() < end.seq {
            let page = self.audit(verifier.sound_up_to(), PAGE).await?;
            if page.entries.is_empty() {
                break;
            }
            verifier.feed(&page.entries);
        }
        let verdict = verifier.finish(&end);
        if !verdict.valid {
            return Ok(verdict);
        }
        let response = self
            .send(Method::GET, "/audit/verify", None, &[], Some(LONG))
            .await?;
        let told: AuditVerdict = self.json(response).await?;
        Ok(if told.valid { verdict } else { told })
    }
}

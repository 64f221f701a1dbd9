//! Which secrets an agent may be given beside its runtime's. Whether the grant has their names was looked at before.

use mosaic_federation::command::secret_not_granted;
use mosaic_types::{ErrorCode, Refusal, RuntimeName};

use super::Requester;
use crate::{runtime::SecretChoiceError, surroundings::Surroundings};

/// Checks that each secret is there and fits in beside the runtime's variables. Reads none.
///
/// # Errors
/// To a peer, what is not there is not granted; the spoke's operator is told which one it is.
pub(super) fn check(
    around: &Surroundings,
    requester: &Requester,
    runtime: &RuntimeName,
) -> Result<(), Refusal> {
    let asked = requester.options.secrets.iter().flatten();
    // Whether its program is there was looked at before.
    let runtime = around.runtimes.resolve_in_image(runtime).map_err(|error| {
        Refusal::field(ErrorCode::RuntimeUnavailable, "runtime", error.to_string())
    })?;
    runtime
        .with_secrets(asked)
        .map(drop)
        .map_err(|error| match error {
            SecretChoiceError::Unknown { .. } if requester.connection_id.is_some() => {
                secret_not_granted()
            }
            error => Refusal::field(
                ErrorCode::InvalidRequest,
                "options.secrets",
                error.to_string(),
            ),
        })
}

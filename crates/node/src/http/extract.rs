//! Extractors that are strict about what they take and whose refusals name the field.

use std::{str::FromStr, time::Duration};

use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header, request::Parts};
use http_body_util::BodyExt;
use mosaic_types::{ErrorCode, Refusal};
use serde::de::DeserializeOwned;

use super::problem::ApiError;
use crate::limits::HttpLimits;

/// A JSON body. Refused: another media type (415), any content encoding (415), one that is too large (413) or too
/// slow (408), and one that `T` does not take (400, with the path of the member at fault).
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

/// How much of a body that is too large is read before the refusal, in bytes.
const PASSED_OVER_BYTES: usize = 8 << 20;
/// How long that may take.
const PASSED_OVER_WITHIN: Duration = Duration::from_secs(2);

/// A JSON body that may be absent, which means `T::default()`.
#[derive(Debug, Clone)]
pub struct OptionalBody<T>(pub T);

/// The path's only parameter, parsed strictly.
#[derive(Debug, Clone)]
pub struct PathId<T>(pub T);

/// The query as `T`; unknown parameters are `T`'s to refuse.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        require_json(request.headers())?;
        let bytes = read_body(request).await?;
        parse_object(&bytes).map(Self).map_err(ApiError)
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let media_type = require_json(request.headers());
        let bytes = read_body(request).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        media_type?;
        parse_object(&bytes).map(Self).map_err(ApiError)
    }
}

impl<T, S> FromRequestParts<S> for PathId<T>
where
    T: FromStr,
    T::Err: std::fmt::Display,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(ErrorCode::InvalidRequest, "the path is not UTF-8"))?;
        let Some((name, text)) = params.iter().next() else {
            return Err(ApiError::internal(
                &"a route without a parameter asks for one",
            ));
        };
        text.parse().map(Self).map_err(|error: T::Err| {
            ApiError(Refusal::field(
                ErrorCode::InvalidRequest,
                name,
                error.to_string(),
            ))
        })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri).map_err(|error| {
            ApiError(Refusal::field(
                ErrorCode::InvalidRequest,
                "query",
                safe_text(
                    &std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), std::string::ToString::to_string),
                ),
            ))
        })?;
        Ok(Self(query.0))
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(str::trim);
    if essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
        Ok(())
    } else {
        Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "the body must be application/json",
        ))
    }
}

/// Reads a body whole, within the limits that [`serve`](super::serve()) put into the request.
///
/// A content encoding is refused, never undone: nothing is decompressed for whom we do not know (F19).
pub(crate) async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    let limits = request.extensions().get::<std::sync::Arc<HttpLimits>>();
    let (max_bytes, timeout) = limits.map_or_else(
        || {
            let limits = HttpLimits::default();
            (limits.max_body_bytes, limits.body_timeout)
        },
        |limits| (limits.max_body_bytes, limits.body_timeout),
    );
    read_body_within(request, max_bytes, timeout).await
}

async fn read_body_within(
    request: Request,
    max_bytes: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(
            ErrorCode::BodyTooLarge,
            format!("the body is larger than {max_bytes} bytes"),
        )
    };
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "content encodings are not taken",
        ));
    }
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut body = request.into_body();
    let reading = async {
        if announced.is_some_and(|length| usize::try_from(length).map_or(true, |n| n > max_bytes)) {
            return Ok(None);
        }
        let mut collected = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            if collected.len() + data.len() > max_bytes {
                return Ok(None);
            }
            collected.extend_from_slice(&data);
        }
        Ok::<_, axum::Error>(Some(collected.freeze()))
    };
    match tokio::time::timeout(timeout, reading).await {
        Err(_) => Err(ApiError::new(
            ErrorCode::RequestTimeout,
            "the body did not arrive in time",
        )),
        Ok(Err(_)) => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            "the body broke off",
        )),
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => {
            pass_over(body).await;
            Err(too_large())
        }
    }
}

/// Reads the rest of a body and throws it away, up to a bound: a client that is still sending when it is answered and
/// hung up on would lose the answer.
async fn pass_over(mut body: axum::body::Body) {
    let mut left = PASSED_OVER_BYTES;
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            let passed = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(passed) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whoever sends slowly loses the answer, and nobody waits for them.
    let _ = tokio::time::timeout(PASSED_OVER_WITHIN, passing).await;
}

/// Reads a JSON object as `T`, as [`parse_json`] does.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "the body must be a JSON object",
        ));
    }
    parse_json(bytes)
}

/// Reads JSON as `T`; the refusal names the member at fault by its path, such as `context.branch`.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        refusal_at(&path, &message)
    })?;
    deserializer.end().map_err(|_| {
        Refusal::new(
            ErrorCode::InvalidRequest,
            "there is more after the JSON value",
        )
    })?;
    Ok(value)
}

fn refusal_at(path: &str, message: &str) -> Refusal {
    let missing = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next());
    let parent = if path == "." { "" } else { path };
    let field = match missing {
        Some(name) if parent.is_empty() => name.to_owned(),
        Some(name) => format!("{parent}.{name}"),
        None => parent.to_owned(),
    };
    let text = safe_text(message);
    if field.is_empty() {
        Refusal::new(ErrorCode::InvalidRequest, text)
    } else {
        Refusal::field(ErrorCode::InvalidRequest, safe_text(&field), text)
    }
}

/// What the client sent may come back to it in a message, but not at any length.
fn safe_text(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests;

//! Repository URLs, and the globs that grant them.
//!
//! A glob is matched against one spelling of a URL, so whatever has a second spelling is refused: dot segments,
//! doubled slashes, percent-encoded characters that need no encoding, an upper-case host, a query. Credentials
//! in a URL are refused too: they come from the spoke's configuration, never from a peer.

use globset::{GlobBuilder, GlobMatcher};
use thiserror::Error;

/// Most bytes of a repository URL.
pub(super) const MAX_REPOSITORY_BYTES: usize = 2048;
/// Most globs of a grant.
const MAX_GLOBS: usize = 256;

/// Why a repository URL is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum RepositoryFault {
    #[error("empty, or longer than {MAX_REPOSITORY_BYTES} bytes")]
    Length,
    #[error("holds white space, a control character, a backslash, `?` or `#`")]
    Character,
    #[error("not file:///path, https://host/path, ssh://host/path or user@host:path")]
    Form,
    #[error("holds credentials; they come from the spoke's configuration")]
    Credentials,
    #[error("host is not a lower-case name, address or port")]
    Host,
    #[error("path has an empty or dot segment")]
    Segment,
    #[error("percent-encodes a character that has another spelling")]
    Percent,
}

/// Checks the form of a repository URL and answers its spelling for the globs: without a trailing slash.
pub(super) fn check(url: &str) -> Result<&str, RepositoryFault> {
    if url.is_empty() || url.len() > MAX_REPOSITORY_BYTES {
        return Err(RepositoryFault::Length);
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\\' | '?' | '#');
    if url.contains(forbidden) {
        return Err(RepositoryFault::Character);
    }
    check_percent(url)?;
    let url = url.strip_suffix('/').unwrap_or(url);
    let path = if let Some(path) = url.strip_prefix("file://") {
        path.strip_prefix('/').ok_or(RepositoryFault::Form)?
    } else if let Some(rest) = url.strip_prefix("https://") {
        let (authority, path) = rest.split_once('/').ok_or(RepositoryFault::Form)?;
        if authority.contains('@') {
            return Err(RepositoryFault::Credentials);
        }
        check_host(authority)?;
        path
    } else if let Some(rest) = url.strip_prefix("ssh://") {
        let (authority, path) = rest.split_once('/').ok_or(RepositoryFault::Form)?;
        check_host(after_user(authority)?.unwrap_or(authority))?;
        path
    } else if url.contains("://") {
        return Err(RepositoryFault::Form);
    } else {
        let at = url.find('@').ok_or(RepositoryFault::Form)?;
        // The host of `user@[::1]:path` has colons of its own.
        let colon = match url[at..].find(']') {
            Some(end) => url[at + end..].find(':').map(|colon| at + end + colon),
            None => url[at..].find(':').map(|colon| at + colon),
        };
        let (authority, path) = url.split_at(colon.ok_or(RepositoryFault::Form)?);
        let host = after_user(authority)?.ok_or(RepositoryFault::Form)?;
        check_host(host)?;
        let path = path.strip_prefix(':').ok_or(RepositoryFault::Form)?;
        path.strip_prefix('/').unwrap_or(path)
    };
    let sound = |segment: &str| !matches!(segment, "" | "." | "..") && !segment.starts_with('-');
    if path.split('/').all(sound) {
        Ok(url)
    } else {
        Err(RepositoryFault::Segment)
    }
}

/// What follows `user@`, if there is a user; a user with a password is refused.
fn after_user(authority: &str) -> Result<Option<&str>, RepositoryFault> {
    let Some((user, host)) = authority.split_once('@') else {
        return Ok(None);
    };
    if user.contains(':') {
        return Err(RepositoryFault::Credentials);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(legal) {
        return Err(RepositoryFault::Form);
    }
    Ok(Some(host))
}

fn check_host(authority: &str) -> Result<(), RepositoryFault> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let port_is_sound = port.is_none_or(|port| {
        !port.starts_with('0')
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    });
    let literal = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host_is_sound = match literal {
        Some(address) => address
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':' | b'.')),
        None => {
            !host.starts_with(['-', '.'])
                && !host.ends_with('.')
                && host
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z' | b'.' | b'-' | b'_'))
        }
    };
    if port_is_sound && host_is_sound && !host.is_empty() {
        Ok(())
    } else {
        Err(RepositoryFault::Host)
    }
}

/// `%20` and the bytes above ASCII have to be encoded; `%2e`, `%2f` or `%61` would be a second spelling.
fn check_percent(url: &str) -> Result<(), RepositoryFault> {
    let mut rest = url;
    while let Some(at) = rest.find('%') {
        let byte = rest
            .get(at + 1..at + 3)
            .filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .ok_or(RepositoryFault::Percent)?;
        let must_be_encoded = byte == b' ' || byte >= 0x80;
        if !must_be_encoded {
            return Err(RepositoryFault::Percent);
        }
        rest = &rest[at + 3..];
    }
    Ok(())
}

/// A glob of a grant that cannot be used.
#[derive(Debug, Error)]
pub enum GlobError {
    /// Too many of them.
    #[error("more than {MAX_GLOBS} repository globs")]
    TooMany,
    /// It is longer than a repository URL may be.
    #[error("repository glob is longer than {MAX_REPOSITORY_BYTES} bytes")]
    TooLong,
    /// It has a character class. One such as `[!a]` would match `/`, so none is taken; `\\[` is a bracket.
    #[error("repository glob `{glob}` has a character class; write a bracket as `\\[`")]
    Class {
        /// The glob.
        glob: String,
    },
    /// It does not parse.
    #[error("repository glob `{glob}` does not parse")]
    Syntax {
        /// The glob.
        glob: String,
        /// The cause.
        source: globset::Error,
    },
}

fn has_class(glob: &str) -> bool {
    let mut escaped = false;
    glob.bytes().any(|byte| {
        let opens = byte == b'[' && !escaped;
        escaped = byte == b'\\' && !escaped;
        opens
    })
}

/// The repository globs of a grant. `*` and `?` stop at `/`; `**` does not. There are no
/// character classes.
#[derive(Debug, Clone)]
pub struct RepositoryGlobs(Vec<GlobMatcher>);

impl RepositoryGlobs {
    /// Compiles the globs of a grant; also the check of a grant that an operator gives.
    ///
    /// # Errors
    /// See [`GlobError`].
    pub fn new(globs: &[String]) -> Result<Self, GlobError> {
        if globs.len() > MAX_GLOBS {
            return Err(GlobError::TooMany);
        }
        let compile = |glob: &String| {
            if glob.len() > MAX_REPOSITORY_BYTES {
                return Err(GlobError::TooLong);
            }
            if has_class(glob) {
                return Err(GlobError::Class { glob: glob.clone() });
            }
            GlobBuilder::new(glob)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map(|glob| glob.compile_matcher())
                .map_err(|source| GlobError::Syntax {
                    glob: glob.clone(),
                    source,
                })
        };
        globs
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether a repository is granted. A URL of an illegal form is not.
    #[must_use]
    pub fn include(&self, url: &str) -> bool {
        check(url).is_ok_and(|url| self.0.iter().any(|glob| glob.is_match(url)))
    }
}

#[cfg(test)]
mod tests;

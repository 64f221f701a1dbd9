//! Where work comes from: a repository's URL and a branch, parsed before anything is done with them.
//!
//! A value that exists is safe in an argv, in a ref name and in a log: no options, no control
//! characters, no password, no `..` that a glob of a grant would not see through.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

const MAX_URL_BYTES: usize = 2048;
const MAX_BRANCH_BYTES: usize = 200;

/// Why a text is not the URL of a repository that Mosaic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RepositoryUrlError {
    /// Empty, or longer than 2048 bytes.
    #[error("not 1 to 2048 bytes")]
    Length,
    /// White space, a control character, a backslash or a character outside ASCII.
    #[error("holds white space, a control character, a backslash or a non-ASCII character")]
    Character,
    /// Not `file://`, `https://`, `ssh://` or `user@host:path`.
    #[error(
        "not of the form file:///path, https://host/path, ssh://user@host/path or user@host:path"
    )]
    Scheme,
    /// A password, or for https any user, in the URL: credentials are the spoke's own.
    #[error("holds credentials; they belong into the spoke's configuration")]
    Credentials,
    /// No host, or one that is not a DNS name or an IP address.
    #[error("has no valid host")]
    Host,
    /// A path that is empty or relative, has `.`, `..` or empty segments, or an escape for one.
    #[error("has a path that is empty, relative, or holds `.`, `..`, empty or escaped segments")]
    Path,
    /// A query or a fragment.
    #[error("has a query or a fragment")]
    Query,
}

/// Why a text is not the name of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BranchNameError {
    /// Empty, or longer than 200 bytes.
    #[error("not 1 to 200 bytes")]
    Length,
    /// Begins with `-` and would be an option.
    #[error("starts with `-`")]
    Option,
    /// Against the rules of `git check-ref-format --branch`.
    #[error("not a valid branch name")]
    Format,
}

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A directory of this machine, read by libgit2.
    File,
    /// The git CLI over HTTPS.
    Https,
    /// The git CLI over SSH.
    Ssh,
}

impl Transport {
    /// Git's name of the protocol, as in `protocol.<name>.allow`.
    #[must_use]
    pub fn protocol(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Https => "https",
            Self::Ssh => "ssh",
        }
    }
}

/// A repository's URL: canonical (no trailing slash, host in lower case), free of secrets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryUrl(String);

impl RepositoryUrl {
    /// Parses a URL as a peer or an operator writes it.
    ///
    /// # Errors
    /// Says which rule the text breaks; the text itself is not repeated, it may hold a secret.
    pub fn parse(text: &str) -> Result<Self, RepositoryUrlError> {
        if text.is_empty() || text.len() > MAX_URL_BYTES {
            return Err(RepositoryUrlError::Length);
        }
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
        {
            return Err(RepositoryUrlError::Character);
        }
        if text.contains(['?', '#']) {
            return Err(RepositoryUrlError::Query);
        }
        if let Some(path) = text.strip_prefix("file://") {
            // libgit2 decodes escapes here, after a grant's glob has looked at the text.
            if path.contains('%') {
                return Err(RepositoryUrlError::Path);
            }
            return Ok(Self(format!("file://{}", absolute_path(path)?)));
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let (authority, path) = split_authority(rest)?;
            if authority.contains('@') {
                return Err(RepositoryUrlError::Credentials);
            }
            let host = host_and_port(authority)?;
            return Ok(Self(format!("https://{host}{}", absolute_path(path)?)));
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let (authority, path) = split_authority(rest)?;
            let (user, host) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(ssh_user(user)?), host),
                None => (None, authority),
            };
            let host = host_and_port(host)?;
            let path = absolute_path(path)?;
            return Ok(Self(match user {
                Some(user) => format!("ssh://{user}@{host}{path}"),
                None => format!("ssh://{host}{path}"),
            }));
        }
        if text.contains("://") || text.contains("::") {
            return Err(RepositoryUrlError::Scheme);
        }
        // `git@host:path`, the scp form. Without a user it could be mistaken for a local path.
        let (authority, path) = text.split_once(':').ok_or(RepositoryUrlError::Scheme)?;
        let (user, host) = authority
            .split_once('@')
            .ok_or(RepositoryUrlError::Scheme)?;
        let (user, host) = (ssh_user(user)?, host_and_port(host)?);
        let bare = path.strip_prefix('/').unwrap_or(path);
        absolute_path(&format!("/{bare}"))?;
        Ok(Self(format!(
            "{user}@{host}:{}",
            path.trim_end_matches('/')
        )))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How this repository is reached.
    #[must_use]
    pub fn transport(&self) -> Transport {
        if self.0.starts_with("file://") {
            Transport::File
        } else if self.0.starts_with("https://") {
            Transport::Https
        } else {
            Transport::Ssh
        }
    }

    /// The directory of a `file://` URL.
    #[must_use]
    pub fn local_path(&self) -> Option<PathBuf> {
        self.0.strip_prefix("file://").map(PathBuf::from)
    }

    /// `https://host[:port]/` of an https URL: what a credential is bound to.
    pub(super) fn https_origin(&self) -> Option<&str> {
        let host_end = self.0.strip_prefix("https://")?.find('/')? + "https://".len();
        self.0.get(..=host_end)
    }

    /// The name of this repository's mirror: 32 hex digits of the SHA-256 of the canonical text.
    pub(super) fn mirror_key(&self) -> String {
        let digest = Sha256::digest(self.0.as_bytes());
        data_encoding::HEXLOWER.encode(&digest[..16])
    }
}

fn split_authority(rest: &str) -> Result<(&str, &str), RepositoryUrlError> {
    let slash = rest.find('/').ok_or(RepositoryUrlError::Path)?;
    Ok(rest.split_at(slash))
}

fn absolute_path(path: &str) -> Result<&str, RepositoryUrlError> {
    let trimmed = path.trim_end_matches('/');
    let segments = trimmed.strip_prefix('/').ok_or(RepositoryUrlError::Path)?;
    let plain = |segment: &str| !matches!(segment, "" | "." | "..");
    let lower = segments.to_ascii_lowercase();
    let escaped = ["%2e", "%2f", "%5c", "%0", "%1", "%7f"]
        .iter()
        .any(|bad| lower.contains(bad));
    if segments.split('/').all(plain) && !escaped && !segments.starts_with('-') {
        Ok(trimmed)
    } else {
        Err(RepositoryUrlError::Path)
    }
}

fn ssh_user(user: &str) -> Result<&str, RepositoryUrlError> {
    if user.contains(':') {
        return Err(RepositoryUrlError::Credentials);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !user.is_empty() && !user.starts_with('-') && user.bytes().all(legal) {
        Ok(user)
    } else {
        Err(RepositoryUrlError::Host)
    }
}

fn host_and_port(authority: &str) -> Result<String, RepositoryUrlError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or(RepositoryUrlError::Host)?;
        address
            .parse::<std::net::Ipv6Addr>()
            .map_err(|_| RepositoryUrlError::Host)?;
        (
            format!("[{}]", address.to_ascii_lowercase()),
            after.strip_prefix(':').or(after.is_empty().then_some("")),
        )
    } else {
        let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
        let starts_well = host
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts_well || host.len() > 253 || !host.bytes().all(legal) {
            return Err(RepositoryUrlError::Host);
        }
        (host.to_ascii_lowercase(), Some(port))
    };
    match port.ok_or(RepositoryUrlError::Host)? {
        "" => Ok(host),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let port: u16 = digits.parse().map_err(|_| RepositoryUrlError::Host)?;
            Ok(format!("{host}:{port}"))
        }
        _ => Err(RepositoryUrlError::Host),
    }
}

/// A branch of the remote repository, or `HEAD` for its default branch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

impl BranchName {
    /// Parses a short branch name such as `main` or `feature/x`; `HEAD` means the default branch.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, BranchNameError> {
        if text.is_empty() || text.len() > MAX_BRANCH_BYTES {
            return Err(BranchNameError::Length);
        }
        if text.starts_with('-') {
            return Err(BranchNameError::Option);
        }
        let control = |character: char| character.is_control() || character.is_whitespace();
        if text == "@" || text.starts_with("refs/") || text.contains(control) {
            return Err(BranchNameError::Format);
        }
        if !git2::Reference::is_valid_name(&format!("refs/heads/{text}")) {
            return Err(BranchNameError::Format);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `HEAD`: whatever the remote calls its default branch.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == "HEAD"
    }
}

macro_rules! text_like {
    ($name:ident, $error:ident) => {
        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_like!(RepositoryUrl, RepositoryUrlError);
text_like!(BranchName, BranchNameError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_four_forms_are_canonical() {
        for (text, canonical, transport) in [
            ("file:///srv/repo/", "file:///srv/repo", Transport::File),
            (
                "https://Example.ORG:8443/a/b.git/",
                "https://example.org:8443/a/b.git",
                Transport::Https,
            ),
            (
                "ssh://git@host:22/a/b",
                "ssh://git@host:22/a/b",
                Transport::Ssh,
            ),
            ("ssh://[::1]/a", "ssh://[::1]/a", Transport::Ssh),
            (
                "git@host.example:a/b.git",
                "git@host.example:a/b.git",
                Transport::Ssh,
            ),
        ] {
            let url = RepositoryUrl::parse(text).unwrap();
            assert_eq!(url.as_str(), canonical);
            assert_eq!(url.transport(), transport);
            assert_eq!(RepositoryUrl::parse(canonical).unwrap(), url);
        }
        let url = RepositoryUrl::parse("https://h.example:1/a/b").unwrap();
        assert_eq!(url.https_origin(), Some("https://h.example:1/"));
    }

    #[test]
    fn urls_that_mislead_are_refused() {
        use RepositoryUrlError as E;
        for (text, error) in [
            ("", E::Length),
            ("http://h/a", E::Scheme),
            ("git://h/a", E::Scheme),
            ("ext::sh -c x", E::Character),
            ("ext::sh", E::Scheme),
            ("--upload-pack=x", E::Scheme),
            ("-oProxyCommand=x@h:a", E::Host),
            ("git@-oProxyCommand=x:a", E::Host),
            ("ssh://-oProxyCommand=x/a", E::Host),
            ("git@host:-x", E::Path),
            ("git@host:../x", E::Path),
            ("/srv/repo", E::Scheme),
            ("../repo", E::Scheme),
            ("file://host/x", E::Path),
            ("file:///srv/../etc", E::Path),
            ("file:///srv/%2e%2e/etc", E::Path),
            ("file:///srv/%41", E::Path),
            ("file:///", E::Path),
            ("https://h/a/%2E%2e/b", E::Path),
            ("https://user:pw@h/a", E::Credentials),
            ("https://token@h/a", E::Credentials),
            ("ssh://git:pw@h/a", E::Credentials),
            ("https://h/a?x=1", E::Query),
            ("https://h/a\n", E::Character),
            ("https://h:99999/a", E::Host),
            ("https:///a", E::Host),
            ("https://h", E::Path),
        ] {
            assert_eq!(RepositoryUrl::parse(text).unwrap_err(), error, "{text:?}");
        }
    }

    #[test]
    fn branch_names_follow_check_ref_format() {
        for good in ["main", "feature/x", "HEAD", "v1.0", "grün"] {
            assert!(BranchName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "../../x",
            "a..b",
            "a@{1}",
            "@",
            "x.lock",
            "a.lock/b",
            "a b",
            "a\n",
            "a~1",
            "a^",
            "a:b",
            "a?",
            "a*",
            "a[",
            "a\\b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.",
            "refs/heads/main",
        ] {
            assert!(BranchName::parse(bad).is_err(), "{bad:?}");
        }
    }
}

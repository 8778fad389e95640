//! Which calls are allowed: the callers, their credentials and their rights.
//!
//! A token is compared with all entries, each in constant time. So the time of a refusal does not
//! show how close a guess was. The error is the same whatever is wrong with the credentials.

use std::{fmt, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};
use ring::digest;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use crate::model::Namespace;

/// What the caller of a call may do.
#[derive(Debug, Clone)]
pub(crate) enum Grant {
    /// Everything: there is no access file.
    Everything,
    /// What the entry of this caller allows.
    Of(Arc<Caller>),
}

/// A right that an entry of the access file can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Get and BatchGet
    Read,
    /// Mark
    Write,
}

/// Why a call is refused. The caller learns nothing else.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The caller sent no credentials, or unknown ones.
    #[error("missing or unknown credentials")]
    Unauthenticated,
    /// The caller is known, but lacks the right.
    #[error("the caller is not allowed to do this in this namespace")]
    PermissionDenied,
}

impl Grant {
    /// Refuses what the caller may not do.
    pub(crate) fn check(&self, right: Right, namespace: Namespace<'_>) -> Result<(), Refusal> {
        match self {
            Self::Everything => Ok(()),
            Self::Of(caller) if caller.may(right, namespace) => Ok(()),
            Self::Of(caller) => {
                tracing::debug!(caller = caller.name, ?right, "permission denied");
                Err(Refusal::PermissionDenied)
            }
        }
    }
}

/// The access rules: the checked content of an access file.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(super) callers: Vec<Arc<Caller>>,
}

/// One entry of the access file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(super) name: String,
    pub(super) credential: Credential,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) namespaces: Vec<Pattern>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// The SHA-256 of a bearer token.
    Token([u8; digest::SHA256_OUTPUT_LEN]),
    /// A name in a client certificate.
    Certificate(San),
}

/// A subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum San {
    /// `dns:checkout.example.com`
    Dns(String),
    /// `spiffe://example.com/checkout`, or another URI
    Uri(String),
}

/// The namespaces that an entry is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `*`
    Any,
    /// `orders`; the empty text is the empty namespace
    Exactly(String),
    /// `team-*`
    StartsWith(String),
}

impl Access {
    /// Whether any caller is known by a token.
    pub(crate) fn has_tokens(&self) -> bool {
        self.callers
            .iter()
            .any(|caller| matches!(caller.credential, Credential::Token(_)))
    }

    /// Finds the caller of a call: by the bearer token if there is one, otherwise by the names in
    /// the client certificate of the connection, which is already verified.
    pub(crate) fn identify(&self, headers: &HeaderMap, names: &[San]) -> Result<Grant, Refusal> {
        let found = match headers.get(AUTHORIZATION) {
            Some(header) => bearer(header.as_bytes()).and_then(|token| self.by_token(token)),
            None => self.by_certificate(names),
        };
        found.map(Grant::Of).ok_or(Refusal::Unauthenticated)
    }

    /// What the caller of a call that goes on may do under these rules: the entry that has the same
    /// credential.
    pub(crate) fn renew(&self, grant: &Grant) -> Result<Grant, Refusal> {
        let Grant::Of(before) = grant else {
            return Ok(Grant::Everything);
        };
        let same = |caller: &&Arc<Caller>| caller.credential == before.credential;
        let found = self.callers.iter().find(same).cloned();
        found.map(Grant::Of).ok_or(Refusal::Unauthenticated)
    }

    fn by_token(&self, token: &[u8]) -> Option<Arc<Caller>> {
        let hash = sha256(token);
        let mut found = None;
        // Compare all entries even after a match, so that the time does not depend on the match.
        for caller in &self.callers {
            if let Credential::Token(expected) = &caller.credential
                && bool::from(expected[..].ct_eq(&hash[..]))
            {
                found = Some(Arc::clone(caller));
            }
        }
        found
    }

    fn by_certificate(&self, names: &[San]) -> Option<Arc<Caller>> {
        let known = |caller: &&Arc<Caller>| match &caller.credential {
            Credential::Certificate(san) => names.contains(san),
            Credential::Token(_) => false,
        };
        self.callers.iter().find(known).cloned()
    }
}

impl Caller {
    fn may(&self, right: Right, namespace: Namespace<'_>) -> bool {
        let allowed = match right {
            Right::Read => self.read,
            Right::Write => self.write,
        };
        allowed
            && self.namespaces.iter().any(|pattern| match pattern {
                Pattern::Any => true,
                Pattern::Exactly(name) => namespace.as_str() == name,
                Pattern::StartsWith(start) => namespace.as_str().starts_with(start.as_str()),
            })
    }
}

/// The token in an `authorization` header. The case of the scheme does not matter (RFC 9110, 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"bearer ".len())?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::NewToken;

    fn namespace(name: &str) -> Namespace<'_> {
        Namespace::try_from(name).expect("valid")
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().expect("a header"));
        headers
    }

    #[test]
    fn a_new_token_lets_its_caller_in_and_nobody_else() {
        let allow = [Right::Read];
        let namespaces = ["orders".to_owned(), "team-*".to_owned()];
        let new = NewToken::generate("checkout", &allow, &namespaces).expect("valid");
        assert!(!new.entry.contains(&new.token), "{}", new.entry);
        let access = Access::parse(&new.entry).expect("valid");
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let grant = access.identify(&headers(&format!("{scheme} {}", new.token)), &[]);
            let grant = grant.expect("known");
            for (right, name, allowed) in [
                (Right::Read, "orders", true),
                (Right::Read, "team-a", true),
                (Right::Read, "team-", true),
                (Right::Write, "orders", false),
                (Right::Read, "orders2", false),
                (Right::Read, "team", false),
                (Right::Read, "", false),
            ] {
                assert_eq!(
                    grant.check(right, namespace(name)).is_ok(),
                    allowed,
                    "{right:?} {name}"
                );
            }
        }
        for wrong in [
            new.token.clone(),
            format!("Basic {}", new.token),
            format!("Bearer {}x", new.token),
            format!("Bearer  {}", new.token),
            "Bearer ".to_owned(),
            String::new(),
        ] {
            let refused = access.identify(&headers(&wrong), &[]);
            assert!(matches!(refused, Err(Refusal::Unauthenticated)), "{wrong}");
        }
        assert!(access.identify(&HeaderMap::new(), &[]).is_err());
    }

    #[test]
    fn a_certificate_is_known_by_any_of_its_names() {
        let access = Access::parse(
            r#"
            [[caller]]
            name = "mesh"
            certificate = "spiffe://example.com/checkout"
            allow = ["read", "write"]
            namespaces = ["*"]
            [[caller]]
            name = "host"
            certificate = "dns:Host.example.com"
            allow = ["write"]
            namespaces = [""]
            "#,
        )
        .expect("valid");
        assert!(!access.has_tokens());
        let with = |names: Vec<San>| access.identify(&HeaderMap::new(), &names);
        let uri = San::Uri("spiffe://example.com/checkout".to_owned());
        let dns = San::Dns("host.example.com".to_owned());
        assert!(with(vec![San::Dns("other".to_owned()), uri]).is_ok());
        let grant = with(vec![dns]).expect("known");
        assert!(grant.check(Right::Write, namespace("")).is_ok());
        assert!(grant.check(Right::Read, namespace("")).is_err());
        for name in [
            "spiffe://example.com/checkout/2",
            "spiffe://example.com/",
            "",
        ] {
            assert!(with(vec![San::Uri(name.to_owned())]).is_err(), "{name}");
        }
    }
}

//! Who may do what: the access file, and what it says about a call.
//!
//! A caller is known by a bearer token or by a name in its client certificate. The file has only
//! the SHA-256 of a token, so that reading it lets nobody in; tokens are long random numbers, for
//! which one fast hash is enough. All entries are compared, each in constant time, so that how
//! long a refusal takes says nothing about how close a guess was. Whatever is wrong with a
//! caller's credentials, it hears the same.

mod token;

use std::{borrow::Cow, collections::HashSet, fmt, path::Path, sync::Arc};

use http::{HeaderMap, header::AUTHORIZATION};
use ring::digest;
use serde::Deserialize;
use subtle::ConstantTimeEq as _;
use thiserror::Error;

pub(crate) use self::token::NewToken;
use crate::{error::Error, model::Namespace};

/// What a call may do, and who makes it.
#[derive(Debug, Clone)]
pub(crate) enum Grant {
    /// Nobody is asked who they are.
    Everything,
    /// What this caller's entry allows.
    Of(Arc<Caller>),
}

/// One of the two things that can be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Get and BatchGet
    Read,
    /// Mark
    Write,
}

impl Grant {
    /// Refuses what the caller may not do.
    pub(crate) fn check(&self, right: Right, namespace: &Namespace) -> Result<(), Error> {
        match self {
            Self::Everything => Ok(()),
            Self::Of(caller) if caller.may(right, namespace) => Ok(()),
            Self::Of(caller) => {
                tracing::debug!(caller = caller.name, ?right, "permission denied");
                Err(Error::PermissionDenied)
            }
        }
    }
}

/// The access file, checked.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    callers: Vec<Arc<Caller>>,
}

/// One entry of the access file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    name: String,
    credential: Credential,
    read: bool,
    write: bool,
    namespaces: Vec<Pattern>,
}

#[derive(Debug, PartialEq, Eq)]
enum Credential {
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

/// Which namespaces.
#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    /// `*`
    Any,
    /// `orders`; the empty text is the namespace without a name
    Exactly(String),
    /// `team-*`
    StartsWith(String),
}

/// Why an access file is not one. Never has the text of the file in it.
#[derive(Debug, Error)]
pub(crate) enum AccessError {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("line {line}: {message}")]
    Syntax { line: usize, message: String },
    #[error("caller {name:?}: {problem}")]
    Caller { name: String, problem: &'static str },
    #[error("has no [[caller]]: nobody could do anything")]
    Nobody,
}

/// The access file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    caller: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    token_sha256: Option<String>,
    certificate: Option<String>,
    allow: Vec<Right>,
    namespaces: Vec<String>,
}

impl Access {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, AccessError> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, AccessError> {
        // The parser's own display quotes the line, which may hold a token by mistake.
        let file: File = toml::from_str(text).map_err(|error| AccessError::Syntax {
            line: error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(1, |before| before.matches('\n').count() + 1),
            message: plain(&unquoted(error.message())),
        })?;
        if file.caller.is_empty() {
            return Err(AccessError::Nobody);
        }
        let callers = file
            .caller
            .into_iter()
            .map(|entry| Caller::try_from(entry).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        for caller in &callers {
            let credential = format!("{:?}", caller.credential);
            if !seen.insert(credential) {
                return Err(AccessError::Caller {
                    name: caller.name.clone(),
                    problem: "another entry has the same credential",
                });
            }
        }
        Ok(Self { callers })
    }

    /// Whether somebody is known by a token.
    pub(crate) fn has_tokens(&self) -> bool {
        self.callers
            .iter()
            .any(|caller| matches!(caller.credential, Credential::Token(_)))
    }

    /// Finds out who makes a call: by its bearer token if it has one, or else by the names in the
    /// verified certificate of its connection.
    pub(crate) fn identify(&self, headers: &HeaderMap, names: &[San]) -> Result<Grant, Error> {
        let found = match headers.get(AUTHORIZATION) {
            Some(header) => bearer(header.as_bytes()).and_then(|token| self.by_token(token)),
            None => self.by_certificate(names),
        };
        found.map(Grant::Of).ok_or(Error::Unauthenticated)
    }

    fn by_token(&self, token: &[u8]) -> Option<Arc<Caller>> {
        let hash = sha256(token);
        let mut found = None;
        // To the end, whether or not one has been found.
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
    fn may(&self, right: Right, namespace: &Namespace) -> bool {
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

impl TryFrom<Entry> for Caller {
    type Error = AccessError;

    fn try_from(entry: Entry) -> Result<Self, AccessError> {
        let Entry {
            name,
            token_sha256,
            certificate,
            allow,
            namespaces,
        } = entry;
        let wrong = |problem| AccessError::Caller {
            name: plain(&name),
            problem,
        };
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            return Err(wrong("a name has 1 to 64 bytes without control characters"));
        }
        let credential = match (token_sha256, certificate) {
            (Some(hash), None) => Credential::Token(
                parse_hash(&hash).ok_or_else(|| wrong("token_sha256 is not 64 hex digits"))?,
            ),
            (None, Some(san)) => Credential::Certificate(parse_san(&san).ok_or_else(|| {
                wrong("certificate is neither dns:NAME nor a URI such as spiffe://DOMAIN/PATH")
            })?),
            _ => return Err(wrong("needs one of token_sha256 and certificate")),
        };
        if allow.is_empty() {
            return Err(wrong("allow is empty: there are read and write"));
        }
        if namespaces.is_empty() {
            return Err(wrong(
                "namespaces is empty: there are \"*\", a name, the start of one and a *, and \"\"",
            ));
        }
        let namespaces = namespaces
            .iter()
            .map(|text| parse_pattern(text).ok_or_else(|| wrong("a namespace is not a valid one")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            credential,
            read: allow.contains(&Right::Read),
            write: allow.contains(&Right::Write),
            namespaces,
            name,
        })
    }
}

/// The token in an `authorization` header. The scheme's case does not matter (RFC 9110, 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"bearer ".len())?;
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

fn sha256(bytes: &[u8]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn parse_hash(text: &str) -> Option<[u8; digest::SHA256_OUTPUT_LEN]> {
    let mut hash = [0; digest::SHA256_OUTPUT_LEN];
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn parse_san(text: &str) -> Option<San> {
    match text.split_once(':')? {
        ("dns", name) if !name.is_empty() => Some(San::Dns(name.to_ascii_lowercase())),
        (_, rest) if rest.starts_with("//") && rest.len() > 2 => Some(San::Uri(text.to_owned())),
        _ => None,
    }
}

fn parse_pattern(text: &str) -> Option<Pattern> {
    if text == "*" {
        return Some(Pattern::Any);
    }
    let (name, pattern): (_, fn(String) -> Pattern) = match text.strip_suffix('*') {
        Some(start) => (start, Pattern::StartsWith),
        None => (text, Pattern::Exactly),
    };
    Namespace::try_from(name.to_owned())
        .is_ok()
        .then(|| pattern(name.to_owned()))
}

/// What the parser of the file says, without what it has found there: `unknown field, expected …`.
fn unquoted(message: &str) -> Cow<'_, str> {
    // What it expected is its own, comes last, and is what follows on what it found.
    match message.rsplit_once(", expected ") {
        None => message.into(),
        Some((found, expected)) => {
            let found = found.split([':', '`']).next().unwrap_or_default();
            format!("{}, expected {expected}", found.trim_end()).into()
        }
    }
}

/// Without control characters, for the log.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Namespace {
        Namespace::try_from(name.to_owned()).expect("valid")
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
                    grant.check(right, &namespace(name)).is_ok(),
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
            assert!(matches!(refused, Err(Error::Unauthenticated)), "{wrong}");
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
        assert!(grant.check(Right::Write, &namespace("")).is_ok());
        assert!(grant.check(Right::Read, &namespace("")).is_err());
        for name in [
            "spiffe://example.com/checkout/2",
            "spiffe://example.com/",
            "",
        ] {
            assert!(with(vec![San::Uri(name.to_owned())]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_what_is_in_it() {
        let entry = |lines: &str| format!("[[caller]]\nname = \"a\"\n{lines}");
        let hash = "0".repeat(64);
        for (text, said) in [
            (String::new(), "nobody"),
            ("caller = 1".to_owned(), "line 1"),
            (entry("token = \"dyn_secret\""), "unknown field"),
            (entry("token_sha256 = dyn_secret"), "line 3"),
            (
                entry("dyn_secret = 1"),
                "unknown field, expected one of `name`",
            ),
            (
                entry("allow = \"dyn_secret\""),
                "invalid type, expected a sequence",
            ),
            (
                entry("allow = [\"dyn_secret, expected\"]"),
                "unknown variant, expected `read` or `write`",
            ),
            (
                entry("token_sha256 = \"dyn_secret\"\nallow = [\"read\"]\nnamespaces = [\"*\"]"),
                "64 hex digits",
            ),
            (
                entry("allow = [\"read\"]\nnamespaces = [\"*\"]"),
                "needs one of",
            ),
            (
                entry("certificate = \"secret\"\nallow = [\"read\"]\nnamespaces = [\"*\"]"),
                "neither dns:",
            ),
            (
                entry(&format!(
                    "token_sha256 = \"{hash}\"\nallow = []\nnamespaces = [\"*\"]"
                )),
                "allow is empty",
            ),
            (
                entry(&format!(
                    "token_sha256 = \"{hash}\"\nallow = [\"admin\"]\nnamespaces = [\"*\"]"
                )),
                "line 4",
            ),
            (
                entry(&format!(
                    "token_sha256 = \"{hash}\"\nallow = [\"read\"]\nnamespaces = [\"A*\"]"
                )),
                "namespace",
            ),
        ] {
            let error = Access::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let twice = entry(&format!(
            "token_sha256 = \"{hash}\"\nallow = [\"read\"]\nnamespaces = [\"*\"]\n"
        ));
        let error = Access::parse(&twice.repeat(2)).expect_err("twice");
        assert!(error.to_string().contains("same credential"), "{error}");
    }
}

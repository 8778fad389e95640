//! The access file: TOML with one `[[caller]]` for each caller, parsed into [`Access`].
//!
//! Errors never quote the file, because it may contain a token by mistake.

use std::{borrow::Cow, collections::HashSet, path::Path, sync::Arc};

use ring::digest;
use serde::Deserialize;
use thiserror::Error;

use super::access::{Access, Caller, Credential, Pattern, Right, San};
use crate::model::Namespace;

/// Why an access file cannot be used.
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
        // The parser's error would quote the line, which may contain a token by mistake.
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
    Namespace::try_from(name)
        .is_ok()
        .then(|| pattern(name.to_owned()))
}

/// The message of the TOML parser without the text that it quotes: `unknown field, expected …`.
fn unquoted(message: &str) -> Cow<'_, str> {
    // The message ends with what the parser expected. Before that it quotes what it found.
    match message.rsplit_once(", expected ") {
        None => message.into(),
        Some((found, expected)) => {
            let found = found.split([':', '`']).next().unwrap_or_default();
            format!("{}, expected {expected}", found.trim_end()).into()
        }
    }
}

/// The text without control characters, for the log.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_problem_without_quoting_the_file() {
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

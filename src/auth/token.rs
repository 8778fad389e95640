//! New tokens, for `dyndata token new`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::SecureRandom as _;

use super::access::{Access, Right, sha256};

/// The start of every token. Scanners for leaked secrets recognize it.
const TOKEN_PREFIX: &str = "dyn_";
const TOKEN_BYTES: usize = 32;

/// A new token, which its caller keeps, and the entry for the access file.
#[derive(Debug)]
pub(crate) struct NewToken {
    pub(crate) token: String,
    pub(crate) entry: String,
}

impl NewToken {
    /// Makes a token from the random numbers of the system.
    pub(crate) fn generate(
        name: &str,
        allow: &[Right],
        namespaces: &[String],
    ) -> Result<Self, String> {
        let mut random = [0; TOKEN_BYTES];
        ring::rand::SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| "the system gives no random numbers".to_owned())?;
        let token = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
        let hash: String = sha256(token.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let quote = |text: &str| toml::Value::from(text).to_string();
        let quoted = |texts: Vec<&str>| {
            let quoted: Vec<_> = texts.into_iter().map(quote).collect();
            quoted.join(", ")
        };
        let allow = allow.iter().map(|right| match right {
            Right::Read => "read",
            Right::Write => "write",
        });
        let entry = format!(
            "[[caller]]\nname = {}\ntoken_sha256 = \"{hash}\"\nallow = [{}]\nnamespaces = [{}]\n",
            quote(name),
            quoted(allow.collect()),
            quoted(namespaces.iter().map(String::as_str).collect()),
        );
        // The server must accept the entry that is printed.
        Access::parse(&entry).map_err(|error| error.to_string())?;
        Ok(Self { token, entry })
    }
}

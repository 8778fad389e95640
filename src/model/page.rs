//! Pages of a List.

use std::time::SystemTime;

use ring::digest;

use super::{invalid::Invalid, namespace::Namespace};

/// The most ids that a page aims at, and how many it aims at unless the request says otherwise.
pub const MAX_PAGE_SIZE: usize = 1000;

/// The ids of an indexed namespace are in so many shards.
pub const INDEX_SHARDS: u16 = 64;

/// How many ids a page should have.
pub fn page_size(requested: i32) -> Result<usize, Invalid> {
    match usize::try_from(requested) {
        Ok(0) => Ok(MAX_PAGE_SIZE),
        Ok(size) => Ok(size.min(MAX_PAGE_SIZE)),
        Err(_) => Err(Invalid::PageSize),
    }
}

/// One page: ids that are marked, with the time at which each expires if it does, and where the next
/// page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The ids.
    pub ids: Vec<(Box<str>, Option<SystemTime>)>,
    /// Where the next page begins. `None` if this is the last page.
    pub next: Option<PageStart>,
}

/// Names one run of a server. A cursor means nothing to another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunId(pub [u8; 20]);

impl RunId {
    /// Reads a run id as Redis writes it.
    pub fn parse(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }

    /// The run id as Redis writes it.
    pub fn to_hex(self) -> String {
        to_hex(&self.0)
    }
}

/// Where a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageStart {
    /// The shard of the index, below [`INDEX_SHARDS`].
    pub shard: u16,
    /// The server that gave the cursor.
    pub run_id: RunId,
    /// How far the shard has been listed. 0 is its start.
    pub cursor: u64,
}

/// The first byte of a token.
const VERSION: u8 = 1;
/// Version, shard, cursor, run id and check of the namespace.
const TOKEN_BYTES: usize = 1 + 1 + 8 + 20 + CHECK_BYTES;
/// So much of the hash of everything else is at the end of a token.
const CHECK_BYTES: usize = 8;

impl PageStart {
    /// Reads a token that [`PageStart::token`] made for the same namespace.
    pub fn parse(token: &str, namespace: Namespace<'_>) -> Result<Self, Invalid> {
        let bytes = from_hex::<TOKEN_BYTES>(token);
        let start = bytes.and_then(|bytes| Self::from_bytes(&bytes, namespace));
        start.ok_or(Invalid::PageToken)
    }

    fn from_bytes(bytes: &[u8; TOKEN_BYTES], namespace: Namespace<'_>) -> Option<Self> {
        let (token, check) = bytes.split_last_chunk::<CHECK_BYTES>()?;
        let ([version, shard], rest) = token.split_first_chunk()?;
        let (cursor, run_id) = rest.split_first_chunk()?;
        let start = Self {
            shard: (*shard).into(),
            run_id: RunId(run_id.try_into().ok()?),
            cursor: u64::from_be_bytes(*cursor),
        };
        let is_ours = *version == VERSION
            && start.shard < INDEX_SHARDS
            && *check == checksum(token, namespace);
        is_ours.then_some(start)
    }

    /// The token for the next request.
    pub fn token(&self, namespace: Namespace<'_>) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES);
        bytes.push(VERSION);
        bytes.push(self.shard as u8);
        bytes.extend_from_slice(&self.cursor.to_be_bytes());
        bytes.extend_from_slice(&self.run_id.0);
        let check = checksum(&bytes, namespace);
        bytes.extend_from_slice(&check);
        to_hex(&bytes)
    }
}

/// Ties a token to its namespace and finds mistakes of copying. It keeps nobody from making tokens,
/// which could do no harm: the caller may list the namespace.
fn checksum(token: &[u8], namespace: Namespace<'_>) -> [u8; CHECK_BYTES] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(token);
    hash.update(namespace.as_str().as_bytes());
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash.finish().as_ref()[..CHECK_BYTES]);
    check
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads bytes in lower-case hexadecimal digits, if there are exactly so many.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | digit;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn namespace(name: &str) -> Namespace<'_> {
        Namespace::try_from(name).expect("valid")
    }

    proptest! {
        #[test]
        fn a_token_reads_back_for_its_namespace_and_for_no_other(
            shard in 0..INDEX_SHARDS, run_id: [u8; 20], cursor: u64, at in 0..2 * TOKEN_BYTES,
            other in "[0-9a-f]",
        ) {
            let start = PageStart { shard, run_id: RunId(run_id), cursor };
            let token = start.token(namespace("online"));
            prop_assert_eq!(PageStart::parse(&token, namespace("online")), Ok(start));
            let failed = Err(Invalid::PageToken);
            prop_assert_eq!(PageStart::parse(&token, namespace("devices")), failed.clone());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &other);
            if changed != token {
                prop_assert_eq!(PageStart::parse(&changed, namespace("online")), failed);
            }
        }

        #[test]
        fn fuzz_page_token(token in any::<String>()) {
            prop_assert_eq!(PageStart::parse(&token, namespace("online")), Err(Invalid::PageToken));
        }
    }

    #[test]
    fn a_token_has_one_spelling() {
        let start = PageStart {
            shard: 63,
            run_id: RunId([0xab; 20]),
            cursor: 7,
        };
        let token = start.token(namespace("online"));
        for other in [
            token.to_uppercase(),
            format!("{token} "),
            format!("{token}00"),
            token[2..].to_owned(),
        ] {
            let parsed = PageStart::parse(&other, namespace("online"));
            assert_eq!(parsed, Err(Invalid::PageToken), "{other}");
        }
    }

    #[test]
    fn a_page_size_is_lowered_and_never_negative() {
        for (requested, size) in [
            (0, 1000),
            (1, 1),
            (1000, 1000),
            (1001, 1000),
            (i32::MAX, 1000),
        ] {
            assert_eq!(page_size(requested), Ok(size));
        }
        for requested in [-1, i32::MIN] {
            assert_eq!(page_size(requested), Err(Invalid::PageSize));
        }
    }
}

//! Ids.

use super::invalid::Invalid;
use crate::text;

/// The longest id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;

/// An id, under which a value is stored: 1 to 256 bytes of UTF-8 without control characters. It is a
/// part of its request, and not copied out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id<'a>(&'a str);

impl<'a> Id<'a> {
    /// The id as text.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl<'a> TryFrom<&'a str> for Id<'a> {
    type Error = Invalid;

    fn try_from(id: &'a str) -> Result<Self, Invalid> {
        check(id)?;
        Ok(Self(id))
    }
}

fn check(id: &str) -> Result<(), Invalid> {
    let bytes = id.len();
    if bytes == 0 {
        return Err(Invalid::IdEmpty);
    }
    if bytes > MAX_ID_BYTES {
        return Err(Invalid::IdTooLong {
            bytes,
            max: MAX_ID_BYTES,
        });
    }
    // Almost every id is printable ASCII. One pass over its bytes is enough then.
    if text::is_printable_ascii(id.as_bytes()) {
        return Ok(());
    }
    match id.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(Invalid::IdControl { at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_measured_in_bytes() {
        assert!(Id::try_from("é".repeat(128).as_str()).is_ok());
        assert_eq!(
            Id::try_from("é".repeat(129).as_str()),
            Err(Invalid::IdTooLong {
                bytes: 258,
                max: 256
            })
        );
        assert_eq!(Id::try_from(""), Err(Invalid::IdEmpty));
    }

    proptest! {
        #[test]
        fn an_id_is_valid_exactly_when_the_contract_says_so(id in any::<String>()) {
            let expected = (1..=256).contains(&id.len()) && !id.chars().any(char::is_control);
            prop_assert_eq!(Id::try_from(id.as_str()).is_ok(), expected);
        }
    }
}

//! Ids.

use super::invalid::Invalid;

/// The longest id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;

/// An id, under which a value is stored: 1 to 256 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(pub(super) String);

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = Invalid;

    fn try_from(id: String) -> Result<Self, Invalid> {
        check(&id)?;
        Ok(Self(id))
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

/// Checks an id without taking it.
pub(super) fn check(id: &str) -> Result<(), Invalid> {
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
    if id.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
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
        assert!(Id::try_from("é".repeat(128)).is_ok());
        assert_eq!(
            Id::try_from("é".repeat(129)),
            Err(Invalid::IdTooLong {
                bytes: 258,
                max: 256
            })
        );
        assert_eq!(Id::try_from(String::new()), Err(Invalid::IdEmpty));
    }

    proptest! {
        #[test]
        fn an_id_is_valid_exactly_when_the_contract_says_so(id in any::<String>()) {
            let expected = (1..=256).contains(&id.len()) && !id.chars().any(char::is_control);
            prop_assert_eq!(Id::try_from(id).is_ok(), expected);
        }
    }
}

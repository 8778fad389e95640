//! Namespaces.

use super::invalid::Invalid;

/// The longest namespace, in characters (all of them ASCII).
pub const MAX_NAMESPACE_BYTES: usize = 63;

/// A namespace, which separates the ids of different applications: empty, or
/// `[a-z0-9][a-z0-9_-]{0,62}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Namespace<'a>(&'a str);

impl<'a> Namespace<'a> {
    /// The namespace as text.
    pub fn as_str(&self) -> &'a str {
        self.0
    }

    /// Whether this is the empty namespace.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> TryFrom<&'a str> for Namespace<'a> {
    type Error = Invalid;

    fn try_from(namespace: &'a str) -> Result<Self, Invalid> {
        let valid = namespace.len() <= MAX_NAMESPACE_BYTES
            && namespace.bytes().enumerate().all(|(at, byte)| match byte {
                b'a'..=b'z' | b'0'..=b'9' => true,
                b'_' | b'-' => at > 0,
                _ => false,
            });
        if valid {
            Ok(Self(namespace))
        } else {
            Err(Invalid::Namespace {
                bytes: namespace.len(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_valid_namespace_is_taken(namespace in "([a-z0-9][a-z0-9_-]{0,62})?") {
            prop_assert!(Namespace::try_from(namespace.as_str()).is_ok());
        }

        #[test]
        fn an_invalid_namespace_is_refused(namespace in "[A-Z/:.é _-][a-z]{0,5}|[a-z0-9]{64,70}|[a-z]+[/: .A-Z]") {
            prop_assert!(Namespace::try_from(namespace.as_str()).is_err());
        }
    }
}

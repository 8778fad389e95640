//! Namespaces with an index of their ids.

use std::sync::Arc;

use super::namespace::Namespace;

/// The most namespaces that can be indexed.
pub const MAX_INDEXED_NAMESPACES: usize = 32;

/// The namespaces that are indexed: the store knows which ids are marked in them. None of them is
/// the empty namespace. Clones share the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexedNamespaces(Arc<[Box<str>]>);

impl IndexedNamespaces {
    /// Checks a list of names. A name may occur twice. Returns what is wrong with the list.
    pub fn parse(names: &[String]) -> Result<Self, &'static str> {
        let mut namespaces = Vec::with_capacity(names.len());
        for name in names {
            let namespace = Namespace::try_from(name.as_str());
            let namespace =
                namespace.map_err(|_| "each namespace must match [a-z0-9][a-z0-9_-]{0,62}")?;
            if namespace.is_empty() {
                return Err("the empty namespace cannot be indexed");
            }
            namespaces.push(Box::from(namespace.as_str()));
        }
        namespaces.sort_unstable();
        namespaces.dedup();
        if namespaces.len() > MAX_INDEXED_NAMESPACES {
            return Err("at most 32 namespaces can be indexed");
        }
        Ok(Self(namespaces.into()))
    }

    /// Whether no namespace is indexed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many namespaces are indexed.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a namespace is indexed.
    pub fn contains(&self, namespace: Namespace<'_>) -> bool {
        self.position(namespace).is_some()
    }

    /// The place of a namespace in the list, if it is indexed.
    pub fn position(&self, namespace: Namespace<'_>) -> Option<usize> {
        // Few namespaces are indexed, and usually none.
        let name = namespace.as_str();
        self.0.iter().position(|indexed| **indexed == *name)
    }

    /// The names of the namespaces, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_valid_names_can_be_indexed_and_at_most_32() {
        let parse = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            IndexedNamespaces::parse(&names)
        };
        let indexed = parse(&["online", "devices", "online"]).expect("valid");
        assert_eq!(indexed.names().collect::<Vec<_>>(), ["devices", "online"]);
        let namespace = |name| Namespace::try_from(name).expect("valid");
        assert_eq!(indexed.position(namespace("online")), Some(1));
        assert!(!indexed.contains(namespace("orders")));
        assert!(!indexed.contains(namespace("")));
        for names in [&[""][..], &["a", ""], &["a.b"], &["{a}"], &["A"]] {
            assert!(parse(names).is_err(), "{names:?}");
        }
        let many: Vec<_> = (0..33).map(|number| format!("n{number}")).collect();
        assert!(IndexedNamespaces::parse(&many).is_err());
        assert!(IndexedNamespaces::parse(&many[..32]).is_ok());
    }
}

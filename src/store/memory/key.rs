//! Keys of the embedded store.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::{Id, Namespace};

/// `<namespace>/<id>`. No two pairs share a key, because a namespace has no slash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(Arc<str>);

impl Key {
    pub(super) fn new(namespace: Namespace<'_>, id: Id<'_>) -> Self {
        Self(format!("{}/{}", namespace.as_str(), id.as_str()).into())
    }

    pub(super) fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(name, _)| name)
    }

    pub(super) fn id(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, id)| id)
    }

    /// A key that is not after any other.
    pub(super) fn first() -> Self {
        Self("".into())
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// The key that [`Key::to_bytes`] gave.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into())
    }
}

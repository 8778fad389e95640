//! The ids of one call that names many.

use super::{id::Id, invalid::Invalid, settings::Limits};

/// The ids of one call: at least one, at most `max_batch`, all valid.
#[derive(Debug)]
pub struct Batch<'a>(Vec<Id<'a>>);

impl<'a> Batch<'a> {
    /// Checks the ids of a request.
    pub fn parse(
        ids: impl ExactSizeIterator<Item = &'a str>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        let field = "ids";
        if ids.len() == 0 {
            return Err(Invalid::BatchEmpty { field });
        }
        if ids.len() > limits.max_batch {
            return Err(Invalid::BatchTooLarge {
                field,
                items: ids.len(),
                max: limits.max_batch,
            });
        }
        let mut batch = Vec::with_capacity(ids.len());
        for (index, id) in ids.enumerate() {
            batch.push(Id::try_from(id).map_err(|source| Invalid::BatchId {
                index,
                source: Box::new(source),
            })?);
        }
        Ok(Self(batch))
    }

    /// The ids, in the order of the request.
    pub fn ids(&self) -> &[Id<'a>] {
        &self.0
    }
}

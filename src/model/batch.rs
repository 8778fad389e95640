//! The ids of one call that names many.

use super::{
    id::{self, Id},
    invalid::Invalid,
    settings::Limits,
};

/// The ids of one call: at least one, at most `max_batch`, all valid.
#[derive(Debug)]
pub struct Batch(Vec<Id>);

impl Batch {
    /// Checks the ids of a request; they are moved, not copied.
    pub fn parse(ids: Vec<String>, limits: &Limits) -> Result<Self, Invalid> {
        let field = "ids";
        if ids.is_empty() {
            return Err(Invalid::BatchEmpty { field });
        }
        if ids.len() > limits.max_batch {
            return Err(Invalid::BatchTooLarge {
                field,
                items: ids.len(),
                max: limits.max_batch,
            });
        }
        for (index, id) in ids.iter().enumerate() {
            id::check(id).map_err(|source| Invalid::BatchId {
                index,
                source: Box::new(source),
            })?;
        }
        // An Id has the layout of its String, so `collect` reuses the allocation.
        Ok(Self(ids.into_iter().map(Id).collect()))
    }

    /// The ids, in the order of the request.
    pub fn ids(&self) -> &[Id] {
        &self.0
    }

    /// The ids, in the order of the request.
    pub fn into_ids(self) -> Vec<Id> {
        self.0
    }
}

//! The items of one BatchMark.

use std::collections::HashMap;

use super::{id::Id, invalid::Invalid, settings::Limits, ttl::Ttl, value::Value};
use crate::proto;

/// One value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkItem {
    /// What the value is about.
    pub id: Id,
    /// The value.
    pub value: Value,
    /// How long the value lives.
    pub ttl: Ttl,
}

/// The items of one BatchMark: at least one, at most `max_batch`, each of them valid, and one for
/// each id.
#[derive(Debug)]
pub struct Marks(Vec<MarkItem>);

impl Marks {
    /// Checks all items of a request. If an id occurs more than once, its last item is kept.
    pub fn parse(
        items: Vec<proto::batch_mark_request::Item>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        let field = "marks";
        if items.is_empty() {
            return Err(Invalid::BatchEmpty { field });
        }
        if items.len() > limits.max_batch {
            return Err(Invalid::BatchTooLarge {
                field,
                items: items.len(),
                max: limits.max_batch,
            });
        }
        let mut marks: Vec<MarkItem> = Vec::with_capacity(items.len());
        let mut known = HashMap::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let mark = MarkItem::parse(item, limits).map_err(|source| Invalid::BatchMark {
                index,
                source: Box::new(source),
            })?;
            match known.get(&mark.id) {
                Some(at) => marks[*at] = mark,
                None => {
                    known.insert(mark.id.clone(), marks.len());
                    marks.push(mark);
                }
            }
        }
        Ok(Self(marks))
    }

    /// The items, with the ids in the order in which they occur first.
    pub fn into_items(self) -> Vec<MarkItem> {
        self.0
    }
}

impl MarkItem {
    fn parse(item: proto::batch_mark_request::Item, limits: &Limits) -> Result<Self, Invalid> {
        let proto::batch_mark_request::Item { id, value, ttl } = item;
        Ok(Self {
            id: id.try_into()?,
            value: Value::parse(value, limits)?,
            ttl: Ttl::parse(ttl, limits)?,
        })
    }
}

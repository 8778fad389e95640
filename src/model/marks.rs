//! The items of one BatchMark.

use std::collections::{HashMap, hash_map::Entry};

use super::{id::Id, invalid::Invalid, settings::Limits, ttl::Ttl, value::Value};

/// One value to write, as it is in the request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UncheckedMark<'a> {
    /// What the value is about.
    pub id: &'a str,
    /// The value, if there is one.
    pub value: Option<Value<'a>>,
    /// How long the value lives, if the item says so.
    pub ttl: Option<prost_types::Duration>,
}

/// One value to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkItem<'a> {
    /// What the value is about.
    pub id: Id<'a>,
    /// The value.
    pub value: Value<'a>,
    /// How long the value lives.
    pub ttl: Ttl,
}

/// The items of one BatchMark: at least one, at most `max_batch`, each of them valid, and one for
/// each id.
#[derive(Debug)]
pub struct Marks<'a>(Vec<MarkItem<'a>>);

impl<'a> Marks<'a> {
    /// Checks all items of a request. If an id occurs more than once, its last item is kept.
    pub fn parse(items: Vec<UncheckedMark<'a>>, limits: &Limits) -> Result<Self, Invalid> {
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
        let mut marks: Vec<MarkItem<'a>> = Vec::with_capacity(items.len());
        let mut known = HashMap::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let mark = MarkItem::parse(item, limits).map_err(|source| Invalid::BatchMark {
                index,
                source: Box::new(source),
            })?;
            match known.entry(mark.id) {
                Entry::Occupied(at) => marks[*at.get()] = mark,
                Entry::Vacant(new) => {
                    new.insert(marks.len());
                    marks.push(mark);
                }
            }
        }
        Ok(Self(marks))
    }

    /// The items, with the ids in the order in which they occur first.
    pub fn items(&self) -> &[MarkItem<'a>] {
        &self.0
    }
}

impl<'a> MarkItem<'a> {
    /// Checks an item.
    pub fn parse(item: UncheckedMark<'a>, limits: &Limits) -> Result<Self, Invalid> {
        let UncheckedMark { id, value, ttl } = item;
        Ok(Self {
            id: id.try_into()?,
            value: Value::parse(value, limits)?,
            ttl: Ttl::parse(ttl, limits)?,
        })
    }
}

//! Requests, whose parts are slices of their bytes.

use super::fields::{Content, Fields, Malformed};
use crate::model::{UncheckedMark, Value};

/// Room for more items is only made when they are there.
const MAX_EXPECTED: usize = 1024;

/// A `GetRequest`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Get<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) id: &'a str,
    pub(crate) include_expire_time: bool,
}

/// A `BatchGetRequest`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BatchGet<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) ids: Vec<&'a str>,
    pub(crate) include_expire_time: bool,
}

/// A `MarkRequest`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Mark<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) mark: UncheckedMark<'a>,
}

/// A `BatchMarkRequest`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct BatchMark<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) marks: Vec<UncheckedMark<'a>>,
}

impl<'a> Get<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        let mut fields = Fields::new(message);
        while let Some((number, content)) = fields.next()? {
            match number {
                1 => request.namespace = content.text()?,
                2 => request.id = content.text()?,
                3 => request.include_expire_time = content.varint()? != 0,
                _ => {}
            }
        }
        Ok(request)
    }
}

impl<'a> BatchGet<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        let mut fields = Fields::new(message);
        while let Some((number, content)) = fields.next()? {
            match number {
                1 => request.namespace = content.text()?,
                2 => {
                    expect_more(&mut request.ids, message, content)?;
                    request.ids.push(content.text()?);
                }
                3 => request.include_expire_time = content.varint()? != 0,
                _ => {}
            }
        }
        Ok(request)
    }
}

impl<'a> Mark<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        let mut fields = Fields::new(message);
        while let Some((number, content)) = fields.next()? {
            match number {
                1 => request.namespace = content.text()?,
                // The fields of a mark have the numbers of an item's, plus one.
                _ => read_mark(&mut request.mark, &fields, number - 1, content)?,
            }
        }
        Ok(request)
    }
}

impl<'a> BatchMark<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut request = Self::default();
        let mut fields = Fields::new(message);
        while let Some((number, content)) = fields.next()? {
            match number {
                1 => request.namespace = content.text()?,
                2 => {
                    expect_more(&mut request.marks, message, content)?;
                    let mut mark = UncheckedMark::default();
                    let mut fields = fields.of(content)?;
                    while let Some((number, content)) = fields.next()? {
                        read_mark(&mut mark, &fields, number, content)?;
                    }
                    request.marks.push(mark);
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

/// Makes room for all items of a message at the first one, if the others are as long.
#[inline]
fn expect_more<T>(items: &mut Vec<T>, message: &[u8], first: Content<'_>) -> Result<(), Malformed> {
    if items.is_empty() {
        let expected = message.len() / (first.bytes()?.len() + 2);
        items.reserve(expected.min(MAX_EXPECTED));
    }
    Ok(())
}

/// Reads a field of an item of a BatchMark.
#[inline]
fn read_mark<'a>(
    mark: &mut UncheckedMark<'a>,
    fields: &Fields<'a>,
    number: u32,
    content: Content<'a>,
) -> Result<(), Malformed> {
    match number {
        1 => mark.id = content.text()?,
        2 => mark.value = Some(Value::Int(content.int64()?)),
        3 => mark.value = Some(Value::String(content.text()?.into())),
        4 => mark.value = Some(Value::Bytes(content.bytes()?.into())),
        5 => {
            // A message that occurs twice is merged.
            let ttl = mark.ttl.get_or_insert_default();
            let mut fields = fields.of(content)?;
            while let Some((number, content)) = fields.next()? {
                match number {
                    1 => ttl.seconds = content.int64()?,
                    // The lower half of the bits, as for every int32.
                    2 => ttl.nanos = content.int64()? as i32,
                    _ => {}
                }
            }
        }
        _ => {}
    }
    Ok(())
}

//! Replies that have entries: those of Get, BatchGet and Touch.
//!
//! In all of them an entry has the field number 1. In a WatchResponse it has the number 2.

use std::time::SystemTime;

use bytes::BufMut;

use crate::model::{self, Found, Id, Value};

/// The keys of fields: their numbers, and the wire type in the lower three bits.
const ENTRY: u8 = key(1, BYTES);
const WATCH_ENTRY: u8 = key(2, BYTES);
const ID: u8 = key(1, BYTES);
const INT_VALUE: u8 = key(2, VARINT);
const STRING_VALUE: u8 = key(3, BYTES);
const BYTES_VALUE: u8 = key(4, BYTES);
const EXPIRE_TIME: u8 = key(5, BYTES);
const SECONDS: u8 = key(1, VARINT);
const NANOS: u8 = key(2, VARINT);

const VARINT: u8 = 0;
const BYTES: u8 = 2;

const fn key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}

/// An entry, with the length that it takes in a reply.
#[derive(Debug)]
pub(crate) struct EntryField<'a> {
    id: Id<'a>,
    found: Option<Found<'a>>,
    /// Seconds and nanoseconds since the epoch.
    expire_time: Option<(u64, u64)>,
    /// Of the entry without its key and length.
    length: usize,
}

impl<'a> EntryField<'a> {
    pub(crate) fn new(id: Id<'a>, found: Option<Found<'a>>) -> Self {
        let expire_time = found.as_ref().and_then(|found| found.expire_time);
        let expire_time = expire_time.map(since_epoch);
        let value = found.as_ref().map_or(0, |found| match &found.value {
            Value::Int(int) => 1 + varint_length(int.cast_unsigned()),
            Value::String(text) => bytes_length(text.len()),
            Value::Bytes(bytes) => bytes_length(bytes.len()),
        });
        let time = expire_time.map_or(0, |time| bytes_length(time_length(time)));
        Self {
            length: bytes_length(id.as_str().len()) + value + time,
            id,
            found,
            expire_time,
        }
    }

    /// The length in a reply.
    pub(crate) fn encoded_len(&self) -> usize {
        bytes_length(self.length)
    }

    #[inline]
    pub(crate) fn encode(&self, out: &mut impl BufMut) {
        self.encode_as(ENTRY, out);
    }

    /// Encodes the entry as a field of a WatchResponse.
    pub(crate) fn encode_for_watch(&self, out: &mut impl BufMut) {
        self.encode_as(WATCH_ENTRY, out);
    }

    #[inline]
    fn encode_as(&self, field: u8, out: &mut impl BufMut) {
        let id = self.id.as_str().as_bytes();
        if self.length < 0x80 {
            // Both lengths are one byte.
            out.put_slice(&[field, self.length as u8, ID, id.len() as u8]);
            out.put_slice(id);
        } else {
            put_length(field, self.length, out);
            put_bytes(ID, id, out);
        }
        match self.found.as_ref().map(|found| &found.value) {
            None => {}
            Some(Value::Int(int)) => put_varint(INT_VALUE, int.cast_unsigned(), out),
            Some(Value::String(text)) => put_bytes(STRING_VALUE, text.as_bytes(), out),
            Some(Value::Bytes(bytes)) => put_bytes(BYTES_VALUE, bytes, out),
        }
        if let Some((seconds, nanos)) = self.expire_time {
            put_length(EXPIRE_TIME, time_length((seconds, nanos)), out);
            // A number that is 0 is left out.
            if seconds != 0 {
                put_varint(SECONDS, seconds, out);
            }
            if nanos != 0 {
                put_varint(NANOS, nanos, out);
            }
        }
    }
}

fn since_epoch(time: SystemTime) -> (u64, u64) {
    let prost_types::Timestamp { seconds, nanos } = model::timestamp(time);
    // Neither is negative.
    (seconds.unsigned_abs(), u64::from(nanos.unsigned_abs()))
}

fn time_length((seconds, nanos): (u64, u64)) -> usize {
    let field = |number| match number {
        0 => 0,
        number => 1 + varint_length(number),
    };
    field(seconds) + field(nanos)
}

/// The length of a field whose content has a length.
fn bytes_length(length: usize) -> usize {
    1 + varint_length(length as u64) + length
}

/// Seven bits a byte.
fn varint_length(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

#[inline]
fn put_bytes(key: u8, bytes: &[u8], out: &mut impl BufMut) {
    put_length(key, bytes.len(), out);
    out.put_slice(bytes);
}

#[inline]
fn put_length(key: u8, length: usize, out: &mut impl BufMut) {
    put_varint(key, length as u64, out);
}

#[inline]
fn put_varint(key: u8, value: u64, out: &mut impl BufMut) {
    if value < 0x80 {
        out.put_slice(&[key, value as u8]);
    } else {
        put_long_varint(key, value, out);
    }
}

fn put_long_varint(key: u8, mut value: u64, out: &mut impl BufMut) {
    // Ten bytes have room for 70 bits.
    let mut bytes = [0; 11];
    bytes[0] = key;
    let mut at = 1;
    while value >= 0x80 {
        bytes[at] = value as u8 | 0x80;
        at += 1;
        value >>= 7;
    }
    bytes[at] = value as u8;
    out.put_slice(&bytes[..=at]);
}

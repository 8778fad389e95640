//! Comparison with prost, for any messages.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use prost::Message as _;

use super::replies::EntryField;
use crate::{
    fuzzing::codec::compare_with_prost,
    model::{self, Found, Id, Value},
    proto::{BatchGetResponse, GetResponse},
};

/// A varint, also one that takes more bytes than it needs, or too many.
fn varint() -> impl Strategy<Value = Vec<u8>> {
    let encoded = prop_oneof![0..300u64, any::<u64>()].prop_map(|mut number| {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    });
    let padded = (encoded.clone(), 0..11usize).prop_map(|(mut bytes, more)| {
        if let Some(last) = bytes.last_mut() {
            *last |= 0x80;
        }
        bytes.extend(std::iter::repeat_n(0x80, more));
        bytes.push(0);
        bytes
    });
    prop_oneof![8 => encoded, 1 => padded, 1 => prop::collection::vec(any::<u8>(), 0..12)]
}

/// The content of a field of this wire type, whose parts may be `inner` messages.
fn content(
    number: u8,
    wire_type: u8,
    inner: impl Strategy<Value = Vec<u8>> + 'static,
) -> BoxedStrategy<Vec<u8>> {
    match wire_type {
        0 => varint().boxed(),
        1 => any::<[u8; 8]>().prop_map(|bytes| bytes.to_vec()).boxed(),
        2 => {
            let text = prop_oneof!["[a-z0-9é]{0,9}", ".{0,3}"].prop_map(String::into_bytes);
            let bytes = prop::collection::vec(any::<u8>(), 0..9);
            let content = prop_oneof![4 => text, 1 => bytes, 4 => inner];
            content
                .prop_map(|bytes| {
                    let mut out = Vec::new();
                    prost::encoding::encode_varint(bytes.len() as u64, &mut out);
                    out.extend(bytes);
                    out
                })
                .boxed()
        }
        // A group, and its end.
        3 => inner
            .prop_map(move |mut bytes| {
                bytes.push(number << 3 | 4);
                bytes
            })
            .boxed(),
        5 => any::<[u8; 4]>().prop_map(|bytes| bytes.to_vec()).boxed(),
        _ => Just(Vec::new()).boxed(),
    }
}

/// Fields in any order, known ones and others, with the right wire type and with others.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let nothing = Just(Vec::new());
    nothing.prop_recursive(4, 64, 6, |inner| {
        let wire_type = prop_oneof![6 => Just(2), 4 => Just(0), 1 => 0..8u8];
        let field = (0..10u8, wire_type).prop_flat_map(move |(number, wire_type)| {
            content(number, wire_type, inner.clone()).prop_map(move |content| {
                let mut field = vec![number << 3 | wire_type];
                field.extend(content);
                field
            })
        });
        prop::collection::vec(field, 0..6).prop_map(|fields| fields.concat())
    })
}

fn found() -> impl Strategy<Value = Option<Found<'static>>> {
    let value = prop_oneof![
        any::<i64>().prop_map(Value::Int),
        Just(Value::Int(0)),
        ".{0,200}".prop_map(|text: String| Value::String(text.into())),
        prop::collection::vec(any::<u8>(), 0..20_000)
            .prop_map(|bytes: Vec<u8>| Value::Bytes(bytes.into())),
    ];
    let millis = prop_oneof![
        Just(0),
        0..1_000_000_000_000_000u64,
        (0..5000u64).prop_map(|s| s * 1000)
    ];
    let expire_time = prop::option::of(millis)
        .prop_map(|millis| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis?)));
    prop::option::of(
        (value, expire_time).prop_map(|(value, expire_time)| Found { value, expire_time }),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_message_is_read_as_prost_reads_it(message in message(), cut in any::<prop::sample::Index>()) {
        compare_with_prost(&message);
        compare_with_prost(&message[..cut.index(message.len() + 1)]);
    }

    #[test]
    fn a_message_with_a_changed_byte_is_read_as_prost_reads_it(
        message in message(), at in any::<prop::sample::Index>(), byte: u8,
    ) {
        let mut message = message;
        if !message.is_empty() {
            let at = at.index(message.len());
            message[at] = byte;
        }
        compare_with_prost(&message);
    }

    #[test]
    fn replies_are_written_as_prost_writes_them(
        all in prop::collection::vec(("[a-zé ]{1,90}", found()), 1..4),
    ) {
        let mut ours = Vec::new();
        let mut entries = Vec::new();
        for (id, found) in &all {
            let id = Id::try_from(id.as_str()).expect("valid");
            let before = ours.len();
            let field = EntryField::new(id, found.clone());
            field.encode(&mut ours);
            prop_assert_eq!(ours.len() - before, field.encoded_len());
            entries.push(model::entry(id, found.clone()));
        }
        let get = GetResponse { entry: entries.first().cloned() };
        prop_assert!(ours.starts_with(&get.encode_to_vec()));
        prop_assert_eq!(ours, BatchGetResponse { entries }.encode_to_vec());
    }
}

/// Groups in groups, as deep as prost allows, and one deeper.
#[test]
fn the_depth_of_groups_is_limited_as_in_prost() {
    const GROUP: u8 = 15 << 3;
    for depth in 1..=110 {
        let mut message = vec![GROUP | 3; depth];
        message.extend(vec![GROUP | 4; depth]);
        compare_with_prost(&message);
        let depth = depth as u8;
        if let Some(length) = depth.checked_mul(2).filter(|length| *length < 0x80) {
            let mut item = vec![2 << 3 | 2, length];
            item.extend(&message);
            compare_with_prost(&item);
        }
    }
}

//! The oracles for what goes to Redis and what it answers. This is a module of
//! `crate::store::redis`, because it needs private items of that.

use std::{collections::HashMap, slice, time::Duration};

use super::{
    layout::{self, KeyLayout},
    settings::KeyFormat,
    wire::{
        failure,
        resp::{Replies, Reply, Scanner},
        url::RedisUrls,
    },
};
use crate::{
    codec::requests,
    error::Error,
    fuzzing::checks::{check_refusal, check_silence},
    fuzzing::codec::compare_with_prost,
    model::{Batch, Id, IndexedNamespaces, Limits, MarkItem, Namespace, Value},
    store::failure::StoreError,
};

const LIMITS: Limits = Limits {
    default_ttl: Duration::from_secs(60),
    max_ttl: Duration::from_secs(3600),
    max_batch: 10,
    max_value_bytes: 100,
    max_reply_bytes: 1000,
    max_request_bytes: 4 << 20,
};

/// From the request to Redis: a request is read as prost reads it. A valid one has keys that no other
/// id has, and a value that reads back as itself. All others are refused.
pub fn request(data: &[u8]) {
    compare_with_prost(data);
    for outcome in [mark(data), get(data), batch_get(data)] {
        if let Err(error) = outcome {
            check_refusal(error);
        }
    }
}

fn mark(data: &[u8]) -> Result<(), Error> {
    let request = requests::Mark::parse(data)?;
    let namespace = Namespace::try_from(request.namespace)?;
    let MarkItem { id, value, ttl } = MarkItem::parse(request.mark, &LIMITS)?;
    let ttl = ttl.as_duration();
    assert!((Duration::from_millis(1)..=LIMITS.max_ttl).contains(&ttl));
    check_keys(namespace, slice::from_ref(&id));
    assert_eq!(layout::decode(&encode(&value)), value);
    Ok(())
}

fn get(data: &[u8]) -> Result<(), Error> {
    let request = requests::Get::parse(data)?;
    let namespace = Namespace::try_from(request.namespace)?;
    check_keys(namespace, &[Id::try_from(request.id)?]);
    Ok(())
}

fn batch_get(data: &[u8]) -> Result<(), Error> {
    let request = requests::BatchGet::parse(data)?;
    let namespace = Namespace::try_from(request.namespace)?;
    let batch = Batch::parse(request.ids.into_iter(), &LIMITS)?;
    assert!((1..=LIMITS.max_batch).contains(&batch.ids().len()));
    check_keys(namespace, batch.ids());
    Ok(())
}

/// In each format, no two ids share a key, in this namespace or in the one without a name.
fn check_keys(namespace: Namespace<'_>, ids: &[Id<'_>]) {
    let nameless = Namespace::default();
    for format in [KeyFormat::Plain, KeyFormat::PythonBytes] {
        let layout = KeyLayout {
            prefix: "dyn_data".to_owned(),
            format,
            indexed: IndexedNamespaces::parse(&["online".to_owned()]).expect("valid"),
        };
        let mut owners = HashMap::new();
        for owner in [namespace, nameless]
            .into_iter()
            .flat_map(|namespace| ids.iter().map(move |id| (namespace, *id)))
        {
            let (namespace, id) = owner;
            let key = layout.key(namespace, id);
            assert!(key.starts_with(b"dyn_data"));
            let written = argument(|out| layout.write_key(namespace, id, out));
            assert_eq!(written, key);
            assert_eq!(*owners.entry(key).or_insert(owner), owner);
        }
    }
}

/// Whatever Redis keeps can be read as an int, a string or bytes, without loss, and what was read
/// can be written again.
pub fn stored_value(data: &[u8]) {
    let value = layout::decode(data);
    let tagged = |tag: &[u8], bytes: &[u8]| data.strip_prefix(tag) == Some(bytes);
    match &value {
        Value::Int(int) => assert_eq!(int.to_string().as_bytes(), data),
        Value::String(text) => {
            assert!(data == text.as_bytes() || tagged(b"s:", text.as_bytes()));
        }
        Value::Bytes(bytes) => assert!(data == bytes.as_ref() || tagged(b"b:", bytes)),
    }
    assert_eq!(layout::decode(&encode(&value)), value);
}

/// For every error reply of Redis, a caller gets a code and a reason of the contract, and nothing
/// of the text.
pub fn redis_error(data: &[u8]) {
    let error = failure::classify(data);
    let text = String::from_utf8_lossy(data);
    let (code, _) = failure::split(failure::cause(&text));
    assert_eq!(
        error == StoreError::Auth,
        failure::is_about_credentials(code)
    );
    assert!(!error.reason().name().is_empty());
    check_refusal(error.into());
}

/// The end of replies does not depend on how the input is cut. Complete replies can be read to
/// their end, and incomplete ones do not panic.
pub fn redis_replies(data: &[u8]) {
    for replies in 1..=2 {
        let whole = Scanner::new(replies).scan(data);
        let mut scanner = Scanner::new(replies);
        let (half, _) = data.split_at(data.len() / 2);
        let in_two = match scanner.scan(half) {
            Ok(None) => scanner.scan(data),
            found => found,
        };
        assert_eq!(in_two, whole);
        if let Ok(Some(length)) = whole {
            let mut missing = replies;
            for reply in Replies::new(&data[..length]) {
                assert!(missing > 0);
                missing -= 1;
                if let Reply::Array(length) = reply {
                    missing += length;
                }
            }
            assert_eq!(missing, 0);
        }
    }
    assert!(Replies::new(data).count() <= data.len());
}

/// Redis URLs: a password is never shown, whatever follows it.
pub fn redis_urls(data: &[u8]) {
    let rest = String::from_utf8_lossy(data);
    _ = shown(&rest);
    // Without a digit of the canary, so that the canary is only where the loop puts it. Parsing a
    // URL drops tabs and decodes what is encoded, which could make another one.
    let rest = rest.replace('4', "");
    for start in [
        "redis://:c4n4ry@",
        "rediss://user:c4n4ry@",
        "unix:///s?pass=c4n4ry&",
        "http://:c4n4ry@",
    ] {
        check_silence(&shown(&format!("{start}{rest}")));
    }
}

/// What is shown of a URL, and of a list of them.
fn shown(urls: &str) -> String {
    let parsed = [RedisUrls::parse_one(urls), RedisUrls::parse(urls)];
    let shown = parsed.map(|parsed| match parsed {
        Ok(urls) => format!("{urls} {urls:?}"),
        Err(reason) => reason,
    });
    shown.concat()
}

/// A value as Redis keeps it.
pub(super) fn encode(value: &Value<'_>) -> Vec<u8> {
    argument(|out| layout::write_value(value, out))
}

/// The bytes of the one part of a command that `write` writes.
fn argument(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    match Replies::new(&out).next() {
        Some(Reply::Bulk(bytes)) => bytes.to_vec(),
        other => panic!("not a part of a command: {other:?}"),
    }
}

//! What the peers share, so that they differ only in what is measured: how they are served and
//! how they reach Redis. The generator uses the same messages.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use clap::Parser;
use tonic::Status;

/// The code generated from `proto/dyndata/v1/dyndata.proto`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod proto {
    tonic::include_proto!("dyndata.v1");
}

use proto::{Entry, MarkRequest, MarkResponse, batch_mark_request::Item, entry, mark_request};

/// The flags of every peer.
#[derive(Debug, Parser)]
pub struct Args {
    /// Where to serve gRPC
    #[arg(long)]
    pub listen: SocketAddr,
    /// Redis to keep the data in; the peer without a store ignores it
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    pub redis_url: String,
}

/// What the peer without a store answers for every id.
pub const CONSTANT: i64 = 123_456;

/// The time to live of a Mark that names none.
const DEFAULT_TTL: Duration = Duration::from_secs(60);

/// The Redis key of an id in the empty namespace.
pub fn key(id: &str) -> String {
    format!("dyn_data/{id}")
}

/// What a Mark's reply says when the value lives for `ttl` from now.
pub fn marked(ttl: Duration) -> MarkResponse {
    MarkResponse {
        expire_time: Some((SystemTime::now() + ttl).into()),
    }
}

/// A Mark as Redis needs it: the key, the stored bytes and the time to live.
pub fn parse_mark(request: MarkRequest) -> Result<(String, Vec<u8>, Duration), Status> {
    let ttl = match request.ttl {
        None => DEFAULT_TTL,
        Some(ttl) => {
            Duration::try_from(ttl).map_err(|_| Status::invalid_argument("ttl out of range"))?
        }
    };
    let value = match request.value {
        None => return Err(Status::invalid_argument("value missing")),
        Some(mark_request::Value::IntValue(number)) => number.to_string().into_bytes(),
        Some(mark_request::Value::StringValue(text)) => [b"s:", text.as_bytes()].concat(),
        Some(mark_request::Value::BytesValue(bytes)) => [b"b:", bytes.as_slice()].concat(),
    };
    Ok((key(&request.id), value, ttl))
}

/// An item of a BatchMark as Redis needs it.
pub fn parse_item(item: Item) -> Result<(String, Vec<u8>, Duration), Status> {
    use proto::batch_mark_request::item::Value;
    let value = item.value.map(|value| match value {
        Value::IntValue(number) => mark_request::Value::IntValue(number),
        Value::StringValue(text) => mark_request::Value::StringValue(text),
        Value::BytesValue(bytes) => mark_request::Value::BytesValue(bytes),
    });
    parse_mark(MarkRequest {
        id: item.id,
        value,
        ttl: item.ttl,
        ..Default::default()
    })
}

/// An entry as Redis stored it.
pub fn entry(id: String, stored: Option<Vec<u8>>) -> Entry {
    Entry {
        id,
        value: stored.map(value),
        expire_time: None,
    }
}

fn value(stored: Vec<u8>) -> entry::Value {
    if let Some(bytes) = stored.strip_prefix(b"b:") {
        return entry::Value::BytesValue(bytes.to_vec());
    }
    match String::from_utf8(stored) {
        Ok(text) => match text.parse() {
            Ok(number) => entry::Value::IntValue(number),
            Err(_) => match text.strip_prefix("s:") {
                Some(text) => entry::Value::StringValue(text.to_owned()),
                None => entry::Value::StringValue(text),
            },
        },
        Err(error) => entry::Value::BytesValue(error.into_bytes()),
    }
}

/// A failure of Redis, as a status.
pub fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

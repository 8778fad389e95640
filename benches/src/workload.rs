//! The workloads: encoded requests, and what a reply to each of them must be.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use peer::proto::{
    BatchGetRequest, BatchGetResponse, BatchMarkRequest, BatchUnmarkRequest, BatchUnmarkResponse,
    CountRequest, CountResponse, Entry, GetRequest, GetResponse, IncrementRequest,
    IncrementResponse, ListRequest, ListResponse, MarkIfRequest, MarkIfResponse, MarkRequest,
    MarkResponse, TouchRequest, TouchResponse, TtlPolicy, UnmarkRequest, UnmarkResponse, Value,
    batch_mark_request, entry, mark_if_request, mark_request, value,
};
use prost::Message;
use prost_types::Timestamp;

use crate::{
    keys::KeySet,
    operation::Operation,
    ratelimit::{self, RateLimitResponse},
};

/// The time to live of everything that the calls write.
pub const TTL: Duration = Duration::from_secs(300);

/// The `max` of an Increment. No counter reaches it.
pub const MAX: i64 = 1_000_000_000;

/// The size of the header of a gRPC frame: a flag and the length.
const FRAME_HEADER: usize = 5;

/// Encoded requests of one kind, with what their replies must be.
pub struct Workload {
    pub operation: Operation,
    pub path: &'static str,
    requests: Vec<Bytes>,
    replies: Replies,
}

enum Replies {
    /// The reply to each request, byte for byte, or another encoding of the same message.
    Known(Vec<Bytes>),
    /// A reply with the right expire time.
    Marked,
    /// A reply with any expire time, from the peer without a store.
    Constant,
    /// An empty message.
    Empty,
    /// The first call with each request removes this many values, and the others none.
    Removed(usize),
    /// The condition of a MarkIf held, and this was the entry before.
    Applied(Vec<Entry>),
    /// The entries, each with the right expire time.
    Touched(Vec<Vec<Entry>>),
    /// A counter that was incremented.
    Counted,
    /// These ids in any order, each with the right expire time.
    Listed(BTreeSet<String>),
    /// OK, from envoyproxy/ratelimit.
    Granted,
}

impl Workload {
    /// A workload of gRPC frames. `constant` is true for the peer without a store.
    pub fn grpc(operation: Operation, keys: &KeySet, constant: bool) -> Self {
        let ids = keys.ids();
        let value = |id: &str| {
            if constant {
                peer::CONSTANT
            } else {
                keys.value(id)
            }
        };
        let entry = |id: &String| Entry {
            value: Some(entry::Value::IntValue(value(id))),
            id: id.clone(),
            expire_time: None,
        };
        let entries = |ids: &[String]| ids.iter().map(entry).collect::<Vec<_>>();
        let ttl = prost_types::Duration::try_from(TTL).ok();
        let (requests, replies) = match operation {
            Operation::Get => {
                let reply = |id| {
                    frame(&GetResponse {
                        entry: Some(entry(id)),
                    })
                };
                let replies = ids.iter().map(reply).collect();
                let requests = ids.iter().map(|id| get_frame(id)).collect();
                (requests, Replies::Known(replies))
            }
            Operation::BatchGet(size) => {
                let batches = keys.random_batches(size);
                let reply = |ids: &Vec<String>| {
                    frame(&BatchGetResponse {
                        entries: entries(ids),
                    })
                };
                let replies = batches.iter().map(reply).collect();
                let request = |ids| {
                    frame(&BatchGetRequest {
                        ids,
                        ..Default::default()
                    })
                };
                let requests = batches.into_iter().map(request).collect();
                (requests, Replies::Known(replies))
            }
            Operation::Mark | Operation::MarkIndexed => {
                let request = |id: &String| {
                    frame(&MarkRequest {
                        namespace: operation.namespace().to_owned(),
                        id: id.clone(),
                        value: Some(mark_request::Value::IntValue(keys.value(id))),
                        ttl,
                    })
                };
                let replies = if constant {
                    Replies::Constant
                } else {
                    Replies::Marked
                };
                (ids.iter().map(request).collect(), replies)
            }
            Operation::BatchMark(size) => {
                let item = |id: &String| batch_mark_request::Item {
                    id: id.clone(),
                    value: Some(batch_mark_request::item::Value::IntValue(keys.value(id))),
                    ttl,
                };
                let request = |ids: &[String]| {
                    frame(&BatchMarkRequest {
                        marks: ids.iter().map(item).collect(),
                        ..Default::default()
                    })
                };
                (ids.chunks(size).map(request).collect(), Replies::Empty)
            }
            Operation::MarkIf => {
                let request = |id: &String| {
                    let value = keys.value(id);
                    frame(&MarkIfRequest {
                        id: id.clone(),
                        value: Some(mark_if_request::Value::IntValue(value)),
                        ttl,
                        // The value that it writes, so that the condition holds every time.
                        condition: Some(mark_if_request::Condition::IfEqual(Value {
                            kind: Some(value::Kind::IntValue(value)),
                        })),
                        ..Default::default()
                    })
                };
                (
                    ids.iter().map(request).collect(),
                    Replies::Applied(entries(ids)),
                )
            }
            Operation::Touch(size) => {
                let request = |ids: &[String]| {
                    frame(&TouchRequest {
                        ids: ids.to_vec(),
                        ttl,
                        ..Default::default()
                    })
                };
                let replies = ids.chunks(size).map(entries).collect();
                (
                    ids.chunks(size).map(request).collect(),
                    Replies::Touched(replies),
                )
            }
            Operation::Increment => {
                let request = |id: &String| {
                    frame(&IncrementRequest {
                        id: id.clone(),
                        ttl,
                        ..Default::default()
                    })
                };
                (ids.iter().map(request).collect(), Replies::Counted)
            }
            Operation::Limit => {
                let request = |id: &String| {
                    frame(&IncrementRequest {
                        id: id.clone(),
                        ttl,
                        ttl_policy: TtlPolicy::Keep.into(),
                        max: Some(MAX),
                        ..Default::default()
                    })
                };
                (ids.iter().map(request).collect(), Replies::Counted)
            }
            Operation::Unmark => {
                let request = |id: &String| {
                    frame(&UnmarkRequest {
                        id: id.clone(),
                        ..Default::default()
                    })
                };
                (ids.iter().map(request).collect(), Replies::Removed(1))
            }
            Operation::BatchUnmark(size) => {
                let request = |ids: &[String]| {
                    frame(&BatchUnmarkRequest {
                        ids: ids.to_vec(),
                        ..Default::default()
                    })
                };
                (
                    ids.chunks(size).map(request).collect(),
                    Replies::Removed(size),
                )
            }
            Operation::Count => {
                let request = CountRequest {
                    namespace: operation.namespace().to_owned(),
                };
                let reply = CountResponse {
                    count: ids.len() as i64,
                };
                (vec![frame(&request)], Replies::Known(vec![frame(&reply)]))
            }
            Operation::List => {
                let request = ListRequest {
                    namespace: operation.namespace().to_owned(),
                    ..Default::default()
                };
                let ids = ids.iter().cloned().collect();
                (vec![frame(&request)], Replies::Listed(ids))
            }
        };
        Self {
            operation,
            path: operation.path(),
            requests,
            replies,
        }
    }

    /// A workload of ShouldRateLimit, for envoyproxy/ratelimit.
    pub fn ratelimit(keys: &KeySet) -> Self {
        let requests = keys.ids().iter().map(|id| frame(&ratelimit::request(id)));
        Self {
            operation: Operation::Limit,
            path: ratelimit::PATH,
            requests: requests.collect(),
            replies: Replies::Granted,
        }
    }

    /// A workload of HTTP/1.1 requests with JSON replies, for webdis.
    pub fn webdis(operation: Operation, keys: &KeySet) -> Result<Self> {
        let get = |id: &String| {
            let reply = format!("{{\"GET\":\"{}\"}}", keys.value(id));
            (http1(&format!("/GET/dyn_data%2f{id}")), reply.into())
        };
        let set = |id: &String| {
            let (value, ttl) = (keys.value(id), TTL.as_millis());
            let path = format!("/SET/dyn_data%2f{id}/{value}/PX/{ttl}");
            (http1(&path), "{\"SET\":[true,\"OK\"]}".into())
        };
        let mget = |ids: Vec<String>| {
            let path: String = ids.iter().map(|id| format!("/dyn_data%2f{id}")).collect();
            let values: Vec<String> = ids
                .iter()
                .map(|id| format!("\"{}\"", keys.value(id)))
                .collect();
            let reply = format!("{{\"MGET\":[{}]}}", values.join(","));
            (http1(&format!("/MGET{path}")), reply.into())
        };
        let (requests, replies) = match operation {
            Operation::Get => keys.ids().iter().map(get).unzip(),
            Operation::Mark => keys.ids().iter().map(set).unzip(),
            Operation::BatchGet(size) => keys.random_batches(size).into_iter().map(mget).unzip(),
            _ => bail!("webdis gets no {operation}"),
        };
        Ok(Self {
            operation,
            path: "",
            requests,
            replies: Replies::Known(replies),
        })
    }

    /// The request of the `call`-th call. The requests take turns.
    pub fn request(&self, call: u64) -> Bytes {
        self.requests[self.index(call)].clone()
    }

    /// Checks the reply to the `call`-th call.
    pub fn check(&self, call: u64, reply: &[u8]) -> Result<()> {
        let right = match &self.replies {
            Replies::Known(replies) => {
                let expected = &replies[self.index(call)];
                // Encoders may choose the order of fields, but nearly all use the same. So decode
                // the reply only if the bytes differ.
                reply == expected
                    || match self.operation {
                        Operation::Get => same::<GetResponse>(expected, reply)?,
                        Operation::BatchGet(_) => same::<BatchGetResponse>(expected, reply)?,
                        _ => false,
                    }
            }
            Replies::Marked => {
                let response: MarkResponse = message(reply)?;
                expires(response.expire_time.as_ref())?
            }
            Replies::Constant => {
                let response: MarkResponse = message(reply)?;
                response.expire_time.is_some()
            }
            Replies::Empty => reply == [0; FRAME_HEADER],
            Replies::Removed(size) => {
                let first = call < self.requests.len() as u64;
                let removed = match self.operation {
                    Operation::Unmark => usize::from(message::<UnmarkResponse>(reply)?.removed),
                    _ => message::<BatchUnmarkResponse>(reply)?.removed_count as usize,
                };
                removed == if first { *size } else { 0 }
            }
            Replies::Applied(entries) => {
                let response: MarkIfResponse = message(reply)?;
                response.applied
                    && response.previous.as_ref() == Some(&entries[self.index(call)])
                    && expires(response.expire_time.as_ref())?
            }
            Replies::Touched(entries) => {
                let response: TouchResponse = message(reply)?;
                let mut touched = response.entries;
                let mut right = true;
                for entry in &mut touched {
                    right &= expires(entry.expire_time.take().as_ref())?;
                }
                right && touched == entries[self.index(call)]
            }
            Replies::Counted => {
                let response: IncrementResponse = message(reply)?;
                response.applied
                    && (1..MAX).contains(&response.value)
                    && expires(response.expire_time.as_ref())?
            }
            Replies::Listed(ids) => {
                let response: ListResponse = message(reply)?;
                let mut right = response.next_page_token.is_empty();
                // An id may come twice.
                let mut seen = BTreeSet::new();
                for entry in response.entries {
                    right &= expires(entry.expire_time.as_ref())?;
                    seen.insert(entry.id);
                }
                right && seen == *ids
            }
            Replies::Granted => message::<RateLimitResponse>(reply)?.is_ok(),
        };
        ensure!(
            right,
            "{}: wrong answer to {}: {}",
            self.operation,
            printable(&self.request(call)),
            printable(reply)
        );
        Ok(())
    }

    fn index(&self, call: u64) -> usize {
        (call % self.requests.len() as u64) as usize
    }
}

/// The frame of a Get.
fn get_frame(id: &str) -> Bytes {
    frame(&GetRequest {
        id: id.to_owned(),
        ..Default::default()
    })
}

fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + length);
    frame.put_u8(0);
    frame.put_u32(length as u32);
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}

fn message<M: Message + Default>(reply: &[u8]) -> Result<M> {
    let Some((header, message)) = reply.split_at_checked(FRAME_HEADER) else {
        bail!("no gRPC frame: {}", printable(reply));
    };
    let (flag, length) = (header[0], [header[1], header[2], header[3], header[4]]);
    ensure!(
        flag == 0 && u32::from_be_bytes(length) as usize == message.len(),
        "not one uncompressed gRPC frame: {}",
        printable(reply)
    );
    M::decode(message).context("cannot decode a reply")
}

fn same<M: Message + Default + PartialEq>(expected: &[u8], reply: &[u8]) -> Result<bool> {
    // The replies of webdis are no gRPC frames, so different bytes are wrong.
    let Ok(expected) = message::<M>(expected) else {
        return Ok(false);
    };
    Ok(expected == message::<M>(reply)?)
}

/// True if an expire time is [`TTL`] from now, or up to 15 s earlier, because a counter may be that
/// old.
fn expires(expire_time: Option<&Timestamp>) -> Result<bool> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let latest = (now + TTL).as_secs() as i64 + 1;
    let is_near = |time: &Timestamp| (latest - 15..=latest).contains(&time.seconds);
    Ok(expire_time.is_some_and(is_near))
}

fn http1(path: &str) -> Bytes {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into()
}

fn printable(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(200)];
    shown.escape_ascii().to_string()
}

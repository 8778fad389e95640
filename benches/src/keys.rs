//! The workloads: random ids, encoded requests and expected replies.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use peer::proto::{
    BatchGetRequest, BatchGetResponse, Entry, GetRequest, GetResponse, MarkRequest, MarkResponse,
    entry, mark_request,
};
use prost::Message;

/// Number of random ids in a run.
pub const IDS: usize = 10_000;

/// The time to live of the Marks.
pub const MARK_TTL: Duration = Duration::from_secs(300);

/// Number of different batches.
const BATCHES: usize = 100;

/// The size of the header of a gRPC frame: a flag and the length.
const FRAME_HEADER: usize = 5;

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Get,
    Mark,
    /// A BatchGet of this many ids.
    BatchGet(usize),
}

impl Operation {
    pub fn path(self) -> &'static str {
        match self {
            Self::Get => "/dyndata.v1.DynData/Get",
            Self::Mark => "/dyndata.v1.DynData/Mark",
            Self::BatchGet(_) => "/dyndata.v1.DynData/BatchGet",
        }
    }

    /// The Redis command that each call runs, with its name in `INFO commandstats`.
    pub fn redis_command(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Mark => "set",
            Self::BatchGet(_) => "mget",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get => f.pad("Get"),
            Self::Mark => f.pad("Mark"),
            Self::BatchGet(size) => f.pad(&format!("BatchGet({size})")),
        }
    }
}

/// Random ids. The value of an id is computed from the id and a salt, so that a reply can be checked
/// without a table.
pub struct KeySet {
    ids: Vec<String>,
    salt: u64,
}

impl KeySet {
    pub fn random(count: usize) -> Self {
        let ids = (0..count).map(|_| fastrand::u32(100_000_000..1_000_000_000).to_string());
        Self {
            ids: ids.collect(),
            salt: 0,
        }
    }

    /// The same ids with other values.
    pub fn resalted(&self) -> Self {
        Self {
            ids: self.ids.clone(),
            salt: fastrand::u64(1..),
        }
    }

    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// The value of an id.
    pub fn value(&self, id: &str) -> i64 {
        // FNV-1a.
        let hash = id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325 ^ self.salt, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        (hash % 1_000_000) as i64
    }

    fn batches(&self, size: usize) -> Vec<Vec<String>> {
        let batch = |_| (0..size).map(|_| self.ids[fastrand::usize(..self.ids.len())].clone());
        (0..BATCHES).map(|index| batch(index).collect()).collect()
    }
}

/// Encoded requests of one kind, with their expected replies.
pub struct Workload {
    pub operation: Operation,
    requests: Vec<Bytes>,
    replies: Replies,
}

enum Replies {
    /// The reply to each request, byte for byte.
    Known(Vec<Bytes>),
    /// A reply with the right expire time.
    Marked,
    /// A reply with any expire time, from the peer without a store.
    Constant,
}

impl Workload {
    /// A workload of gRPC frames. `constant` is true for the peer without a store.
    pub fn grpc(operation: Operation, keys: &KeySet, constant: bool) -> Self {
        let entry = |id: String| {
            let value = if constant {
                peer::CONSTANT
            } else {
                keys.value(&id)
            };
            Entry {
                value: Some(entry::Value::IntValue(value)),
                id,
                expire_time: None,
            }
        };
        let (requests, replies) = match operation {
            Operation::Get => keys
                .ids
                .iter()
                .map(|id| {
                    (
                        get_frame(id),
                        frame(&GetResponse {
                            entry: Some(entry(id.clone())),
                        }),
                    )
                })
                .unzip(),
            Operation::BatchGet(size) => keys
                .batches(size)
                .into_iter()
                .map(|ids| {
                    let entries = ids.iter().cloned().map(entry).collect();
                    let request = BatchGetRequest {
                        ids,
                        ..Default::default()
                    };
                    (frame(&request), frame(&BatchGetResponse { entries }))
                })
                .unzip(),
            Operation::Mark => {
                let requests = keys.ids.iter().map(|id| {
                    frame(&MarkRequest {
                        id: id.clone(),
                        value: Some(mark_request::Value::IntValue(keys.value(id))),
                        ttl: prost_types::Duration::try_from(MARK_TTL).ok(),
                        ..Default::default()
                    })
                });
                let replies = if constant {
                    Replies::Constant
                } else {
                    Replies::Marked
                };
                return Self {
                    operation,
                    requests: requests.collect(),
                    replies,
                };
            }
        };
        Self {
            operation,
            requests,
            replies: Replies::Known(replies),
        }
    }

    /// A workload of HTTP/1.1 requests with JSON replies, for webdis.
    pub fn webdis(operation: Operation, keys: &KeySet) -> Self {
        let (requests, replies) = match operation {
            Operation::Get => keys
                .ids
                .iter()
                .map(|id| {
                    let reply = format!("{{\"GET\":\"{}\"}}", keys.value(id));
                    (http1(&format!("/GET/dyn_data%2f{id}")), reply.into())
                })
                .unzip(),
            Operation::Mark => keys
                .ids
                .iter()
                .map(|id| {
                    let (value, ttl) = (keys.value(id), MARK_TTL.as_millis());
                    let path = format!("/SET/dyn_data%2f{id}/{value}/PX/{ttl}");
                    (http1(&path), "{\"SET\":[true,\"OK\"]}".into())
                })
                .unzip(),
            Operation::BatchGet(size) => keys
                .batches(size)
                .into_iter()
                .map(|ids| {
                    let path: String = ids.iter().map(|id| format!("/dyn_data%2f{id}")).collect();
                    let values: Vec<String> = ids
                        .iter()
                        .map(|id| format!("\"{}\"", keys.value(id)))
                        .collect();
                    let reply = format!("{{\"MGET\":[{}]}}", values.join(","));
                    (http1(&format!("/MGET{path}")), reply.into())
                })
                .unzip(),
        };
        Self {
            operation,
            requests,
            replies: Replies::Known(replies),
        }
    }

    /// The request of the `call`-th call. The requests take turns.
    pub fn request(&self, call: u64) -> Bytes {
        self.requests[self.index(call)].clone()
    }

    /// Checks the reply to the `call`-th call.
    pub fn check(&self, call: u64, reply: &[u8]) -> Result<()> {
        match &self.replies {
            Replies::Known(replies) => {
                let expected = &replies[self.index(call)];
                // Encoders may choose the order of fields, but nearly all use the same. So decode
                // the reply only if the bytes differ.
                if reply == expected {
                    return Ok(());
                }
                let same = match self.operation {
                    Operation::Get => same::<GetResponse>(expected, reply)?,
                    Operation::BatchGet(_) => same::<BatchGetResponse>(expected, reply)?,
                    Operation::Mark => false,
                };
                ensure!(
                    same,
                    "{}: wrong answer: {}",
                    self.operation,
                    printable(reply)
                );
                Ok(())
            }
            Replies::Marked => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                let latest = (now + MARK_TTL).as_secs() as i64 + 1;
                let seconds = expiry(reply)?;
                ensure!(
                    (latest - 15..=latest).contains(&seconds),
                    "Mark: expire_time {seconds} is not {} s from now",
                    MARK_TTL.as_secs()
                );
                Ok(())
            }
            Replies::Constant => expiry(reply).map(drop),
        }
    }

    fn index(&self, call: u64) -> usize {
        (call % self.requests.len() as u64) as usize
    }
}

/// The frame of a Get.
pub fn get_frame(id: &str) -> Bytes {
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

fn expiry(reply: &[u8]) -> Result<i64> {
    let response: MarkResponse = message(reply)?;
    Ok(response
        .expire_time
        .context("Mark: no expire_time")?
        .seconds)
}

fn http1(path: &str) -> Bytes {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into()
}

fn printable(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(200)];
    shown.escape_ascii().to_string()
}

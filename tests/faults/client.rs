//! A caller: the generated client on HTTP/2 connections of its own.
//!
//! tonic's channel cannot be used, for two reasons. It enforces `grpc-timeout` itself, which hides
//! whether the server does. And a caller has to tell a status of the server from a failure of the
//! connection, and a call that the server accepted from one that it did not.

use std::{
    error::Error as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use dyndata::{
    model,
    proto::{
        BatchGetRequest, Entry, GetRequest, IncrementRequest, MarkIfRequest, MarkRequest,
        UnmarkRequest, Value as WireValue, dyn_data_client::DynDataClient, entry, mark_if_request,
    },
};
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::Mutex, time::timeout};
use tonic::{Status, body::Body};
use tonic_types::StatusExt as _;

use crate::{
    history::{Call, Condition, Operation, Outcome, PATIENCE, Recorder, Refusal, Seen, Value},
    support::namespace,
};

/// Whether a read asks for expire times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpireTime {
    Ask,
    Omit,
}

/// A connection to the service, which is opened again after it has closed. Clones share it.
#[derive(Clone)]
pub struct Caller {
    addr: String,
    recorder: Arc<Recorder>,
    connection: Arc<Mutex<Option<Connection>>>,
}

#[derive(Clone)]
struct Connection {
    http: http2::SendRequest<Body>,
    /// True once the server has answered on this connection.
    served: Arc<AtomicBool>,
}

impl tower_service::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reply = self.http.send_request(request);
        let served = Arc::clone(&self.served);
        Box::pin(async move {
            let reply = reply.await?;
            served.store(true, Ordering::Relaxed);
            Ok(reply)
        })
    }
}

impl Caller {
    pub fn new(addr: &str, recorder: Arc<Recorder>) -> Self {
        Self {
            addr: addr.to_owned(),
            recorder,
            connection: Arc::default(),
        }
    }

    /// The same connection, with its calls recorded in another history.
    pub fn recording(&self, recorder: &Arc<Recorder>) -> Self {
        Self {
            recorder: Arc::clone(recorder),
            ..self.clone()
        }
    }

    /// Marks a value, and records and returns the outcome.
    pub async fn mark(&self, id: u32, value: u64, ttl: Duration, deadline: Duration) -> Outcome {
        let request = MarkRequest {
            namespace: namespace(),
            id: name(id),
            value: Some(encode(value).into()),
            ttl: prost_types::Duration::try_from(ttl).ok(),
        };
        let call = Call::Mark { id, value, ttl };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.mark(wrap.request(request)).await?.into_inner();
            Ok(match reply.expire_time {
                Some(time) => Outcome::Marked(self.recorder.moment(&time)),
                None => Outcome::Malformed("a Mark without an expire time".to_owned()),
            })
        })
        .await
    }

    /// Marks a value if a condition holds, and records and returns the outcome.
    pub async fn mark_if(
        &self,
        id: u32,
        value: u64,
        ttl: Duration,
        condition: Condition,
        deadline: Duration,
    ) -> Outcome {
        let request = MarkIfRequest {
            namespace: namespace(),
            id: name(id),
            value: Some(encode(value).into()),
            ttl: prost_types::Duration::try_from(ttl).ok(),
            condition: Some(match condition {
                Condition::Absent => mark_if_request::Condition::IfAbsent(true),
                Condition::Equal(value) => mark_if_request::Condition::IfEqual(expected(value)),
            }),
        };
        let call = Call::MarkIf {
            id,
            value,
            ttl,
            condition,
        };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.mark_if(wrap.request(request)).await?.into_inner();
            let previous = match self.found(&[id], reply.previous.as_slice()) {
                Outcome::Found(mut entries) => entries.remove(0),
                malformed => return Ok(malformed),
            };
            Ok(match (reply.applied, reply.expire_time) {
                (true, Some(time)) => Outcome::Applied {
                    expire_time: self.recorder.moment(&time),
                    previous,
                },
                (false, None) => Outcome::NotApplied(previous),
                other => Outcome::Malformed(format!("applied and expire time are {other:?}")),
            })
        })
        .await
    }

    /// Removes the value if it is this one, and records and returns the outcome.
    pub async fn unmark_if(&self, id: u32, if_equal: u64, deadline: Duration) -> Outcome {
        let request = UnmarkRequest {
            namespace: namespace(),
            id: name(id),
            if_equal: Some(expected(if_equal)),
        };
        let call = Call::UnmarkIf { id, if_equal };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.unmark(wrap.request(request)).await?.into_inner();
            Ok(match reply.removed {
                true => Outcome::Unmarked,
                false => Outcome::NotUnmarked,
            })
        })
        .await
    }

    /// Adds 1 to a counter, and records and returns the outcome.
    pub async fn increment(&self, id: u32, ttl: Duration, deadline: Duration) -> Outcome {
        let request = IncrementRequest {
            namespace: namespace(),
            id: name(id),
            ttl: prost_types::Duration::try_from(ttl).ok(),
            ..IncrementRequest::default()
        };
        let call = Call::Increment { id };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.increment(wrap.request(request)).await?.into_inner();
            Ok(match reply.applied {
                true => Outcome::Counted(reply.value),
                false => Outcome::Malformed("an Increment without bounds is refused".to_owned()),
            })
        })
        .await
    }

    /// Reads a counter. One that does not exist has the value 0, as for Increment.
    pub async fn counter(&self, id: u32, deadline: Duration) -> Outcome {
        let request = GetRequest {
            namespace: namespace(),
            id: name(id),
            ..GetRequest::default()
        };
        let call = Call::ReadCounter { id };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.get(wrap.request(request)).await?.into_inner();
            Ok(match reply.entry.map(|entry| entry.value) {
                Some(None) => Outcome::Counted(0),
                Some(Some(entry::Value::IntValue(value))) => Outcome::Counted(value),
                other => Outcome::Malformed(format!("a counter is {other:?}")),
            })
        })
        .await
    }

    pub async fn get(&self, id: u32, expire_time: ExpireTime, deadline: Duration) -> Outcome {
        let request = GetRequest {
            namespace: namespace(),
            id: name(id),
            include_expire_time: expire_time == ExpireTime::Ask,
        };
        let call = Call::Read { ids: vec![id] };
        self.record(call, deadline, false, async |mut client, wrap| {
            let reply = client.get(wrap.request(request)).await?.into_inner();
            Ok(self.found(&[id], reply.entry.as_slice()))
        })
        .await
    }

    pub async fn batch_get(&self, ids: Vec<u32>, expire_time: ExpireTime, deadline: Duration) {
        _ = self.batch(ids, expire_time, deadline, false).await;
    }

    /// Reads ids at the end of a run. Returns true on success.
    pub async fn closing_read(&self, ids: Vec<u32>, deadline: Duration) -> bool {
        let outcome = self.batch(ids, ExpireTime::Omit, deadline, true).await;
        matches!(outcome, Outcome::Found(_))
    }

    async fn batch(
        &self,
        ids: Vec<u32>,
        expire_time: ExpireTime,
        deadline: Duration,
        closing: bool,
    ) -> Outcome {
        let request = BatchGetRequest {
            namespace: namespace(),
            ids: ids.iter().copied().map(name).collect(),
            include_expire_time: expire_time == ExpireTime::Ask,
        };
        let call = Call::Read { ids: ids.clone() };
        self.record(call, deadline, closing, async |mut client, wrap| {
            let reply = client.batch_get(wrap.request(request)).await?.into_inner();
            Ok(self.found(&ids, &reply.entries))
        })
        .await
    }

    fn found(&self, ids: &[u32], entries: &[Entry]) -> Outcome {
        let asked: Vec<_> = ids.iter().copied().map(name).collect();
        let got: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
        if asked != got {
            return Outcome::Malformed(format!("asked for {asked:?}, got entries of {got:?}"));
        }
        let seen = entries.iter().map(|entry| Seen {
            value: decode(entry.value.as_ref()),
            expire_time: entry
                .expire_time
                .as_ref()
                .map(|time| self.recorder.moment(time)),
        });
        Outcome::Found(seen.collect())
    }

    /// Makes a call with a deadline, and records and returns its outcome.
    async fn record(
        &self,
        call: Call,
        deadline: Duration,
        closing: bool,
        act: impl AsyncFnOnce(DynDataClient<Connection>, Deadline) -> Result<Outcome, Status>,
    ) -> Outcome {
        let start = self.recorder.now();
        let outcome = match timeout(deadline + PATIENCE, self.connected()).await {
            Err(_) => Outcome::NotAccepted("connecting takes too long".to_owned()),
            Ok(Err(error)) => Outcome::NotAccepted(error),
            Ok(Ok(connection)) => {
                let served = Arc::clone(&connection.served);
                let origin = format!("http://{}", self.addr).parse();
                let client =
                    DynDataClient::with_origin(connection, origin.expect("an address is a URI"));
                match timeout(deadline + PATIENCE, act(client, Deadline(deadline))).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(status)) => failed(&status, served.load(Ordering::Relaxed)),
                    Err(_) => Outcome::Unanswered,
                }
            }
        };
        self.recorder.record(Operation {
            start,
            end: self.recorder.now(),
            deadline,
            call,
            outcome: outcome.clone(),
            closing,
            stalled: Duration::ZERO,
        });
        outcome
    }

    /// The open connection, or a new one.
    async fn connected(&self) -> Result<Connection, String> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = &mut *slot {
            let usable = std::future::poll_fn(|cx| connection.http.poll_ready(cx)).await;
            if usable.is_ok() {
                return Ok(connection.clone());
            }
        }
        *slot = None;
        let connect = async {
            let socket = TcpStream::connect(&self.addr).await?;
            socket.set_nodelay(true)?;
            std::io::Result::Ok(socket)
        };
        let socket = connect.await.map_err(|error| format!("connect: {error}"))?;
        let (http, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| format!("handshake: {error}"))?;
        // This ends with the connection. Every call on the connection gets its error too.
        tokio::spawn(driver);
        let connection = Connection {
            http,
            served: Arc::default(),
        };
        *slot = Some(connection.clone());
        Ok(connection)
    }
}

/// The deadline of a request.
struct Deadline(Duration);

impl Deadline {
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.0);
        request
    }
}

/// The outcome of a failed call. tonic makes a status of its own if the connection failed.
pub fn failed(status: &Status, served: bool) -> Outcome {
    if status.source().is_none() {
        let info = status.get_details_error_info();
        return Outcome::Refused(Refusal {
            code: status.code(),
            outcome: info
                .as_ref()
                .and_then(|info| info.metadata.get("outcome").cloned()),
            info: info.map(|info| (info.domain, info.reason)),
            pushback: status
                .metadata()
                .get("grpc-retry-pushback-ms")
                .and_then(|text| text.to_str().ok()?.parse().ok()),
            message: status.message().to_owned(),
        });
    }
    let mut words = Vec::new();
    let mut refused = false;
    let mut cause = status.source();
    while let Some(error) = cause {
        words.push(error.to_string());
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            // The request was never sent.
            refused |= error.is_canceled();
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // GOAWAY fails only the calls that the server has not accepted.
            refused |= error.is_remote()
                && (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
                    || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = error.source();
    }
    let words = words.join(": ");
    // Without any answer on this connection, the server has not accepted it.
    if refused || !served {
        Outcome::NotAccepted(words)
    } else {
        Outcome::CutOff(words)
    }
}

/// Ids whose difference is a multiple of this share a slot of a cluster.
pub const SAME_SLOT: u32 = 50;

/// The text of an id.
pub fn name(id: u32) -> String {
    // The part in braces decides the slot.
    format!("{{{}}}{id}", id % SAME_SLOT)
}

/// Ints, strings and bytes take turns.
fn encode(value: u64) -> model::Value<'static> {
    match value % 3 {
        0 => model::Value::Int(i64::try_from(value).unwrap_or(i64::MAX)),
        1 => model::Value::String(value.to_string().into()),
        _ => model::Value::Bytes(value.to_string().into_bytes().into()),
    }
}

fn expected(value: u64) -> WireValue {
    WireValue {
        kind: Some(encode(value).into()),
    }
}

fn decode(value: Option<&entry::Value>) -> Value {
    let (number, kind) = match value {
        None => return Value::Absent,
        Some(entry::Value::IntValue(number)) => (u64::try_from(*number).ok(), 0),
        Some(entry::Value::StringValue(text)) => (text.parse().ok(), 1),
        Some(entry::Value::BytesValue(bytes)) => (
            std::str::from_utf8(bytes)
                .ok()
                .and_then(|text| text.parse().ok()),
            2,
        ),
    };
    match number {
        Some(number) if number % 3 == kind => Value::Marked(number),
        _ => Value::Foreign(format!("{value:?}")),
    }
}

//! From the headers of a request to a call: which RPC it is, who makes it, and what its family
//! needs.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE, request::Parts};

use super::{
    deadline::grpc_timeout,
    feed::{Feeder, feed},
    guard::Guard,
    message_reader::MessageReader,
    reply_stream::ReplyStream,
    shared::ConnectionCalls,
    state::{Call, CallState, Handler},
};
use crate::{
    auth::settings::Reflection,
    budget::CALL_BYTES,
    error::{Error, previous_attempts},
    rpc::{Family, Rpc},
    service::{CallContext, WriteStarted, reflection},
};

/// Makes a call from the head of its request. The feeder is for a handler that reads the request as
/// a stream.
pub(super) fn begin(calls: &Arc<ConnectionCalls>, head: &Parts) -> (Call, Option<Box<Feeder>>) {
    let worker = &calls.worker;
    let rpc = Rpc::from_path(head.uri.path());
    let tracing = worker.tracing.as_ref();
    let span = tracing.map(|tracing| tracing.call(rpc, &head.headers));
    let mut guard = Guard::start(&worker.recorder, rpc, span);
    let write = rpc.filter(|rpc| rpc.is_write());
    let write_started = write.map(|_| WriteStarted::default());
    let mut feeder = None;
    let headers = &head.headers;
    let state = match (not_protobuf(head), rpc) {
        (Some(refused), _) => refused,
        (None, None) => unknown(calls, headers, &mut guard),
        (None, Some(rpc)) => match rpc.family() {
            Family::Values => values(calls, rpc, headers, &mut guard, write_started.clone()),
            Family::Watch => watch(calls, rpc, headers, &mut guard),
            Family::Health => health(calls, rpc, headers, &guard),
            Family::Reflection => reflect(calls, headers, &mut guard, &mut feeder),
        },
    };
    let state = state.unwrap_or_else(CallState::refused);
    let previous_attempts = previous_attempts(&head.headers);
    let call = Call::new(
        Arc::clone(calls),
        guard,
        state,
        write_started,
        previous_attempts,
    );
    (call, feeder)
}

/// A call of the service itself.
fn values(
    calls: &ConnectionCalls,
    rpc: Rpc,
    headers: &HeaderMap,
    guard: &mut Guard,
    write_started: Option<WriteStarted>,
) -> Result<CallState, Error> {
    let grant = calls.identify(headers)?;
    guard.identified(&grant);
    let context = CallContext {
        rpc,
        grant,
        span: guard.span().cloned(),
        write_started,
    };
    let timeout = grpc_timeout(headers)?;
    let max_message_bytes = calls.max_message_bytes(rpc);
    read_message(
        calls,
        max_message_bytes,
        timeout,
        guard,
        Handler::Values(context),
    )
}

/// A watch. It needs what the other calls need, but has no deadline of the server.
fn watch(
    calls: &ConnectionCalls,
    rpc: Rpc,
    headers: &HeaderMap,
    guard: &mut Guard,
) -> Result<CallState, Error> {
    let grant = calls.identify(headers)?;
    guard.identified(&grant);
    let context = CallContext {
        rpc,
        grant,
        span: guard.span().cloned(),
        write_started: None,
    };
    let timeout = grpc_timeout(headers)?;
    let limits = calls.stream_limits(timeout, guard.started())?;
    let handler = Handler::Watch(Box::new(context), limits);
    read_message(calls, calls.max_message_bytes(rpc), timeout, guard, handler)
}

/// A call of the health service. Probes need no credentials, and do not count as calls in flight.
fn health(
    calls: &ConnectionCalls,
    rpc: Rpc,
    headers: &HeaderMap,
    guard: &Guard,
) -> Result<CallState, Error> {
    let timeout = grpc_timeout(headers)?;
    let handler = match rpc {
        Rpc::HealthCheck => Handler::HealthCheck,
        Rpc::HealthList => Handler::HealthList,
        Rpc::HealthWatch => Handler::HealthWatch(calls.stream_limits(timeout, guard.started())?),
        // Not of this family.
        _ => return Err(Error::Unimplemented),
    };
    read_message(calls, calls.max_message_bytes(rpc), timeout, guard, handler)
}

fn read_message(
    calls: &ConnectionCalls,
    max_message_bytes: usize,
    timeout: Option<Duration>,
    guard: &Guard,
    handler: Handler,
) -> Result<CallState, Error> {
    Ok(CallState::Reading {
        reader: MessageReader::new(max_message_bytes, calls.budget.reserve(CALL_BYTES)?),
        handler,
        deadline: calls.deadline(timeout, guard.started()),
        waiting: None,
    })
}

/// A call of reflection.
fn reflect(
    calls: &ConnectionCalls,
    headers: &HeaderMap,
    guard: &mut Guard,
    feeder: &mut Option<Box<Feeder>>,
) -> Result<CallState, Error> {
    match calls.worker.reflection {
        Reflection::Open => {}
        Reflection::Authenticated => guard.identified(&calls.identify(headers)?),
        Reflection::Off => return unknown(calls, headers, guard),
    }
    let timeout = grpc_timeout(headers)?;
    let limits = calls.stream_limits(timeout, guard.started())?;
    let (sender, pieces) = feed();
    let replies = reflection::answer(pieces, calls.reply_encoder())?;
    *feeder = Some(Box::new(sender));
    Ok(CallState::Stream(Some(ReplyStream::new(replies, limits))))
}

/// A call of an RPC that the server does not have. A caller who is not known does not learn that.
fn unknown(
    calls: &ConnectionCalls,
    headers: &HeaderMap,
    guard: &mut Guard,
) -> Result<CallState, Error> {
    guard.identified(&calls.identify(headers)?);
    Err(Error::Unimplemented)
}

/// Refuses a request that is no gRPC call with protobuf messages. Only POST with a content type of
/// gRPC is a gRPC call.
fn not_protobuf(head: &Parts) -> Option<Result<CallState, Error>> {
    if head.method != Method::POST {
        return Some(Ok(CallState::NotGrpc {
            status: StatusCode::METHOD_NOT_ALLOWED,
            has_text: head.method != Method::HEAD,
        }));
    }
    match ContentType::of(&head.headers) {
        ContentType::Protobuf => None,
        ContentType::OtherFormat => Some(Err(Error::FormatUnsupported)),
        ContentType::NotGrpc => Some(Ok(CallState::NotGrpc {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            has_text: true,
        })),
    }
}

/// What the content type of a request says about its messages.
#[derive(Debug, Clone, Copy)]
enum ContentType {
    Protobuf,
    /// gRPC messages in a format that the server does not have.
    OtherFormat,
    /// Another protocol, such as gRPC-Web.
    NotGrpc,
}

impl ContentType {
    fn of(headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        match content_type.and_then(|value| value.strip_prefix(b"application/grpc")) {
            Some([] | [b';', ..]) => Self::Protobuf,
            Some(rest) if rest.starts_with(b"+proto") => Self::Protobuf,
            Some([b'+', ..]) => Self::OtherFormat,
            Some(_) | None => Self::NotGrpc,
        }
    }
}

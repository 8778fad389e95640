//! What travels with a call to its end: the guard that records it, and the response bodies that
//! tell the guard how it ended.
//!
//! A call is recorded exactly once and as what it was, whatever ends it: its status in the head or
//! in the trailers, or, if it is dropped before either, the caller's going away.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};

use super::{admission::StreamPlace, unary::ReplyBody};
use crate::{
    auth::{Caller, Grant},
    error::Error,
    metrics::{Method, Recorder},
    telemetry::OncePerSecond,
    trace::{CallSpan, is_servers_fault},
};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Records one call when it ends, whatever ends it.
pub(super) struct Guard {
    recorder: Arc<Recorder>,
    method: Method,
    started: Instant,
    code: Code,
    span: Option<CallSpan>,
    caller: Option<Arc<Caller>>,
}

impl Guard {
    /// The call begins.
    pub(super) fn start(recorder: &Arc<Recorder>, method: Method, span: Option<CallSpan>) -> Self {
        recorder.started(method);
        Self {
            recorder: Arc::clone(recorder),
            method,
            started: Instant::now(),
            // Until something better is known: dropped before its end means that the caller left.
            code: Code::Cancelled,
            span,
            caller: None,
        }
    }

    /// When the call began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The call's span, if there are traces.
    pub(super) fn span(&self) -> Option<&CallSpan> {
        self.span.as_ref()
    }

    /// Who makes the call is known.
    pub(super) fn identified(&mut self, grant: &Grant) {
        if let Grant::Of(caller) = grant {
            if let Some(span) = &self.span {
                span.identified(caller);
            }
            self.caller = Some(Arc::clone(caller));
        }
    }

    /// The call fails.
    pub(super) fn failed(&self, error: &Error) {
        if let Error::Overloaded = error {
            self.recorder.shed();
        }
        let (code, reason) = error.code_and_reason();
        if let Some(span) = &self.span {
            span.failed(reason);
        }
        self.log_code(code, reason);
    }

    /// Logs how the call fails, once a second at most: callers must not be able to fill the log,
    /// nor to hide with their own mistakes what is wrong with the server.
    pub(super) fn log_code(&self, code: Code, reason: &str) {
        static CALLERS: Lines = Lines::new();
        static SERVERS: Lines = Lines::new();
        let servers_fault = is_servers_fault(code);
        let lines = if servers_fault { &SERVERS } else { &CALLERS };
        let Some(unlogged) = lines.take() else { return };
        let (service, method) = self.method.service_and_name();
        let caller = self.caller.as_deref().map(tracing::field::display);
        let trace_id = self.span.as_ref().map(CallSpan::trace_id);
        let trace_id = trace_id.map(tracing::field::display);
        // The level of a line has to be known when it is compiled.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    service,
                    method,
                    ?code,
                    reason,
                    caller,
                    trace_id,
                    unlogged,
                    "call failed"
                )
            };
        }
        if servers_fault {
            line!(warn);
        } else {
            line!(info);
        }
    }

    /// The call ends now, with `code`.
    pub(super) fn finish(mut self, code: Code) {
        self.code = code;
    }
}

/// One line a second, and how many have not been written since the last.
struct Lines {
    limit: OncePerSecond,
    unlogged: AtomicU64,
}

impl Lines {
    const fn new() -> Self {
        Self {
            limit: OncePerSecond::new(),
            unlogged: AtomicU64::new(0),
        }
    }

    /// Whether a line may be written; how many could not be.
    fn take(&self) -> Option<u64> {
        if self.limit.take() {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.recorder
            .handled(self.method, self.code, self.started.elapsed());
        if let Some(span) = &self.span {
            span.end(self.code);
        }
    }
}

/// A response body that tells the guard how the call ended.
pub(super) struct CallBody {
    kind: Kind,
    guard: Option<Guard>,
}

enum Kind {
    Reply(ReplyBody),
    Other(Body),
}

impl CallBody {
    /// One message and OK.
    pub(super) fn reply(reply: ReplyBody, guard: Option<Guard>) -> Self {
        Self {
            kind: Kind::Reply(reply),
            guard,
        }
    }

    /// Anything else.
    pub(super) fn other(body: Body, guard: Option<Guard>) -> Self {
        Self {
            kind: Kind::Other(body),
            guard,
        }
    }

    fn finish(&mut self, code: Code) {
        if let Some(guard) = self.guard.take() {
            guard.finish(code);
        }
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut self.kind {
            Kind::Reply(reply) => {
                let frame = reply.next_frame();
                if reply.is_end_stream() {
                    self.finish(Code::Ok);
                }
                Poll::Ready(frame.map(Ok))
            }
            Kind::Other(body) => {
                let polled = ready!(Pin::new(body).poll_frame(cx));
                let ended = match &polled {
                    Some(Ok(frame)) => frame.trailers_ref().and_then(code),
                    Some(Err(status)) => Some(status.code()),
                    None => None,
                };
                if let Some(code) = ended {
                    self.finish(code);
                }
                Poll::Ready(polled)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Reply(reply) => reply.is_end_stream(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Reply(_) => SizeHint::default(),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

/// A response stream that ends with UNAVAILABLE when the drain begins: a health watch would
/// otherwise keep its connection open for ever.
pub(super) struct UntilDrain {
    inner: Body,
    drain: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _place: Option<StreamPlace>,
}

impl UntilDrain {
    pub(super) fn new(
        inner: Body,
        mut draining: watch::Receiver<()>,
        place: Option<StreamPlace>,
    ) -> Self {
        Self {
            inner,
            _place: place,
            drain: Some(Box::pin(async move {
                // The channel carries nothing; its end is the message.
                _ = draining.changed().await;
            })),
        }
    }
}

impl HttpBody for UntilDrain {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_ready() {
            return polled;
        }
        let Some(drain) = &mut self.drain else {
            return Poll::Ready(None);
        };
        ready!(drain.as_mut().poll(cx));
        self.drain = None;
        let mut trailers = HeaderMap::new();
        // The message is plain ASCII, so it always fits into a header.
        _ = Status::unavailable("shutting down").add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.drain.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The gRPC status in these headers or trailers.
pub(super) fn code(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(STATUS)
        .map(|status| Code::from_bytes(status.as_bytes()))
}

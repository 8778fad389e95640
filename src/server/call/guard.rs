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
use tonic::{Code, Status, body::Body};

use super::{reply_stream::MessageStream, unary::ReplyBody};
use crate::{
    auth::{Caller, Grant},
    budget::Share,
    error::Error,
    metrics::{Method, Recorder},
    telemetry::OncePerSecond,
    trace::{CallSpan, is_servers_fault},
};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Records one call when it ends, whatever ends it.
pub(crate) struct Guard {
    recorder: Arc<Recorder>,
    method: Method,
    started: Instant,
    code: Code,
    span: Option<CallSpan>,
    caller: Option<Arc<Caller>>,
}

impl Guard {
    /// The call begins.
    pub(crate) fn start(recorder: &Arc<Recorder>, method: Method, span: Option<CallSpan>) -> Self {
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
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// The call's span, if there are traces.
    pub(crate) fn span(&self) -> Option<&CallSpan> {
        self.span.as_ref()
    }

    /// Who makes the call is known.
    pub(crate) fn identified(&mut self, grant: &Grant) {
        if let Grant::Of(caller) = grant {
            if let Some(span) = &self.span {
                span.identified(caller);
            }
            self.caller = Some(Arc::clone(caller));
        }
    }

    /// The call fails.
    pub(crate) fn failed(&self, error: &Error) {
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
    fn log_code(&self, code: Code, reason: &str) {
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
    pub(crate) fn finish(mut self, code: Code) {
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
pub(crate) struct CallBody {
    kind: Kind,
    guard: Option<Guard>,
    /// For what is not counted with its bytes.
    _share: Option<Share>,
}

enum Kind {
    Reply(ReplyBody),
    /// None after the end.
    Stream(Option<MessageStream>),
    Other(Body),
}

impl CallBody {
    /// One message and OK.
    pub(crate) fn reply(reply: ReplyBody, guard: Option<Guard>) -> Self {
        Self {
            kind: Kind::Reply(reply),
            guard,
            _share: None,
        }
    }

    /// Messages, and then a status.
    pub(crate) fn stream(stream: MessageStream, guard: Option<Guard>) -> Self {
        Self {
            kind: Kind::Stream(Some(stream)),
            guard,
            _share: None,
        }
    }

    /// What comes with a status in its head: nothing, or a text for who does not speak gRPC.
    pub(crate) fn other(body: Body, share: Option<Share>) -> Self {
        Self {
            kind: Kind::Other(body),
            guard: None,
            _share: share,
        }
    }

    fn finish(&mut self, code: Code) {
        if let Some(guard) = self.guard.take() {
            guard.finish(code);
        }
    }

    /// Records the end of a stream; gives its trailers.
    fn end_stream(&mut self, end: Result<(), Error>) -> HeaderMap {
        let status = match end {
            Ok(()) => Status::ok(""),
            Err(error) => {
                // Every watch ends with the process, which is no news.
                if let Some(guard) = &self.guard
                    && !matches!(error, Error::ShuttingDown)
                {
                    guard.failed(&error);
                }
                Status::from(error)
            }
        };
        self.finish(status.code());
        let mut trailers = HeaderMap::new();
        // Our messages are plain ASCII, so they always fit into a header.
        _ = status.add_header(&mut trailers);
        trailers
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
            Kind::Stream(stream) => {
                let Some(messages) = stream else {
                    return Poll::Ready(None);
                };
                let end = match ready!(messages.poll_next(cx)) {
                    Some(Ok(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                    Some(Err(error)) => Err(error),
                    None => Ok(()),
                };
                *stream = None;
                Poll::Ready(Some(Ok(Frame::trailers(self.end_stream(end)))))
            }
            Kind::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Reply(reply) => reply.is_end_stream(),
            Kind::Stream(stream) => stream.is_none(),
            Kind::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Reply(_) | Kind::Stream(_) => SizeHint::default(),
            Kind::Other(body) => body.size_hint(),
        }
    }
}

/// The gRPC status in these headers or trailers.
pub(crate) fn code(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(STATUS)
        .map(|status| Code::from_bytes(status.as_bytes()))
}

//! One call, from its request's first byte to the head of its response.
//!
//! A call first waits for its message, and holds no more than that takes. Only with a complete
//! message does it become one of the worker's calls in flight. Around every call is a [`Guard`]
//! that records it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use tonic::{Code, body::Body};

use super::{
    admission::InFlight,
    deadline::Deadline,
    dispatch::ConnectionDispatch,
    guard::{CallBody, Guard, code},
    message::{MessageReader, NoMessage},
    reply_stream::{MessageStream, StreamLimits},
    unary::{self, ReplyBody, Rpc},
};
use crate::{
    budget::{CALL_BYTES, Share},
    error::Error,
    service::{Asked, CallContext, health as health_calls},
};

/// A name of a service or a symbol, with room to spare: what health and reflection are asked.
pub(crate) const MAX_SMALL_MESSAGE_BYTES: usize = 4 * 1024;

/// How long the request of any call may be incomplete.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(3);

/// The caller has reset the stream, or its connection has ended: there is nobody to answer.
pub(crate) struct CallerGone;

/// A call until the head of its response.
pub(crate) struct Call {
    dispatch: ConnectionDispatch,
    guard: Option<Guard>,
    running: Running,
    /// For a call that writes.
    asked: Option<Asked>,
    previous_attempts: u32,
}

pub(crate) enum Running {
    /// The message is not there yet.
    Reading {
        reader: MessageReader,
        message_is: Message,
        deadline: Instant,
        /// Set once the message turns out to be incomplete.
        waiting: Option<Deadline>,
    },
    /// A method of the service itself.
    DynData {
        call: Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>,
        deadline: Deadline,
        _in_flight: InFlight,
    },
    /// A health check that has been answered.
    Answered(Bytes),
    /// A health watch, or reflection. None after its head.
    Stream(Option<MessageStream>),
    /// Failed before it began.
    Refused(Option<Error>),
    /// HTTP/2, but no gRPC; the HTTP status says what is wrong.
    NotGrpc {
        status: StatusCode,
        /// HEAD gets no body.
        has_text: bool,
    },
}

/// What a message is for.
pub(crate) enum Message {
    DynData(Rpc, CallContext),
    Check,
    List,
    Watch(StreamLimits),
}

impl Running {
    pub(crate) fn refused(error: Error) -> Self {
        Self::Refused(Some(error))
    }
}

impl Call {
    pub(crate) fn new(
        dispatch: ConnectionDispatch,
        guard: Guard,
        running: Running,
        asked: Option<Asked>,
        previous_attempts: u32,
    ) -> Self {
        Self {
            dispatch,
            guard: Some(guard),
            running,
            asked,
            previous_attempts,
        }
    }

    /// Whether all that is left is to say why not.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.running, Running::Refused(_) | Running::NotGrpc { .. })
    }

    /// The response's head and body.
    pub(crate) fn poll(
        &mut self,
        request: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<CallBody>, CallerGone>> {
        if let Running::Reading { .. } = self.running {
            let (message, share) = match ready!(self.poll_message(request, cx)) {
                Ok(message) => message,
                Err(NoMessage::CallerGone) => return Poll::Ready(Err(CallerGone)),
                Err(NoMessage::Refused(error)) => {
                    return Poll::Ready(Ok(self.fail(error)));
                }
            };
            self.running = self.run(message, share).unwrap_or_else(Running::refused);
        }
        let response = match &mut self.running {
            Running::DynData { call, deadline, .. } => {
                let result = ready!(poll_within(call.as_mut(), deadline, cx));
                match result.and_then(|result| result) {
                    Ok(message) => self.reply(message),
                    Err(error) => self.fail(error),
                }
            }
            Running::Answered(message) => {
                let message = std::mem::take(message);
                self.reply(message)
            }
            Running::Stream(stream) => match stream.take() {
                Some(stream) => respond(CallBody::stream(stream, self.guard.take())),
                None => self.fail(Error::Internal),
            },
            Running::Refused(error) => {
                let error = error.take().unwrap_or(Error::Internal);
                self.fail(error)
            }
            Running::Reading { .. } => self.fail(Error::Internal),
            Running::NotGrpc { status, has_text } => {
                let (status, has_text) = (*status, *has_text);
                self.not_grpc(status, has_text)
            }
        };
        Poll::Ready(Ok(response))
    }

    fn poll_message(
        &mut self,
        request: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, Share), NoMessage>> {
        let Running::Reading {
            reader,
            deadline,
            waiting,
            ..
        } = &mut self.running
        else {
            return Poll::Ready(Err(Error::Internal.into()));
        };
        let polled = reader.poll(request, cx);
        if polled.is_pending() {
            let waiting = waiting.get_or_insert_with(|| {
                let body_deadline = Instant::now() + BODY_TIMEOUT;
                let deadlines = &self.dispatch.worker().deadlines;
                deadlines.enter(body_deadline.min(*deadline))
            });
            ready!(waiting.poll_passed(cx));
            return Poll::Ready(Err(Error::DeadlineExceeded.into()));
        }
        polled
    }

    /// Starts what the message is for.
    fn run(&mut self, message: Bytes, share: Share) -> Result<Running, Error> {
        let running = std::mem::replace(&mut self.running, Running::Refused(None));
        let Running::Reading {
            message_is,
            deadline,
            ..
        } = running
        else {
            return Err(Error::Internal);
        };
        match message_is {
            Message::DynData(rpc, context) => {
                let worker = self.dispatch.worker();
                let in_flight = InFlight::enter(&worker.recorder, worker.max_in_flight)?;
                Ok(Running::DynData {
                    call: Box::pin(unary::call(
                        Arc::clone(&worker.service),
                        rpc,
                        message,
                        worker.max_reply_bytes,
                        share,
                        context,
                    )),
                    deadline: worker.deadlines.enter(deadline),
                    _in_flight: in_flight,
                })
            }
            Message::Check => {
                let limits = self.dispatch.reply_limits();
                let health = self.dispatch.worker().health.clone();
                health_calls::check(health, message, limits).map(Running::Answered)
            }
            Message::List => {
                let limits = self.dispatch.reply_limits();
                let health = self.dispatch.worker().health.clone();
                health_calls::list(health, message, limits).map(Running::Answered)
            }
            Message::Watch(stream_limits) => {
                let limits = self.dispatch.reply_limits();
                let health = self.dispatch.worker().health.clone();
                let stream = health_calls::watch(health, message, limits, stream_limits)?;
                Ok(Running::Stream(Some(stream)))
            }
        }
    }

    /// One message and OK.
    fn reply(&mut self, message: Bytes) -> Response<CallBody> {
        respond(CallBody::reply(ReplyBody::new(message), self.guard.take()))
    }

    /// An error that is known by now is in the head, without a body.
    fn fail(&mut self, error: Error) -> Response<CallBody> {
        let outcome = self.asked.as_ref();
        let outcome = outcome.map(|asked| error.outcome(asked.get()));
        if let Some(guard) = &self.guard {
            guard.failed(&error);
        }
        let response = error
            .into_status(outcome, self.previous_attempts)
            .into_http();
        if let Some(guard) = self.guard.take()
            && let Some(code) = code(response.headers())
        {
            guard.finish(code);
        }
        response.map(|body| CallBody::other(body, None))
    }

    /// The answer to what is no gRPC call: only POST with a content type of gRPC is one.
    fn not_grpc(&mut self, status: StatusCode, has_text: bool) -> Response<CallBody> {
        if let Some(guard) = self.guard.take() {
            guard.finish(Code::InvalidArgument);
        }
        let text =
            "this is a gRPC server; it takes POST, and the content-type is application/grpc\n";
        // Without room for the text, the status has to do.
        let share = self.dispatch.held().take(CALL_BYTES).ok();
        let share = share.filter(|_| has_text);
        let body = match share {
            Some(_) => Body::new(Full::from(text)),
            None => Body::empty(),
        };
        let mut response = Response::new(CallBody::other(body, share));
        *response.status_mut() = status;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

fn respond(body: CallBody) -> Response<CallBody> {
    let mut response = Response::new(body);
    *response.headers_mut() = unary::reply_headers();
    response
}

/// Polls a call until its deadline. A panic is to end that call alone: what a handler leaves behind
/// when it panics is dropped with its future, and the stores are consistent wherever they can panic.
fn poll_within<F: Future + ?Sized>(
    call: Pin<&mut F>,
    deadline: &Deadline,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Error>> {
    match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => deadline
            .poll_passed(cx)
            .map(|()| Err(Error::DeadlineExceeded)),
        Err(_) => Poll::Ready(Err(Error::Internal)),
    }
}

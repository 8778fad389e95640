//! One call as a state machine, from its request's first byte to the head of its response.
//!
//! A call first waits for its message, and reserves no more memory than that takes. Only with a
//! complete message does it become one of the worker's calls in flight.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use tonic::{Code, body::Body};

use super::{
    admission::InFlight,
    body::{CallBody, ReplyBody},
    deadline::Deadline,
    guard::Guard,
    message_reader::{BODY_TIMEOUT, MessageReader, NoMessage},
    reply_stream::{ReplyStream, StreamLimits},
    shared::ConnectionCalls,
};
use crate::{
    budget::{CALL_BYTES, Reservation},
    error::{Error, FailedCall},
    rpc::Rpc,
    service::{CallContext, WriteStarted, message::UnaryReplyEncoder, values, watch},
};

/// The caller has reset the stream, or its connection has ended: there is nobody to answer.
pub(super) struct CallerGone;

/// A call until the head of its response.
pub(super) struct Call {
    calls: Arc<ConnectionCalls>,
    guard: Option<Guard>,
    state: CallState,
    /// `None` for a call that only reads.
    write_started: Option<WriteStarted>,
    previous_attempts: u32,
}

/// What a call waits for, or how it is answered.
pub(super) enum CallState {
    /// Waits for the message.
    Reading {
        reader: MessageReader,
        handler: Handler,
        deadline: Instant,
        /// Set once the message turns out to be incomplete.
        waiting: Option<Deadline>,
    },
    /// Waits for a handler of the service itself.
    InFlight {
        reply: Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>,
        deadline: Deadline,
        _in_flight: InFlight,
    },
    /// The handler has replied at once.
    Replied(Bytes),
    /// The reply is a stream. `None` after its head.
    Stream(Option<ReplyStream>),
    /// Failed before a handler began.
    Refused(Option<Error>),
    /// HTTP/2, but no gRPC. The HTTP status says what is wrong.
    NotGrpc {
        status: StatusCode,
        /// HEAD gets no body.
        has_text: bool,
    },
}

/// Who handles the message. What only streams need is boxed, so that other calls are small.
pub(super) enum Handler {
    Values(CallContext),
    Watch(Box<CallContext>, Box<StreamLimits>),
    HealthCheck,
    HealthList,
    HealthWatch(Box<StreamLimits>),
}

impl CallState {
    pub(super) fn refused(error: Error) -> Self {
        Self::Refused(Some(error))
    }
}

impl Call {
    pub(super) fn new(
        calls: Arc<ConnectionCalls>,
        guard: Guard,
        state: CallState,
        write_started: Option<WriteStarted>,
        previous_attempts: u32,
    ) -> Self {
        Self {
            calls,
            guard: Some(guard),
            state,
            write_started,
            previous_attempts,
        }
    }

    /// Whether the call has failed already, so that only its error is left to send.
    pub(super) fn is_refused(&self) -> bool {
        matches!(
            self.state,
            CallState::Refused(_) | CallState::NotGrpc { .. }
        )
    }

    /// The response's head and body.
    pub(super) fn poll(
        &mut self,
        request: &mut RecvStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<CallBody>, CallerGone>> {
        if let CallState::Reading { .. } = self.state {
            let (message, reservation) = match ready!(self.poll_message(request, cx)) {
                Ok(message) => message,
                Err(NoMessage::CallerGone) => return Poll::Ready(Err(CallerGone)),
                Err(NoMessage::Refused(error)) => {
                    return Poll::Ready(Ok(self.fail(error)));
                }
            };
            let state = self.handle(message, reservation);
            self.state = state.unwrap_or_else(CallState::refused);
        }
        let response = match &mut self.state {
            CallState::InFlight {
                reply, deadline, ..
            } => {
                let reply = ready!(poll_within(reply.as_mut(), deadline, cx));
                match reply.and_then(|reply| reply) {
                    Ok(message) => self.reply(message),
                    Err(error) => self.fail(error),
                }
            }
            CallState::Replied(message) => {
                let message = std::mem::take(message);
                self.reply(message)
            }
            CallState::Stream(stream) => match stream.take() {
                Some(stream) => CallBody::stream(stream, self.guard.take()).into_response(),
                None => self.fail(Error::Internal),
            },
            CallState::Refused(error) => {
                let error = error.take().unwrap_or(Error::Internal);
                self.fail(error)
            }
            CallState::Reading { .. } => self.fail(Error::Internal),
            CallState::NotGrpc { status, has_text } => {
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
    ) -> Poll<Result<(Bytes, Reservation), NoMessage>> {
        let CallState::Reading {
            reader,
            deadline,
            waiting,
            ..
        } = &mut self.state
        else {
            return Poll::Ready(Err(Error::Internal.into()));
        };
        let polled = reader.poll(request, cx);
        if polled.is_pending() {
            let waiting = waiting.get_or_insert_with(|| {
                let body_deadline = Instant::now() + BODY_TIMEOUT;
                let deadlines = &self.calls.worker.deadlines;
                deadlines.enter(body_deadline.min(*deadline))
            });
            ready!(waiting.poll_passed(cx));
            return Poll::Ready(Err(Error::DeadlineExceeded.into()));
        }
        polled
    }

    /// Hands the message to its handler.
    fn handle(&mut self, message: Bytes, reservation: Reservation) -> Result<CallState, Error> {
        let state = std::mem::replace(&mut self.state, CallState::Refused(None));
        let CallState::Reading {
            handler, deadline, ..
        } = state
        else {
            return Err(Error::Internal);
        };
        let worker = &self.calls.worker;
        match handler {
            Handler::Values(context) => {
                let in_flight = InFlight::enter(&worker.recorder, worker.max_in_flight)?;
                let encoder = UnaryReplyEncoder {
                    max_reply_bytes: worker.max_reply_bytes,
                    reservation,
                };
                let service = Arc::clone(&worker.service);
                Ok(CallState::InFlight {
                    reply: Box::pin(values::call(service, context, message, encoder)),
                    deadline: worker.deadlines.enter(deadline),
                    _in_flight: in_flight,
                })
            }
            Handler::Watch(context, limits) => {
                let encoder = self.calls.reply_encoder();
                let access = worker.access.clone();
                let replies = watch::watch(&worker.service, *context, message, encoder, access)?;
                Ok(CallState::Stream(Some(ReplyStream::new(replies, limits))))
            }
            Handler::HealthCheck => {
                let reply = worker.health.check(message, &self.calls.reply_encoder());
                reply.map(CallState::Replied)
            }
            Handler::HealthList => {
                let reply = worker.health.list(message, &self.calls.reply_encoder());
                reply.map(CallState::Replied)
            }
            Handler::HealthWatch(limits) => {
                let health = worker.health.clone();
                let replies = health.watch(message, self.calls.reply_encoder())?;
                Ok(CallState::Stream(Some(ReplyStream::new(replies, limits))))
            }
        }
    }

    /// The response with one message and the status OK.
    fn reply(&mut self, message: Bytes) -> Response<CallBody> {
        CallBody::reply(ReplyBody::new(message), self.guard.take()).into_response()
    }

    /// The response for an error that is known before the head has been sent: the head alone has
    /// the status.
    fn fail(&mut self, error: Error) -> Response<CallBody> {
        let write_started = self.write_started.as_ref();
        let outcome = write_started.map(|started| error.outcome(started.get()));
        if let Some(guard) = &self.guard {
            guard.failed(&error);
        }
        let rpc = self.guard.as_ref().and_then(Guard::rpc);
        let status = error.into_status(FailedCall {
            outcome,
            counts_again: rpc.is_some_and(Rpc::counts_again),
            previous_attempts: self.previous_attempts,
        });
        if let Some(guard) = self.guard.take() {
            guard.finish(status.code());
        }
        status.into_http().map(|body| CallBody::other(body, None))
    }

    /// The response for a request that is no gRPC call.
    fn not_grpc(&mut self, status: StatusCode, has_text: bool) -> Response<CallBody> {
        if let Some(guard) = self.guard.take() {
            guard.finish(Code::InvalidArgument);
        }
        let text =
            "this is a gRPC server; it takes POST, and the content-type is application/grpc\n";
        // Without room for the text, only the status is sent.
        let reservation = self.calls.budget.reserve(CALL_BYTES).ok();
        let reservation = reservation.filter(|_| has_text);
        let body = match reservation {
            Some(_) => Body::new(Full::from(text)),
            None => Body::empty(),
        };
        let mut response = Response::new(CallBody::other(body, reservation));
        *response.status_mut() = status;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}

/// Polls a handler until its deadline. A panic ends this call alone: dropping the handler's future
/// drops everything that it owns, and the stores are consistent wherever they can panic.
fn poll_within<F: Future + ?Sized>(
    handler: Pin<&mut F>,
    deadline: &Deadline,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Error>> {
    match catch_unwind(AssertUnwindSafe(|| handler.poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => deadline
            .poll_passed(cx)
            .map(|()| Err(Error::DeadlineExceeded)),
        Err(_) => Poll::Ready(Err(Error::Internal)),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        pin::pin,
        task::Waker,
        time::Duration,
    };

    use super::{super::deadline::Deadlines, *};

    #[test]
    fn a_panic_ends_its_call_with_an_internal_error_and_no_other_call() {
        let deadlines = Deadlines::default();
        let deadline = deadlines.enter(Instant::now() + Duration::from_secs(60));
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = pin!(pending::<()>());
        assert!(poll_within(waits.as_mut(), &deadline, &mut cx).is_pending());
        let mut panics = pin!(poll_fn(|_| -> Poll<()> { panic!("a bug") }));
        let polled = poll_within(panics.as_mut(), &deadline, &mut cx);
        assert!(matches!(polled, Poll::Ready(Err(Error::Internal))));
        let mut replies = pin!(async { 42 });
        let polled = poll_within(replies.as_mut(), &deadline, &mut cx);
        assert!(matches!(polled, Poll::Ready(Ok(42))));
    }
}

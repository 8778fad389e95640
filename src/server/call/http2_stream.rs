//! One HTTP/2 stream: reads a request, sends the response, and discards the rest of the request.
//!
//! A client can ask for replies and never take them: with a flow-control window of 0, HTTP/2 would
//! keep reply and stream for as long as the connection lasts. So HTTP/2 only gets bytes that the
//! window has room for, and a stream is reset when a frame has waited for `--send-timeout`. The
//! timeout does not apply while a stream waits for something else, such as a health watch for a
//! change. Heads and trailers need no window. A socket that takes no bytes is handled in
//! `connection/http2_socket.rs`.
//!
//! An error can be known before the request has come in. RFC 9113, 8.1 allows to reset the stream
//! at once, but HAProxy and curl then lose the error. So the rest of the request is read and
//! discarded, within limits, before the stream is reset.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response};
use http_body::Body as _;

use super::{
    body::CallBody,
    deadline::{Deadline, Deadlines},
    dispatch,
    feed::Feeder,
    shared::ConnectionCalls,
    state::{Call, CallerGone},
};
use crate::budget::{CALL_BYTES, ConnectionBudget, Reservation};

/// How much of a request is discarded after its error, and for how long.
const MAX_DISCARDED_BYTES: usize = 4 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream, to be run to its end as a task.
pub(crate) struct Http2Stream {
    request: RecvStream,
    /// Set while a handler reads the request as a stream, which is rare.
    feeder: Option<Box<Feeder>>,
    respond: SendResponse<Bytes>,
    step: Step,
    deadlines: Deadlines,
    budget: ConnectionBudget,
    send_timeout: Duration,
}

enum Step {
    Calling(Call),
    Sending(Sending),
    Discarding(Discarding),
}

impl Http2Stream {
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        calls: &Arc<ConnectionCalls>,
        send_timeout: Duration,
    ) -> Self {
        let (head, request) = request.into_parts();
        let (call, feeder) = dispatch::begin(calls, &head);
        Self {
            request,
            feeder,
            respond,
            step: Step::Calling(call),
            deadlines: calls.worker.deadlines.clone(),
            budget: calls.budget.clone(),
            send_timeout,
        }
    }

    /// Whether the call is refused already. Then the first poll ends the stream, unless the rest of
    /// the request has to be discarded.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(&self.step, Step::Calling(call) if call.is_refused())
    }

    /// The step that discards the rest of the request, if there is a rest, and room in the budget.
    /// Without room, the stream is dropped, and HTTP/2 resets it once the response is sent. A reset
    /// from here would discard a response that is still in HTTP/2's buffers.
    fn discard(&mut self) -> Option<Step> {
        self.feeder = None;
        if self.request.is_end_stream() {
            return None;
        }
        let reservation = self.budget.reserve(CALL_BYTES).ok()?;
        Some(Step::Discarding(Discarding {
            left: MAX_DISCARDED_BYTES,
            deadline: self.deadlines.enter(Instant::now() + DISCARD_TIMEOUT),
            _reservation: reservation,
        }))
    }

    /// The next step, or `None` at the end.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        match &mut self.step {
            Step::Calling(call) => match call.poll(&mut self.request, cx) {
                Poll::Pending => self.respond.poll_reset(cx).map(|_| None),
                Poll::Ready(Err(CallerGone)) => Poll::Ready(None),
                Poll::Ready(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    let ended = body.is_end_stream();
                    let sent = self
                        .respond
                        .send_response(Response::from_parts(head, ()), ended);
                    Poll::Ready(match sent {
                        Ok(_) if ended => self.discard(),
                        Ok(stream) => Some(Step::Sending(Sending::new(stream, body))),
                        Err(_) => None,
                    })
                }
            },
            Step::Sending(sending) => {
                let sent = ready!(sending.poll(&self.deadlines, self.send_timeout, cx));
                Poll::Ready(if sent { self.discard() } else { None })
            }
            Step::Discarding(discarding) => {
                // The drop of the stream resets it, if the request has not ended by now.
                discarding.poll(&mut self.request, cx).map(|()| None)
            }
        }
    }
}

impl Future for Http2Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(feeder) = &mut this.feeder
            && feeder
                .poll(&mut this.request, &this.deadlines, cx)
                .is_ready()
        {
            tracing::debug!("resetting a stream: its request makes no progress, or sends too much");
            this.respond.send_reset(Reason::ENHANCE_YOUR_CALM);
            return Poll::Ready(());
        }
        while let Some(step) = ready!(this.poll_step(cx)) {
            this.step = step;
        }
        Poll::Ready(())
    }
}

/// Sends a reply.
struct Sending {
    stream: SendStream<Bytes>,
    body: CallBody,
    /// The part of a frame that the window has no room for yet.
    piece: Bytes,
    /// Set only while a piece waits for its client, which is rare.
    stalled: Option<Deadline>,
}

impl Sending {
    fn new(stream: SendStream<Bytes>, body: CallBody) -> Self {
        Self {
            stream,
            body,
            piece: Bytes::new(),
            stalled: None,
        }
    }

    /// Returns true when all has been sent, and false when the stream has ended before that.
    fn poll(
        &mut self,
        deadlines: &Deadlines,
        send_timeout: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<bool> {
        loop {
            while !self.piece.is_empty() {
                let room = self.stream.capacity();
                if room > 0 {
                    let part = if room < self.piece.len() {
                        self.piece.split_to(room)
                    } else {
                        std::mem::take(&mut self.piece)
                    };
                    if self.stream.send_data(part, false).is_err() {
                        return Poll::Ready(false);
                    }
                } else {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(_) => return Poll::Ready(false),
                        Poll::Pending => {
                            let stalled = self.stalled.get_or_insert_with(|| {
                                deadlines.enter(Instant::now() + send_timeout)
                            });
                            ready!(stalled.poll_passed(cx));
                            tracing::debug!(
                                "resetting a stream: its client does not read the reply"
                            );
                            self.stream.send_reset(Reason::CANCEL);
                            return Poll::Ready(false);
                        }
                    }
                }
            }
            self.stalled = None;
            let sent = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return self.stream.poll_reset(cx).map(|_| false),
                Poll::Ready(None) => {
                    return Poll::Ready(self.stream.send_data(Bytes::new(), true).is_ok());
                }
                Poll::Ready(Some(Err(_))) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(false);
                }
                Poll::Ready(Some(Ok(frame))) => frame.into_data(),
            };
            match sent {
                Ok(piece) => {
                    self.stream.reserve_capacity(piece.len());
                    self.piece = piece;
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return Poll::Ready(self.stream.send_trailers(trailers).is_ok());
                    }
                }
            }
        }
    }
}

/// Discards the rest of a request.
struct Discarding {
    left: usize,
    deadline: Deadline,
    _reservation: Reservation,
}

impl Discarding {
    /// Ready at the end of the request, or when a limit is reached.
    fn poll(&mut self, request: &mut RecvStream, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match request.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    _ = request.flow_control().release_capacity(data.len());
                    let Some(left) = self.left.checked_sub(data.len()) else {
                        return Poll::Ready(());
                    };
                    self.left = left;
                }
                // The end, or an error, after which the stream has ended, too.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.deadline.poll_passed(cx),
            }
        }
    }
}

//! One HTTP/2 stream: a request comes in, a reply goes out, and what still comes is thrown away.
//!
//! A client can ask for replies and never take them: with a flow-control window of 0, HTTP/2 would
//! keep reply and stream for as long as the connection lasts. So HTTP/2 is only given bytes that
//! the window has room for, and a stream on which a frame has waited for `--send-timeout` is
//! reset. Streams that wait for something else, such as a health watch for a change, are left
//! alone. Heads and trailers need no window; a socket that takes nothing is the connection's
//! matter (`socket.rs`).
//!
//! An error can be known before the request has come. Resetting the stream at once would be right
//! by the book (RFC 9113, 8.1), but HAProxy and curl lose the error then. So the rest of the
//! request is read and thrown away, within bounds, before the stream is reset.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response};
use http_body::Body as _;

use super::{
    deadline::{Deadline, Deadlines},
    dispatch::ConnectionDispatch,
    feed::Feeder,
    guard::CallBody,
    state::{Call, CallerGone},
};
use crate::budget::{CALL_BYTES, Held, Share};

/// How much of a request is thrown away after its error, and for how long.
const MAX_DISCARDED_BYTES: usize = 4 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// A stream, to be run to its end as a task.
pub(crate) struct Stream {
    request: RecvStream,
    /// Set while a handler reads the request as a stream.
    feeder: Option<Feeder>,
    respond: SendResponse<Bytes>,
    step: Step,
    deadlines: Deadlines,
    held: Held,
    send_timeout: Duration,
}

enum Step {
    Calling(Call),
    Sending(Sending),
    Discarding(Discarding),
}

impl Stream {
    pub(crate) fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        dispatch: &ConnectionDispatch,
        send_timeout: Duration,
    ) -> Self {
        let (head, request) = request.into_parts();
        let (call, feeder) = dispatch.begin(&head);
        Self {
            request,
            feeder,
            respond,
            step: Step::Calling(call),
            deadlines: dispatch.worker().deadlines.clone(),
            held: dispatch.held().clone(),
            send_timeout,
        }
    }

    /// Whether the call is over as soon as it is polled, so that it needs no task, unless more of
    /// its request comes.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(&self.step, Step::Calling(call) if call.is_refused())
    }

    /// The rest of the request is to be thrown away, if there is one and room for that. If there is
    /// no room, the stream is dropped, and HTTP/2 resets it when the response has gone out. A reset
    /// from here would take back a response that is still in HTTP/2's buffers.
    fn discard(&mut self) -> Option<Step> {
        self.feeder = None;
        if self.request.is_end_stream() {
            return None;
        }
        let share = self.held.take(CALL_BYTES).ok()?;
        Some(Step::Discarding(Discarding {
            left: MAX_DISCARDED_BYTES,
            deadline: self.deadlines.enter(Instant::now() + DISCARD_TIMEOUT),
            _share: share,
        }))
    }

    /// The next step; none at the end.
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
                // What has not come by now is refused with the reset that follows the drop.
                discarding.poll(&mut self.request, cx).map(|()| None)
            }
        }
    }
}

impl Future for Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(feeder) = &mut this.feeder
            && feeder
                .poll(&mut this.request, &this.deadlines, cx)
                .is_ready()
        {
            tracing::debug!("a request makes no progress, or sends too much; resetting its stream");
            this.respond.send_reset(Reason::ENHANCE_YOUR_CALM);
            return Poll::Ready(());
        }
        while let Some(step) = ready!(this.poll_step(cx)) {
            this.step = step;
        }
        Poll::Ready(())
    }
}

/// A reply on its way out.
struct Sending {
    stream: SendStream<Bytes>,
    body: CallBody,
    /// What the window has no room for yet.
    piece: Bytes,
    /// Set only while a piece waits for its client, which few ever do.
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

    /// Whether all has been sent; if not, the stream is no more.
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
                            tracing::debug!("a reply is not taken; resetting its stream");
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

/// The rest of a request that nobody reads any more.
struct Discarding {
    left: usize,
    deadline: Deadline,
    _share: Share,
}

impl Discarding {
    /// Waits until it has come to its end, or no more of it is taken.
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
                // The end, or an error, after which the stream is no more.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.deadline.poll_passed(cx),
            }
        }
    }
}

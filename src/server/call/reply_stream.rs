//! Replies that are a stream of messages: watches, health watches and reflection.
//!
//! A stream lasts as long as its caller likes, may need no credentials, and is not a call in
//! flight. The server ends it at the caller's `grpc-timeout`, and together with its connection: at
//! the drain, or at `--max-connection-age`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::watch;

use super::{admission::StreamPlace, deadline::Deadline};
use crate::error::Error;

/// The messages of one call, each with its prefix, until its status.
pub(super) struct ReplyStream {
    messages: Messages,
    limits: Box<StreamLimits>,
    /// How many messages have come without a wait.
    in_a_row: usize,
}

/// After this many messages without a wait, the limits are checked although there are more. So a
/// stream that always has messages ends in time, too.
const MAX_IN_A_ROW: usize = 64;

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// When the server ends a stream.
pub(super) struct StreamLimits {
    deadline: Option<Deadline>,
    leave: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: StreamPlace,
}

impl StreamLimits {
    /// The stream ends at `deadline`, which is the caller's own, and when `leaving` closes.
    pub(super) fn new(
        place: StreamPlace,
        deadline: Option<Deadline>,
        mut leaving: watch::Receiver<()>,
    ) -> Self {
        Self {
            deadline,
            leave: Box::pin(async move {
                // The channel carries nothing. It closes when the connection leaves.
                _ = leaving.changed().await;
            }),
            _place: place,
        }
    }
}

impl ReplyStream {
    pub(super) fn new(
        messages: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
        limits: Box<StreamLimits>,
    ) -> Self {
        Self {
            messages: Box::pin(messages),
            limits,
            in_a_row: 0,
        }
    }

    /// The next message, the error that ends the call, or `None` at a good end. Not to be called
    /// again after the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.in_a_row < MAX_IN_A_ROW {
            let polled = self.messages.as_mut().poll_next(cx);
            if polled.is_ready() {
                self.in_a_row += 1;
                return polled;
            }
        }
        let is_over = self.poll_limits(cx);
        if is_over.is_ready() || self.in_a_row < MAX_IN_A_ROW {
            self.in_a_row = 0;
            return is_over.map(|error| Some(Err(error)));
        }
        self.in_a_row = 1;
        self.messages.as_mut().poll_next(cx)
    }

    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let StreamLimits {
            deadline, leave, ..
        } = &mut *self.limits;
        if let Some(deadline) = deadline
            && deadline.poll_passed(cx).is_ready()
        {
            return Poll::Ready(Error::DeadlineExceeded);
        }
        leave.as_mut().poll(cx).map(|()| Error::ShuttingDown)
    }
}

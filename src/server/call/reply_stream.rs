//! Replies that are a stream of messages: health watches and reflection.
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
    limits: StreamLimits,
}

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
        limits: StreamLimits,
    ) -> Self {
        Self {
            messages: Box::pin(messages),
            limits,
        }
    }

    /// The next message, the error that ends the call, or `None` at a good end. Not to be called
    /// again after the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let polled = self.messages.as_mut().poll_next(cx);
        if polled.is_ready() {
            return polled;
        }
        let StreamLimits {
            deadline, leave, ..
        } = &mut self.limits;
        if let Some(deadline) = deadline
            && deadline.poll_passed(cx).is_ready()
        {
            return Poll::Ready(Some(Err(Error::DeadlineExceeded)));
        }
        leave
            .as_mut()
            .poll(cx)
            .map(|()| Some(Err(Error::ShuttingDown)))
    }
}

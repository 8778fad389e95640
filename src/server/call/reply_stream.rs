//! Replies that are a stream of messages: health watches and reflection.
//!
//! They last as long as their caller likes, may need no credentials, and are not among the calls
//! in flight. What ends them from outside is the caller's `grpc-timeout`, and the end of
//! their connection: at the drain, or at its `--max-connection-age`.

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
pub(crate) struct MessageStream {
    messages: Messages,
    limits: StreamLimits,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// What ends a stream from outside.
pub(crate) struct StreamLimits {
    deadline: Option<Deadline>,
    leave: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: StreamPlace,
}

impl StreamLimits {
    /// A stream in this place, with the caller's own deadline if it has one.
    pub(crate) fn new(
        place: StreamPlace,
        deadline: Option<Deadline>,
        mut leaving: watch::Receiver<()>,
    ) -> Self {
        Self {
            deadline,
            leave: Box::pin(async move {
                // The channel carries nothing; its end is the message.
                _ = leaving.changed().await;
            }),
            _place: place,
        }
    }
}

impl MessageStream {
    pub(crate) fn new(
        messages: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
        limits: StreamLimits,
    ) -> Self {
        Self {
            messages: Box::pin(messages),
            limits,
        }
    }

    /// The next message, or the error that ends the call; none when it ends well. Not to be called
    /// again after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
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

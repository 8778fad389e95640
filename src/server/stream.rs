//! Runs the streams of a worker's connections, and resets those whose reply goes nowhere.
//!
//! A client can ask for replies and never take them: with a flow-control window of nothing, HTTP/2
//! would keep reply and stream for as long as the connection lasts. HTTP/2's side of a call is a
//! task of its own, which waits for room in the window; it is ended here, and its stream reset, if
//! it has waited too long. Streams that wait for something else, such as a health watch for a
//! change, are left alone.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    /// How many steps the reply of the stream that is being polled has made; 0 before it begins.
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// To be called from within a stream: its reply has begun, or gone on.
pub(super) fn progress() {
    STEPS.set(STEPS.get() + 1);
}

/// Spawns streams on the current runtime, with which they end.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor {
    pub(super) send_timeout: Duration,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Stream {
            stream,
            steps: 0,
            stalled: None,
            send_timeout: self.send_timeout,
        });
    }
}

pin_project! {
    struct Stream<F> {
        #[pin]
        stream: F,
        steps: u64,
        // Set only while a reply waits for its client, which few ever do.
        stalled: Option<Pin<Box<Sleep>>>,
        send_timeout: Duration,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        STEPS.set(*this.steps);
        let polled = this.stream.poll(cx);
        let steps = STEPS.replace(0);
        if polled.is_ready() {
            return polled;
        }
        if steps != *this.steps {
            *this.steps = steps;
            *this.stalled = None;
        }
        if steps == 0 {
            return Poll::Pending;
        }
        let stalled = this
            .stalled
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + *this.send_timeout)));
        ready!(stalled.as_mut().poll(cx));
        tracing::debug!("a reply made no progress; resetting its stream");
        Poll::Ready(())
    }
}

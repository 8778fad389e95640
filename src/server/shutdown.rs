//! The time between the request to stop and the drain (`--shutdown-delay`).
//!
//! Health says NOT_SERVING during the delay, and everything is still served, so that balancers
//! can notice and send their calls elsewhere before the listener closes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

/// Ends the shutdown delay early. Clones belong to the same server.
#[derive(Debug, Clone)]
pub struct ShutdownDelay {
    delay: Duration,
    over: Arc<watch::Sender<bool>>,
}

impl ShutdownDelay {
    pub(super) fn new(delay: Duration) -> Self {
        Self {
            delay,
            over: Arc::new(watch::Sender::new(delay.is_zero())),
        }
    }

    /// Lets the drain begin at once. If it is called before the shutdown, there will be no delay.
    /// Returns false if there is no delay to end: the settings have none, or the drain has begun.
    pub fn end(&self) -> bool {
        self.over
            .send_if_modified(|over| !std::mem::replace(over, true))
    }

    /// Waits until the delay has passed or somebody ended it.
    pub(super) async fn wait(&self) {
        let mut over = self.over.subscribe();
        if *over.borrow() {
            return;
        }
        tracing::info!(
            delay = %humantime::format_duration(self.delay),
            "shutting down: NOT_SERVING, and calls are served until the drain"
        );
        // Waiting fails only without a sender, and `self` has one.
        _ = timeout(self.delay, over.wait_for(|over| *over)).await;
        self.end();
    }
}

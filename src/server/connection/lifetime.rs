//! When a connection ends: at its age, when its client is silent, or with the drain.

use std::{future::poll_fn, time::Duration};

use h2::{Ping, PingPong};
use tokio::time::{Instant, timeout};

use super::http2_socket::Http2Socket;
use crate::server::settings::ConnectionAge;

/// How long a client may take to answer a keepalive ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Whether a connection takes no new calls any more, and when it is closed at the latest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    /// Takes no new calls. The worker closes it at the end of the drain timeout.
    WithTheWorker,
    /// Takes no new calls, and is closed at this time.
    Until(Instant),
}

impl Leaving {
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Until(end) if end <= Instant::now())
    }
}

/// Waits until a client has been silent for `interval` and then has not answered a ping in time.
pub(super) async fn fall_silent<S>(
    pings: Option<PingPong>,
    interval: Duration,
    socket: &Http2Socket<S>,
) {
    let Some(mut pings) = pings else { return };
    loop {
        let silence = socket.silence();
        if silence < interval {
            tokio::time::sleep(interval - silence).await;
            continue;
        }
        let ping = async {
            pings.send_ping(Ping::opaque())?;
            poll_fn(|cx| pings.poll_pong(cx)).await
        };
        match timeout(KEEPALIVE_TIMEOUT, ping).await {
            Ok(Ok(_)) => {}
            // The connection is ending for another reason.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Waits until a connection has reached its age: 90 % to 110 % of `max`, so that connections that
/// were opened together are not closed together.
pub(super) async fn grow_old(max: ConnectionAge) {
    match max {
        ConnectionAge::Max(age) => {
            tokio::time::sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
        ConnectionAge::Off => std::future::pending().await,
    }
}

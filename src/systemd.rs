//! Socket activation, readiness and the watchdog of systemd. Without systemd, nothing here has an
//! effect.
//!
//! Protocols: <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html> and
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html>

use std::{convert::Infallible, io, net::TcpListener, os::unix::net::UnixListener};

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::server::listen::settings::ListenAddr;
use crate::server::liveness::Liveness;

/// A listening socket that another process has opened.
#[derive(Debug)]
pub enum Inherited {
    /// On a TCP address.
    Tcp(TcpListener),
    /// On a unix socket. Its owner removes the file.
    Unix(UnixListener),
}

impl Inherited {
    /// Takes the first socket that systemd has passed to this process, if there is one.
    pub fn take() -> io::Result<Option<Self>> {
        let mut sockets = ListenFd::from_env();
        if sockets.len() == 0 {
            return Ok(None);
        }
        if let Ok(Some(listener)) = sockets.take_tcp_listener(0) {
            return Ok(Some(Self::Tcp(listener)));
        }
        Ok(sockets.take_unix_listener(0)?.map(Self::Unix))
    }

    /// The address of the socket.
    pub fn local_addr(&self) -> io::Result<ListenAddr> {
        Ok(match self {
            Self::Tcp(listener) => ListenAddr::Tcp(listener.local_addr()?),
            Self::Unix(listener) => ListenAddr::Unix(
                listener
                    .local_addr()?
                    .as_pathname()
                    .map_or_else(|| "unnamed".into(), Into::into),
            ),
        })
    }
}

/// Tells systemd that clients can connect.
pub fn ready() {
    notify(NotifyState::Ready);
}

/// Tells systemd that the shutdown begins.
pub fn stopping() {
    notify(NotifyState::Stopping);
}

/// Feeds the watchdog, if the unit has one, while no event loop of a worker is stuck. This task runs
/// on the first thread, so it also stops when that thread is stuck.
pub async fn feed_watchdog(liveness: Liveness) -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    loop {
        if liveness.stuck().is_empty() {
            notify(NotifyState::Watchdog);
        }
        tokio::time::sleep(patience / 2).await;
    }
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

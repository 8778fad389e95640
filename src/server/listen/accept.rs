//! Accepts connections, closes those beyond a limit, and hands the others to the workers.

use std::{
    convert::Infallible,
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    peers::Peers,
    socket::{Listener, Socket},
};
use crate::{
    log_limit::LogLimit,
    server::{liveness::Liveness, settings::ServerSettings, worker::Worker},
};

/// The first pause after a failed accept.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause after a failed accept.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause before a socket is offered again to workers that had no room for it.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Accepts connections and hands them to the workers, for ever. Connections beyond a limit are
/// closed at once and counted in `refused`.
pub(crate) async fn accept_into(
    listener: &Listener,
    workers: &[Worker],
    liveness: &Liveness,
    settings: &ServerSettings,
    refused: &AtomicU64,
) -> Infallible {
    static LOG: LogLimit = LogLimit::new();
    let peers = Peers::new(settings.max_connections_per_peer);
    loop {
        let socket = retry(|| listener.accept(&peers)).await;
        let open: usize = workers.iter().map(Worker::connections).sum();
        let socket = match socket {
            Some(socket) if open < settings.max_connections => socket,
            // Closed at once, so that the client can try another server. It would wait in the queue
            // otherwise.
            socket => {
                refused.fetch_add(1, Ordering::Relaxed);
                if LOG.admit().is_some() {
                    let limit = match socket {
                        Some(_) => "max-connections",
                        None => "max-connections-per-peer",
                    };
                    tracing::warn!(open, limit, "connections refused");
                }
                continue;
            }
        };
        hand_out(socket, workers, liveness).await;
    }
}

/// Gives a socket to the worker with the fewest connections, so that no two clients share an event
/// loop while another is idle. A worker that is stuck gets a socket only if there is no other.
async fn hand_out(mut socket: Socket, workers: &[Worker], liveness: &Liveness) {
    loop {
        let mut by_load: Vec<_> = workers.iter().enumerate().collect();
        by_load.sort_by_key(|(number, worker)| (liveness.is_stuck(*number), worker.connections()));
        for (_, worker) in by_load {
            match worker.hand_over(socket) {
                Ok(()) => return,
                Err(back) => socket = back,
            }
        }
        // All workers are full. The kernel queues new connections meanwhile.
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

/// Accepts until it succeeds. If the peer went away, tries again at once. If the system lacks
/// something (EMFILE), tries again after a pause, which doubles each time.
pub(crate) async fn retry<T, F, A>(accept: F) -> T
where
    F: Fn() -> A,
    A: Future<Output = io::Result<T>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_about_one_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn is_about_one_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

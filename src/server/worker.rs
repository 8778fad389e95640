//! One worker: a thread with an event loop, the connections that were handed to it, and its own
//! store. A call never leaves its thread.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    call::{
        deadline::Deadlines,
        shared::{CallConfig, WorkerCalls},
    },
    connection::{ClientConnection, ConnectionConfig, Connections},
    listen::socket::Socket,
    liveness::Liveness,
};
use crate::event_loop;

/// How many sockets may wait for a worker. Further ones go to another worker.
const QUEUE: usize = 64;

/// What a worker is made of.
pub(crate) struct WorkerConfig {
    pub(crate) number: usize,
    pub(crate) calls: CallConfig,
    pub(crate) connections: ConnectionConfig,
    pub(crate) liveness: Liveness,
}

/// The acceptor's side of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    sockets: mpsc::Sender<Socket>,
    connections: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts the thread. It ends with the drain, or when this side is dropped.
    pub(crate) fn start(config: WorkerConfig) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sockets, incoming) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let connections = Arc::<AtomicUsize>::default();
        let open = Arc::clone(&connections);
        thread::Builder::new()
            .name(format!("worker-{}", config.number))
            .spawn(move || {
                // Connections that have not finished in time are dropped with the runtime.
                event_loop::run(runtime, serve(config, incoming, open));
                _ = end.send(());
            })?;
        Ok(Self {
            sockets,
            connections,
            ended,
        })
    }

    /// How many connections the worker has.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Gives a socket to the worker. Returns the socket if the worker has no room for it, or is
    /// gone.
    pub(crate) fn hand_over(&self, socket: Socket) -> Result<(), Socket> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.sockets.try_send(socket).map_err(|error| {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            error.into_inner()
        })
    }

    /// Waits for the thread to end.
    pub(crate) async fn ended(self) {
        // An error means that the thread has ended, too.
        _ = self.ended.await;
    }
}

/// What the thread runs.
async fn serve(config: WorkerConfig, mut incoming: mpsc::Receiver<Socket>, open: Arc<AtomicUsize>) {
    let WorkerConfig {
        number,
        calls,
        connections: config,
        liveness,
    } = config;
    let mut draining = config.draining.clone();
    let drain_timeout = config.drain_timeout;
    let recorder = Arc::clone(&calls.recorder);
    let deadlines = Deadlines::default();
    // Both tasks end with the runtime, and so with the last call.
    tokio::spawn(deadlines.clone().run());
    tokio::spawn(liveness.beat(number));
    let calls = WorkerCalls::new(calls, deadlines);
    let shared = Arc::new(Connections::new(config, calls, recorder, open));

    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            socket = incoming.recv() => socket,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = draining.changed() => None,
        };
        let Some(socket) = socket else { break };
        let connection = ClientConnection::new(&shared);
        connections.spawn(async move {
            if let Err(error) = connection.serve(socket).await {
                tracing::debug!(%error, "connection ended with an error");
            }
        });
    }

    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(drain_timeout, finished).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "drain timeout: closing the connections that are left"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_without_room_gives_the_socket_back() {
        let (sockets, incoming) = mpsc::channel(1);
        let worker = Worker {
            sockets,
            connections: Arc::default(),
            ended: oneshot::channel().1,
        };
        let socket = || {
            let pair = std::os::unix::net::UnixStream::pair().expect("a pair");
            Socket::Unix(pair.0)
        };
        assert!(worker.hand_over(socket()).is_ok());
        assert!(worker.hand_over(socket()).is_err());
        assert_eq!(worker.connections(), 1);
        drop(incoming);
        assert!(worker.hand_over(socket()).is_err());
        assert_eq!(worker.connections(), 1);
    }
}

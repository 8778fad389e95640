//! One event loop: a thread with a current-thread runtime, the connections that were handed to
//! it, and its own way to the store. A call never leaves its thread.

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, ready},
    thread,
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, server as http2};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    runtime,
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    call::{
        deadline::Deadlines,
        http2_stream::Http2Stream,
        shared::{CallConfig, WorkerCalls},
    },
    connection::http2_socket::{Http2Socket, LastRead},
    listen::{
        socket::Socket,
        tls::{self, Tls},
    },
    liveness::Liveness,
};
use crate::{
    auth::San,
    config::{ConnectionAge, ConnectionLimits},
    event_loop,
    metrics::Recorder,
};

/// Sockets that wait for a worker; beyond it they go to another one.
const QUEUE: usize = 64;
/// Streams that were reset because of the peer's own errors before the connection is closed.
const MAX_LOCAL_ERROR_RESET_STREAMS: usize = 1024;
/// How much of a request a client may send before it hears that there is room for more; of one
/// stream, and of all streams of a connection together.
const WINDOW_BYTES: u32 = 1 << 20;
/// How much of a reply waits in HTTP/2's own buffer.
const MAX_SEND_BUFFER_BYTES: usize = 400 * 1024;
/// How often a connection that takes no new calls is looked at: it is closed once it has none, also
/// if its client does not answer. Long enough for calls that were on their way.
const LEAVING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a new connection may take for the TLS handshake, and then to say that it is HTTP/2.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// TLS handshakes whose client has said hello; more wait for their turn.
const MAX_HANDSHAKES: usize = 256;
/// How long a connection may take to answer a keepalive ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a worker is made of.
pub(super) struct WorkerConfig {
    pub(super) number: usize,
    pub(super) calls: CallConfig,
    pub(super) connections: ConnectionConfig,
    /// Closes when the drain begins.
    pub(super) draining: watch::Receiver<()>,
    pub(super) drain_timeout: Duration,
    pub(super) liveness: Liveness,
}

/// What a worker's connections are made of.
pub(super) struct ConnectionConfig {
    /// On TCP sockets; unix sockets have none.
    pub(super) tls: Option<watch::Receiver<Tls>>,
    pub(super) limits: ConnectionLimits,
}

/// The acceptor's side of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    sockets: mpsc::Sender<Socket>,
    connections: Arc<AtomicUsize>,
    ended: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts the thread. It ends when the drain does, or when this side is dropped.
    pub(super) fn start(config: WorkerConfig) -> io::Result<Self> {
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
                // Connections that did not finish in time end with it.
                event_loop::run(runtime, serve(config, incoming, open));
                _ = end.send(());
            })?;
        Ok(Self {
            sockets,
            connections,
            ended,
        })
    }

    /// How many connections it has.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Gives it a socket; gives it back if the worker has no room for it, or is gone.
    pub(super) fn hand_over(&self, socket: Socket) -> Result<(), Socket> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.sockets.try_send(socket).map_err(|error| {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            error.into_inner()
        })
    }

    /// Waits for the thread to end.
    pub(super) async fn ended(self) {
        // An error means that it is gone, which is as good.
        _ = self.ended.await;
    }
}

async fn serve(config: WorkerConfig, mut incoming: mpsc::Receiver<Socket>, open: Arc<AtomicUsize>) {
    let WorkerConfig {
        number,
        calls,
        connections: ConnectionConfig { tls, limits },
        mut draining,
        drain_timeout,
        liveness,
    } = config;
    let recorder = Arc::clone(&calls.recorder);
    let deadlines = Deadlines::default();
    // These end with the runtime, and so with the last call.
    tokio::spawn(deadlines.clone().run());
    tokio::spawn(liveness.beat(number));
    let calls = WorkerCalls::new(calls, deadlines);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));

    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            socket = incoming.recv() => socket,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = draining.changed() => None,
        };
        let Some(socket) = socket else { break };
        let connection = Connection {
            http: http(&limits),
            calls: Arc::clone(&calls),
            limits,
            draining: draining.clone(),
            drain_timeout,
            _count: Count::new(&recorder, &open),
        };
        let (tls, handshakes) = (tls.clone(), Arc::clone(&handshakes));
        connections.spawn(async move {
            if let Err(error) = connection.serve(socket, tls, &handshakes).await {
                tracing::debug!(%error, "connection ended with an error");
            }
        });
    }

    let finished = async { while connections.join_next().await.is_some() {} };
    if timeout(drain_timeout, finished).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "drain timeout: closing what has not finished"
        );
    }
}

fn http(limits: &ConnectionLimits) -> http2::Builder {
    let mut http = http2::Builder::new();
    http.initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESET_STREAMS))
        .max_header_list_size(limits.max_header_bytes);
    http
}

struct Connection {
    http: http2::Builder,
    calls: Arc<WorkerCalls>,
    limits: ConnectionLimits,
    draining: watch::Receiver<()>,
    drain_timeout: Duration,
    _count: Count,
}

type ConnectionResult = Result<(), Box<dyn Error + Send + Sync>>;

impl Connection {
    /// Serves one client to its end. What is boxed here would otherwise be a part of every
    /// connection's task, in the size of the largest: one with TLS.
    async fn serve(
        mut self,
        socket: Socket,
        tls: Option<watch::Receiver<Tls>>,
        handshakes: &Semaphore,
    ) -> ConnectionResult {
        match (socket, tls) {
            (Socket::Unix(socket), _) => {
                let socket = self.greet(UnixStream::from_std(socket)?).await?;
                Box::pin(self.serve_http2(socket, Arc::default())).await
            }
            (Socket::Tcp(socket, _slot), None) => {
                let socket = self.greet(TcpStream::from_std(socket)?).await?;
                Box::pin(self.serve_http2(socket, Arc::default())).await
            }
            (Socket::Tcp(socket, _slot), Some(tls)) => {
                let socket = TcpStream::from_std(socket)?;
                let handshake = tls::handshake(socket, tls, handshakes);
                let socket = Box::pin(self.in_time(handshake)).await?;
                let names = tls::names(socket.get_ref().1.peer_certificates());
                let socket = Box::pin(self.greet(socket)).await?;
                Box::pin(self.serve_http2(socket, names)).await
            }
        }
    }

    /// Waits for a client to say that it speaks HTTP/2.
    async fn greet<S>(&mut self, socket: S) -> io::Result<Http2Socket<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let send_timeout = self.limits.send_timeout;
        self.in_time(Http2Socket::greet(socket, send_timeout)).await
    }

    /// What a new client has to do soon; a drain does not wait for it, since nothing has begun
    /// that could be finished.
    async fn in_time<T>(&mut self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            done = timeout(GREETING_TIMEOUT, step) => {
                done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            _ = self.draining.changed() => Err(io::Error::other("shutting down")),
        }
    }

    async fn serve_http2<S>(
        mut self,
        mut socket: Http2Socket<S>,
        names: Arc<[San]>,
    ) -> ConnectionResult
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stay, left) = watch::channel(());
        let mut stay = Some(stay);
        let calls = self.calls.for_connection(names, left);
        let send_timeout = self.limits.send_timeout;
        socket.watch_pressure(calls.budget.clone());
        let (last_read, turn) = (socket.last_read(), socket.turn());
        let unwritten = socket.unwritten();
        let mut connection = self.http.handshake::<_, Bytes>(socket).await?;
        let pings = connection.ping_pong();
        let mut silent = pin!(fall_silent(
            pings,
            self.limits.keepalive_interval,
            last_read
        ));
        let mut old = pin!(grow_old(self.limits.max_age));
        let mut leaving = Leaving::No;
        loop {
            let serve = poll_fn(|cx| {
                turn.begin();
                while let Some(accepted) = ready!(connection.poll_accept(cx)) {
                    let (request, respond) = accepted?;
                    let mut stream = Http2Stream::new(request, respond, &calls, send_timeout);
                    // A flood of calls that are refused needs no tasks.
                    if stream.is_refused() && Pin::new(&mut stream).poll(cx).is_ready() {
                        continue;
                    }
                    // Ends with its call, its connection or the runtime.
                    tokio::spawn(stream);
                }
                Poll::Ready(Ok::<_, h2::Error>(()))
            });
            leaving = tokio::select! {
                biased;
                // First, so that what streams have just left to HTTP/2 is written.
                ended = serve => return Ok(ended?),
                _ = self.draining.changed(), if leaving == Leaving::No => Leaving::WithTheWorker,
                () = old.as_mut(), if leaving == Leaving::No => Leaving::Until(Instant::now() + self.drain_timeout),
                () = tokio::time::sleep(LEAVING_INTERVAL), if leaving != Leaving::No => {
                    // HTTP/2 itself would wait for the answer to a ping.
                    if leaving.is_over() || (calls.budget.is_idle() && !unwritten.is_some()) {
                        return Ok(());
                    }
                    leaving
                }
                () = silent.as_mut() => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
            // GOAWAY: no new calls, finish those that run. Streams, which may never end, end now.
            connection.graceful_shutdown();
            drop(stay.take());
        }
    }
}

/// Whether a connection takes no new calls, and when it is closed at the latest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// The drain has a timeout of its own.
    WithTheWorker,
    Until(Instant),
}

impl Leaving {
    fn is_over(self) -> bool {
        matches!(self, Self::Until(end) if end <= Instant::now())
    }
}

/// Waits until a client has been silent for `interval`, and then does not answer a ping in time.
async fn fall_silent(pings: Option<PingPong>, interval: Duration, last_read: LastRead) {
    let Some(mut pings) = pings else { return };
    loop {
        let silence = last_read.elapsed();
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
            // The connection is about to end for another reason.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Waits for the age at which a connection is to go: between nine and eleven tenths of `max`, so
/// that those which came together do not go together.
async fn grow_old(max: ConnectionAge) {
    match max {
        ConnectionAge::Max(age) => {
            tokio::time::sleep(age.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
        }
        ConnectionAge::Off => std::future::pending().await,
    }
}

/// Counts one connection for as long as it lives.
struct Count {
    recorder: Arc<Recorder>,
    open: Arc<AtomicUsize>,
}

impl Count {
    /// The acceptor has already added the connection to `open`.
    fn new(recorder: &Arc<Recorder>, open: &Arc<AtomicUsize>) -> Self {
        recorder.connection_opened();
        Self {
            recorder: Arc::clone(recorder),
            open: Arc::clone(open),
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.recorder.connection_closed();
        self.open.fetch_sub(1, Ordering::Relaxed);
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

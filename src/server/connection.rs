//! One client's connection: TLS, HTTP/2, and a task for each stream.

mod http2_socket;
mod lifetime;
mod output;

use std::{
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::server as http2;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

use self::{
    http2_socket::Http2Socket,
    lifetime::{Leaving, fall_silent, grow_old},
};
use super::{
    call::{
        http2_stream::Http2Stream,
        shared::{ConnectionCalls, WorkerCalls},
    },
    listen::{
        socket::Socket,
        tls::{self, ServerTls},
    },
};
use crate::{auth::San, metrics::Recorder, server::settings::ConnectionLimits};

/// How many streams may be reset because of the peer's own errors before the connection is closed.
const MAX_LOCAL_ERROR_RESET_STREAMS: usize = 1024;
/// The flow-control window for requests: of one stream, and of all streams of a connection together.
const WINDOW_BYTES: u32 = 1 << 20;
/// How much of a reply HTTP/2 may buffer.
const MAX_SEND_BUFFER_BYTES: usize = 400 * 1024;
/// How often a connection that takes no new calls is checked: it is closed once it has no calls,
/// even if its client does not answer. Long enough for calls that were on their way.
const LEAVING_INTERVAL: Duration = Duration::from_secs(1);
/// How long a client may take for the TLS handshake, and then for the preface of HTTP/2.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many TLS handshakes run at a time in one worker, from the ClientHello on. Further ones wait.
const MAX_HANDSHAKES: usize = 256;

/// What the connections of a worker are made of.
pub(crate) struct ConnectionConfig {
    /// For TCP sockets. Unix sockets have no TLS.
    pub(crate) tls: Option<watch::Receiver<ServerTls>>,
    pub(crate) limits: ConnectionLimits,
    /// Closes when the drain begins.
    pub(crate) draining: watch::Receiver<()>,
    pub(crate) drain_timeout: Duration,
}

/// What the connections of one worker share.
pub(super) struct Connections {
    config: ConnectionConfig,
    calls: Arc<WorkerCalls>,
    recorder: Arc<Recorder>,
    handshakes: Semaphore,
    /// How many connections the worker has.
    open: Arc<AtomicUsize>,
}

impl Connections {
    pub(super) fn new(
        config: ConnectionConfig,
        calls: Arc<WorkerCalls>,
        recorder: Arc<Recorder>,
        open: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            config,
            calls,
            recorder,
            handshakes: Semaphore::new(MAX_HANDSHAKES),
            open,
        }
    }
}

/// One connection. It counts as open until it is dropped.
pub(super) struct ClientConnection {
    shared: Arc<Connections>,
    draining: watch::Receiver<()>,
}

type ConnectionResult = Result<(), Box<dyn Error + Send + Sync>>;

impl ClientConnection {
    /// A new connection, which the acceptor has already added to those that are open.
    pub(super) fn new(shared: &Arc<Connections>) -> Self {
        shared.recorder.connection_opened();
        Self {
            draining: shared.config.draining.clone(),
            shared: Arc::clone(shared),
        }
    }

    /// Serves one client to its end. Without the boxes, the task of every connection would have the
    /// size of the largest future: that of a connection with TLS.
    pub(super) async fn serve(mut self, socket: Socket) -> ConnectionResult {
        match (socket, self.shared.config.tls.clone()) {
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
                let shared = Arc::clone(&self.shared);
                let handshake = tls::handshake(socket, tls, &shared.handshakes);
                let socket = Box::pin(self.in_time(handshake)).await?;
                let names = tls::names(socket.get_ref().1.peer_certificates());
                let socket = Box::pin(self.greet(socket)).await?;
                Box::pin(self.serve_http2(socket, names)).await
            }
        }
    }

    /// Waits for the preface of HTTP/2.
    async fn greet<S>(&mut self, socket: S) -> io::Result<Http2Socket<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let send_timeout = self.shared.config.limits.send_timeout;
        self.in_time(Http2Socket::greet(socket, send_timeout)).await
    }

    /// Runs a step of a new connection within its timeout. A drain ends the step at once, since no
    /// call has begun that could be finished.
    async fn in_time<T>(&mut self, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            done = timeout(GREETING_TIMEOUT, step) => {
                done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            _ = self.draining.changed() => Err(io::Error::other("shutting down")),
        }
    }

    async fn serve_http2<S>(mut self, socket: Http2Socket<S>, names: Arc<[San]>) -> ConnectionResult
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stay, left) = watch::channel(());
        let mut stay = Some(stay);
        let limits = self.shared.config.limits;
        let calls = self.shared.calls.for_connection(names, left);
        socket.watch_budget(calls.budget.clone());
        // This waits for nothing, since the preface is there. So it may leave its output to the
        // first turn.
        let handshake = http2_builder(&limits).handshake::<_, Bytes>(socket.clone());
        let mut connection = handshake.await?;
        let pings = connection.ping_pong();
        let mut silent = pin!(fall_silent(pings, limits.keepalive_interval, &socket));
        let mut old = pin!(grow_old(limits.max_age));
        let mut leaving = Leaving::No;
        loop {
            let serve = poll_fn(|cx| {
                socket.begin_turn();
                let ended = poll_calls(cx, &mut connection, &calls, limits.send_timeout)?;
                if ended.is_pending()
                    && let Poll::Ready(Err(error)) = socket.poll_end_turn(cx)
                {
                    return Poll::Ready(Err(error.into()));
                }
                ended.map(Ok)
            });
            leaving = tokio::select! {
                biased;
                // First, so that frames which streams have just given to HTTP/2 are written.
                ended = serve => return ended,
                _ = self.draining.changed(), if leaving == Leaving::No => Leaving::WithTheWorker,
                () = old.as_mut(), if leaving == Leaving::No => {
                    Leaving::Until(Instant::now() + self.shared.config.drain_timeout)
                }
                () = tokio::time::sleep(LEAVING_INTERVAL), if leaving != Leaving::No => {
                    // HTTP/2 itself would wait for the answer to a ping.
                    if leaving.is_over() || (calls.budget.is_idle() && !socket.is_stalled()) {
                        return Ok(());
                    }
                    leaving
                }
                () = silent.as_mut() => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            };
            // GOAWAY: no new calls, and running calls finish. Reply streams may never end by
            // themselves, so dropping `stay` ends them now.
            connection.graceful_shutdown();
            drop(stay.take());
        }
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.shared.recorder.connection_closed();
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Polls HTTP/2 and starts the calls that it accepts. Ready at the end of the connection.
fn poll_calls<S>(
    cx: &mut Context<'_>,
    connection: &mut http2::Connection<Http2Socket<S>, Bytes>,
    calls: &Arc<ConnectionCalls>,
    send_timeout: Duration,
) -> Poll<Result<(), h2::Error>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(accepted) = ready!(connection.poll_accept(cx)) {
        let (request, respond) = accepted?;
        // Boxed, because a task moves its future several times.
        let mut stream = Box::new(Http2Stream::new(request, respond, calls, send_timeout));
        // A refused call needs no task, so that a flood of them is cheap.
        if stream.is_refused() && Pin::new(&mut *stream).poll(cx).is_ready() {
            continue;
        }
        // Ends with its call, its connection or the runtime.
        tokio::spawn(stream);
    }
    Poll::Ready(Ok(()))
}

fn http2_builder(limits: &ConnectionLimits) -> http2::Builder {
    let mut http = http2::Builder::new();
    http.initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buffer_size(MAX_SEND_BUFFER_BYTES)
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_local_error_reset_streams(Some(MAX_LOCAL_ERROR_RESET_STREAMS))
        .max_header_list_size(limits.max_header_bytes);
    http
}

//! One event loop: a thread with a current-thread runtime, the connections that were handed to
//! it, and its own way to the store. A call never leaves its thread.

use std::{
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    runtime,
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tonic_health::server::HealthReporter;

use super::{OpenStore, accept::Socket, call::Dispatch, deadline::Deadlines, socket::Http2Socket};
use crate::{config::ConnectionAge, metrics::Recorder, model::Limits};

/// Sockets that wait for a worker; beyond it the acceptor waits, and the kernel queues.
const QUEUE: usize = 64;
/// Calls that one connection may have in flight.
const MAX_CONCURRENT_STREAMS: u32 = 256;
/// Streams that were reset because of the peer's own errors before the connection is closed.
/// Left unset, hyper would pass on "no limit".
const MAX_LOCAL_ERROR_RESET_STREAMS: usize = 1024;
/// The headers of one request, decoded.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// How long a new connection may take to say that it is HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection without traffic is asked for a sign of life after this long...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
/// ... and closed if there is none within this.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a worker is made of.
pub(super) struct WorkerConfig {
    pub(super) number: usize,
    pub(super) store: OpenStore,
    pub(super) limits: Limits,
    pub(super) max_deadline: Duration,
    pub(super) max_in_flight: usize,
    pub(super) recorder: Arc<Recorder>,
    pub(super) health: HealthReporter,
    /// Closes when the drain begins.
    pub(super) draining: watch::Receiver<()>,
    pub(super) drain_timeout: Duration,
    pub(super) max_connection_age: ConnectionAge,
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
                runtime.block_on(serve(config, incoming, open));
                // Connections that did not finish in time end here.
                drop(runtime);
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

    /// Gives it a socket.
    pub(super) async fn hand_over(&self, socket: Socket) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        if self.sockets.send(socket).await.is_err() {
            tracing::error!("a worker is gone; a connection is lost");
        }
    }

    /// Waits for the thread to end.
    pub(super) async fn ended(self) {
        // An error means that it is gone, which is as good.
        _ = self.ended.await;
    }
}

async fn serve(config: WorkerConfig, mut incoming: mpsc::Receiver<Socket>, open: Arc<AtomicUsize>) {
    let mut draining = config.draining.clone();
    let drain_timeout = config.drain_timeout;
    let max_connection_age = config.max_connection_age;
    let recorder = Arc::clone(&config.recorder);
    let deadlines = Deadlines::default();
    // Ends with the runtime, and so with the last call.
    tokio::spawn(deadlines.clone().run());
    let dispatch = Dispatch::new(config, deadlines);
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        // gRPC has no use for a date in every reply.
        .auto_date_header(false)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_ERROR_RESET_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);

    let mut connections = JoinSet::new();
    loop {
        let socket = tokio::select! {
            socket = incoming.recv() => socket,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = draining.changed() => None,
        };
        let Some(socket) = socket else { break };
        let connection = Connection {
            http: http.clone(),
            dispatch: dispatch.clone(),
            draining: draining.clone(),
            drain_timeout,
            max_age: max_connection_age,
            _count: Count::new(&recorder, &open),
        };
        connections.spawn(async move {
            match socket {
                Socket::Tcp(socket) => match TcpStream::from_std(socket) {
                    Ok(socket) => connection.serve(socket).await,
                    Err(error) => tracing::warn!(%error, "a socket was lost"),
                },
                Socket::Unix(socket) => match UnixStream::from_std(socket) {
                    Ok(socket) => connection.serve(socket).await,
                    Err(error) => tracing::warn!(%error, "a socket was lost"),
                },
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

struct Connection {
    http: http2::Builder<TokioExecutor>,
    dispatch: Dispatch,
    draining: watch::Receiver<()>,
    drain_timeout: Duration,
    max_age: ConnectionAge,
    _count: Count,
}

impl Connection {
    async fn serve(mut self, socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let socket = tokio::select! {
            greeted = timeout(PREFACE_TIMEOUT, Http2Socket::greet(socket)) => match greeted {
                Ok(Ok(socket)) => socket,
                Ok(Err(error)) => return tracing::debug!(%error, "not a gRPC client"),
                Err(_) => return tracing::debug!("no HTTP/2 preface in time"),
            },
            // Nothing has begun that could be finished.
            _ = self.draining.changed() => return,
        };
        let mut connection = pin!(
            self.http
                .serve_connection(TokioIo::new(socket), self.dispatch)
        );
        let result = tokio::select! {
            result = connection.as_mut() => Ok(result),
            _ = self.draining.changed() => {
                // GOAWAY: no new calls, finish those that run. The drain has a timeout of its own.
                connection.as_mut().graceful_shutdown();
                Ok(connection.await)
            }
            () = grown_old(self.max_age) => {
                connection.as_mut().graceful_shutdown();
                timeout(self.drain_timeout, connection).await
            }
        };
        match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "connection ended with an error"),
            Err(_) => tracing::debug!("an old connection did not finish in time"),
        }
    }
}

/// Waits for the age at which a connection is to go: between nine and eleven tenths of `max`, so
/// that those which came together do not go together.
async fn grown_old(max: ConnectionAge) {
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
    use std::net::{TcpListener, TcpStream};

    use tonic::{Code, transport::Endpoint};
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::{
        proto::{GetRequest, MarkRequest, dyn_data_client::DynDataClient, mark_request::Value},
        store::Store,
    };

    #[tokio::test]
    async fn a_panic_ends_its_call_and_nothing_else() {
        let (drain, draining) = watch::channel(());
        let worker = Worker::start(WorkerConfig {
            number: 0,
            store: Box::new(|| Store::Panicking),
            limits: Limits {
                default_ttl: Duration::from_secs(60),
                max_ttl: Duration::from_secs(60),
                max_batch: 1,
                max_value_bytes: 1,
            },
            max_deadline: Duration::from_secs(60),
            max_in_flight: 1,
            recorder: Arc::default(),
            health: HealthReporter::new(),
            draining,
            drain_timeout: Duration::from_secs(1),
            max_connection_age: ConnectionAge::Off,
        })
        .expect("a thread");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let addr = listener.local_addr().expect("an address");
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("a URL");
        let mut client = DynDataClient::new(endpoint.connect_lazy());
        let accepting = thread::spawn(move || listener.accept().expect("accepts").0);

        let request = || MarkRequest {
            id: "42".to_owned(),
            value: Some(Value::IntValue(1)),
            ..MarkRequest::default()
        };
        // The connection is made by the first call, and served once it has been handed over.
        let first = tokio::spawn({
            let mut client = client.clone();
            async move { client.mark(request()).await }
        });
        let socket: TcpStream = tokio::task::spawn_blocking(|| accepting.join())
            .await
            .expect("ends")
            .expect("accepts");
        socket.set_nonblocking(true).expect("a socket");
        worker.hand_over(Socket::Tcp(socket)).await;
        first.await.expect("ends").expect("marks");

        let get = GetRequest {
            id: "42".to_owned(),
            ..GetRequest::default()
        };
        // Twice: with room for one call in flight, the first must have left.
        for _ in 0..2 {
            let status = client.get(get.clone()).await.expect_err("a panic");
            assert_eq!(status.code(), Code::Internal);
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(info.reason, "INTERNAL");
            assert!(!status.message().contains("bug"), "{}", status.message());
        }
        // Nobody accepts another connection, so this is still the first one.
        client.mark(request()).await.expect("marks");
        drop(drain);
        worker.ended().await;
    }
}

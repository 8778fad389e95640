//! A TCP proxy that simulates a faulty network, between the service and Redis.

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    time::Instant,
};

use crate::starvation;

/// What the proxy does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Replies are delayed by this time.
    Delay(Duration),
    /// Replies arrive one byte at a time.
    Trickle,
    /// Bytes are dropped in both directions. A connection that was used in this mode stays dead.
    Silent,
    /// Replies are not read, so the sender has to wait.
    Stall,
    /// Connections are reset as soon as they are open.
    Refuse,
    /// A connection is reset in the middle of a reply, after a few hundred bytes.
    ResetInReply,
    /// After some thousand bytes of replies, a reply is dropped and the connection is closed. Its
    /// command was executed, but the sender does not know.
    SwallowReply,
    /// After some thousand bytes of commands, the connection to their sender is closed. Redis gets
    /// the last commands later, after at most 600 ms.
    DeliverLate,
}

/// Number of bytes that pass in one direction before a connection is reset, a reply is dropped or
/// commands are kept. The last two numbers are random over a wide range, so that connections fail
/// one after the other and others can observe the effect.
const BEFORE_RESET: Range<usize> = 200..2_000;
const BEFORE_SWALLOWING: Range<usize> = 500..6_000;
const BEFORE_KEEPING: Range<usize> = 2_000..25_000;
/// When the proxy delivers the commands that it has kept.
const LATE: Range<u64> = 50..600;
/// How long the proxy then keeps the connection.
const LINGER: Duration = Duration::from_millis(200);

/// How one direction of a connection has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// One side has closed, so the other is closed.
    Close,
    /// The client gets a reset.
    Reset,
    /// The connection to the sender is closed, and Redis gets these bytes later.
    Late(Vec<u8>),
}

/// A running proxy, until it is dropped.
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Proxy {
    /// Starts a proxy to a port of 127.0.0.1.
    pub fn start(upstream: u16) -> Self {
        let (mode, modes) = watch::channel(Mode::Pass);
        let accepted = Arc::<AtomicUsize>::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let port = listener.local_addr().expect("an address").port();
        let counter = Arc::clone(&accepted);
        let builder = thread::Builder::new().name(starvation::PROXY.to_owned());
        let thread = builder.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listener");
                tokio::select! {
                    () = serve(listener, upstream, modes, counter) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            port,
            mode,
            accepted,
            thread: Some(thread.expect("a thread")),
            stop: Some(stop),
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Number of connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the proxy panicked");
        }
    }
}

async fn serve(
    listener: TcpListener,
    upstream: u16,
    modes: watch::Receiver<Mode>,
    accepted: Arc<AtomicUsize>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        accepted.fetch_add(1, Ordering::Relaxed);
        let upstream = SocketAddr::from(([127, 0, 0, 1], upstream));
        tokio::spawn(connection(client, upstream, modes.clone()));
    }
}

async fn connection(mut client: TcpStream, upstream: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let mode = *modes.borrow_and_update();
    if mode == Mode::Refuse {
        return reset(&client);
    }
    if mode == Mode::Silent {
        return swallow(&mut client).await;
    }
    let Ok(mut redis) = TcpStream::connect(upstream).await else {
        return reset(&client);
    };
    for socket in [&client, &redis] {
        _ = socket.set_nodelay(true);
    }
    let dead = AtomicBool::new(false);
    let end = {
        let (from_client, to_client) = client.split();
        let (from_redis, to_redis) = redis.split();
        let requests = Pump {
            modes: modes.clone(),
            dead: &dead,
            replies: false,
        };
        let replies = Pump {
            modes: modes.clone(),
            dead: &dead,
            replies: true,
        };
        tokio::select! {
            end = requests.run(from_client, to_redis) => end,
            end = replies.run(from_redis, to_client) => end,
            // This ends with an error only when the proxy is dropped.
            _ = modes.wait_for(|mode| *mode == Mode::Refuse) => End::Reset,
        }
    };
    match end {
        End::Close => {}
        End::Reset => reset(&client),
        End::Late(commands) => {
            drop(client);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(LATE))).await;
            if redis.write_all(&commands).await.is_ok() {
                _ = tokio::time::timeout(LINGER, swallow(&mut redis)).await;
            }
        }
    }
}

/// Makes the socket send a reset when it is closed.
fn reset(socket: &TcpStream) {
    _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Reads and drops everything until the peer closes.
async fn swallow(socket: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

/// One direction of one connection.
struct Pump<'a> {
    modes: watch::Receiver<Mode>,
    /// True once bytes were dropped. From then on, the connection passes nothing.
    dead: &'a AtomicBool,
    replies: bool,
}

impl Pump<'_> {
    /// Copies bytes until the connection ends.
    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> End {
        // The queue is bounded, so that a slow reader makes the sender wait, as on a real network.
        let (queue, queued) = mpsc::channel(256);
        let (modes, replies) = (self.modes.clone(), self.replies);
        tokio::select! {
            end = self.read(from, queue) => end,
            end = write(to, queued, modes, replies) => end,
        }
    }

    async fn read(&self, mut from: ReadHalf<'_>, queue: mpsc::Sender<(Instant, Vec<u8>)>) -> End {
        let mut until_kept = fastrand::usize(BEFORE_KEEPING);
        loop {
            let mut chunk = vec![0; 16 * 1024];
            let Ok(length @ 1..) = from.read(&mut chunk).await else {
                if self.replies && self.dead.load(Ordering::Relaxed) {
                    // On a dead connection, the close of the peer does not arrive either.
                    std::future::pending::<()>().await;
                }
                return End::Close;
            };
            chunk.truncate(length);
            if self.replies {
                // This ends with an error only when the proxy is dropped.
                _ = self
                    .modes
                    .clone()
                    .wait_for(|mode| *mode != Mode::Stall)
                    .await;
            }
            let mode = *self.modes.borrow();
            if mode == Mode::Silent {
                self.dead.store(true, Ordering::Relaxed);
            }
            if self.dead.load(Ordering::Relaxed) {
                continue;
            }
            if mode == Mode::DeliverLate && !self.replies {
                if chunk.len() > until_kept {
                    return End::Late(chunk);
                }
                until_kept -= chunk.len();
            }
            let delay = match mode {
                Mode::Delay(delay) if self.replies => delay,
                _ => Duration::ZERO,
            };
            if queue.send((Instant::now() + delay, chunk)).await.is_err() {
                return End::Close;
            }
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    modes: watch::Receiver<Mode>,
    replies: bool,
) -> End {
    let mut until_reset = fastrand::usize(BEFORE_RESET);
    let mut until_swallowed = fastrand::usize(BEFORE_SWALLOWING);
    while let Some((due, chunk)) = queued.recv().await {
        tokio::time::sleep_until(due).await;
        let mode = *modes.borrow();
        let written = match mode {
            Mode::Trickle if replies => trickle(&mut to, &chunk).await,
            Mode::ResetInReply if replies => {
                if chunk.len() > until_reset {
                    _ = to.write_all(&chunk[..until_reset]).await;
                    return End::Reset;
                }
                until_reset -= chunk.len();
                to.write_all(&chunk).await
            }
            Mode::SwallowReply if replies => {
                if chunk.len() > until_swallowed {
                    return End::Close;
                }
                until_swallowed -= chunk.len();
                to.write_all(&chunk).await
            }
            _ => to.write_all(&chunk).await,
        };
        if written.is_err() {
            return End::Close;
        }
    }
    End::Close
}

async fn trickle(to: &mut WriteHalf<'_>, chunk: &[u8]) -> std::io::Result<()> {
    for byte in chunk {
        to.write_all(std::slice::from_ref(byte)).await?;
        // Lets the peer read this byte alone.
        tokio::task::yield_now().await;
    }
    Ok(())
}

//! A TCP proxy that makes a network misbehave, between the service and Redis.

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

/// What happens to bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Replies come this much later.
    Delay(Duration),
    /// Replies come one byte at a time.
    Trickle,
    /// Bytes vanish, in both directions. A connection that was seen in this mode stays that way.
    Silent,
    /// Replies are not read: the side that sends them has to wait.
    Stall,
    /// Connections are reset as soon as they are there.
    Refuse,
    /// A connection is reset in the middle of a reply, after a few hundred bytes.
    ResetInReply,
    /// After some thousand bytes of replies one is swallowed, and the connection closed: the
    /// command was executed, and its sender does not hear of it.
    SwallowReply,
    /// After some thousand bytes of commands the connection is closed towards their sender. The
    /// commands that have come are delivered later, after at most 600 ms.
    DeliverLate,
}

/// Bytes that come through in one direction before a connection is reset, a reply is swallowed or
/// commands are kept. The last two hit one connection after the other, not all at once, so that
/// somebody is there to see what comes of it.
const BEFORE_RESET: Range<usize> = 200..2_000;
const BEFORE_SWALLOWING: Range<usize> = 500..6_000;
const BEFORE_KEEPING: Range<usize> = 2_000..25_000;
/// When a device on the line delivers what it has kept.
const LATE: Range<u64> = 50..600;
/// How long it then keeps the connection.
const LINGER: Duration = Duration::from_millis(200);

/// How one direction of a connection has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// One side is gone: the other one is closed.
    Close,
    /// The other one gets a reset.
    Reset,
    /// The sender is closed, and Redis gets these bytes later.
    Late(Vec<u8>),
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Proxy {
    /// To a port of 127.0.0.1.
    pub fn start(upstream: u16) -> Self {
        let (mode, modes) = watch::channel(Mode::Pass);
        let accepted = Arc::<AtomicUsize>::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let port = listener.local_addr().expect("an address").port();
        let counter = Arc::clone(&accepted);
        let thread = thread::spawn(move || {
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
            thread: Some(thread),
            stop: Some(stop),
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// How many connections have been opened so far.
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
            // Fails only with the proxy itself.
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

/// Makes closing it a reset.
fn reset(socket: &TcpStream) {
    _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Reads until the peer is gone.
async fn swallow(socket: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

/// One direction of one connection.
struct Pump<'a> {
    modes: watch::Receiver<Mode>,
    /// Whether bytes have vanished: from then on nothing comes through any more.
    dead: &'a AtomicBool,
    replies: bool,
}

impl Pump<'_> {
    /// Runs until one side is gone, or is to go.
    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> End {
        // Bounded, so that a slow side holds up the other, as on a real network.
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
                    // The far end of a dead line can close what it wants.
                    std::future::pending::<()>().await;
                }
                return End::Close;
            };
            chunk.truncate(length);
            if self.replies {
                // Fails only with the proxy itself.
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
        // Gives the other side the time to read it by itself.
        tokio::task::yield_now().await;
    }
    Ok(())
}

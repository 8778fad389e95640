//! A line to a Redis that misbehaves once, when and how a test says.
//!
//! A fault begins with the first piece of bytes from dyndata that has a certain text in it. The
//! line then does its part, tells the test, and waits for the test before it goes on.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::AbortHandle,
};

/// What happens to a piece of bytes that has the text of a fault in it.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Redis gets it and replies; the reply is lost. The connection closes once the test says so.
    LoseReply,
    /// Redis gets it and replies; the reply is lost, and the connection goes on.
    SwallowReply,
    /// The head of a reply comes that is larger than anything that follows, and the connection goes
    /// on.
    EndlessReply,
    /// The connection closes. Redis gets the piece once the test says so.
    DeliverLate,
    /// Redis gets what is before the text, and the rest once the test says so.
    Split,
    /// Nothing is read any more. The connection closes once the test says so.
    Stall,
    /// Nothing is forwarded before this many GETs have come as well. The replies that follow a
    /// READONLY are held back until the test says so.
    HoldReplies { gets: usize },
    /// The reply comes this much later.
    Delay(Duration),
}

/// A fault that is to come.
#[derive(Debug)]
struct Script {
    text: &'static [u8],
    fault: Fault,
    reached: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
}

/// The test's end of a fault.
#[derive(Debug)]
pub struct Armed {
    reached: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Armed {
    /// Waits until the line has done its part.
    pub async fn reached(&mut self) {
        let reached = tokio::time::timeout(super::PATIENCE, &mut self.reached);
        reached.await.expect("in time").expect("the line is there");
    }

    /// Lets the line go on.
    pub fn go(self) {
        _ = self.go.send(());
    }
}

#[derive(Debug)]
pub struct ScriptedProxy {
    pub port: u16,
    target: Arc<AtomicU16>,
    scripts: Arc<Mutex<Vec<Script>>>,
    task: AbortHandle,
}

impl ScriptedProxy {
    /// To the Redis on this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("binds");
        // Small buffers on both sides, so that a stalled line soon makes its peer wait.
        let socket = SockRef::from(&listener);
        socket.set_recv_buffer_size(64 << 10).expect("a socket");
        socket.set_tcp_mss(1460).expect("a socket");
        let target = Arc::new(AtomicU16::new(port));
        let scripts = Arc::<Mutex<Vec<Script>>>::default();
        let port = listener.local_addr().expect("an address").port();
        let task = tokio::spawn(accept(listener, Arc::clone(&target), Arc::clone(&scripts)));
        Self {
            port,
            target,
            scripts,
            task: task.abort_handle(),
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections lead to the Redis on this port.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }

    /// Lets a fault come with the next bytes from dyndata that have this text in them.
    pub fn arm(&self, text: &'static str, fault: Fault) -> Armed {
        let (reached, reached_by_line) = oneshot::channel();
        let (go, go_by_test) = oneshot::channel();
        self.scripts.lock().expect("no panic").push(Script {
            text: text.as_bytes(),
            fault,
            reached,
            go: go_by_test,
        });
        Armed {
            reached: reached_by_line,
            go,
        }
    }
}

impl Drop for ScriptedProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: Arc<AtomicU16>, scripts: Arc<Mutex<Vec<Script>>>) {
    loop {
        let (client, _) = listener.accept().await.expect("accepts");
        let port = target.load(Ordering::Relaxed);
        let Ok(redis) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
            continue;
        };
        let scripts = Arc::clone(&scripts);
        // An error ends the connection, as it would without a line.
        tokio::spawn(async move { relay(client, redis, &scripts).await });
    }
}

async fn relay(
    mut client: TcpStream,
    mut redis: TcpStream,
    scripts: &Mutex<Vec<Script>>,
) -> std::io::Result<()> {
    let (mut request, mut reply) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            length = client.read(&mut request) => {
                let piece = &request[..length?];
                if piece.is_empty() {
                    return Ok(());
                }
                let script = {
                    let mut scripts = scripts.lock().expect("no panic");
                    let place = scripts.iter().position(|it| find(piece, it.text).is_some());
                    place.map(|place| scripts.remove(place))
                };
                match script {
                    None => redis.write_all(piece).await?,
                    Some(script) => match play(script, piece, client, redis).await? {
                        Some(streams) => (client, redis) = streams,
                        None => return Ok(()),
                    },
                }
            }
            length = redis.read(&mut reply) => {
                let piece = &reply[..length?];
                if piece.is_empty() {
                    return Ok(());
                }
                client.write_all(piece).await?;
            }
        }
    }
}

/// Gives the streams back if the connection goes on.
async fn play(
    script: Script,
    piece: &[u8],
    mut client: TcpStream,
    mut redis: TcpStream,
) -> std::io::Result<Option<(TcpStream, TcpStream)>> {
    let Script {
        text,
        fault,
        reached,
        mut go,
    } = script;
    let mut reply = vec![0; 1 << 16];
    match fault {
        Fault::LoseReply => {
            redis.write_all(piece).await?;
            _ = redis.read(&mut reply).await?;
            _ = reached.send(());
            _ = go.await;
            Ok(None)
        }
        Fault::SwallowReply => {
            redis.write_all(piece).await?;
            _ = redis.read(&mut reply).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::EndlessReply => {
            client.write_all(b"$400000000\r\n").await?;
            redis.write_all(piece).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::DeliverLate => {
            drop(client);
            _ = reached.send(());
            _ = go.await;
            redis.write_all(piece).await?;
            _ = redis.read(&mut reply).await?;
            Ok(None)
        }
        Fault::Stall => {
            _ = reached.send(());
            _ = go.await;
            Ok(None)
        }
        Fault::Split => {
            let (before, rest) = piece.split_at(find(piece, text).unwrap_or(0));
            redis.write_all(before).await?;
            // Redis has executed it when it replies.
            let length = redis.read(&mut reply).await?;
            client.write_all(&reply[..length]).await?;
            _ = reached.send(());
            _ = go.await;
            redis.write_all(rest).await?;
            Ok(Some((client, redis)))
        }
        Fault::Delay(time) => {
            redis.write_all(piece).await?;
            let length = redis.read(&mut reply).await?;
            tokio::time::sleep(time).await;
            client.write_all(&reply[..length]).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::HoldReplies { gets } => {
            let mut gathered = piece.to_vec();
            while count(&gathered, b"$3\r\nGET\r\n") < gets {
                client.read_buf(&mut gathered).await?;
            }
            redis.write_all(&gathered).await?;
            let mut replies = Vec::new();
            let end = loop {
                redis.read_buf(&mut replies).await?;
                if let Some(start) = find(&replies, b"-READONLY")
                    && let Some(length) = find(&replies[start..], b"\r\n")
                {
                    break start + length + 2;
                }
            };
            client.write_all(&replies[..end]).await?;
            _ = reached.send(());
            loop {
                tokio::select! {
                    _ = &mut go => break,
                    length = redis.read_buf(&mut replies) => { _ = length?; }
                }
            }
            client.write_all(&replies[end..]).await?;
            Ok(Some((client, redis)))
        }
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|part| part == text)
}

fn count(bytes: &[u8], text: &[u8]) -> usize {
    bytes
        .windows(text.len())
        .filter(|part| *part == text)
        .count()
}

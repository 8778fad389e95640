//! A TCP proxy to a Redis that injects one fault at a moment that the test chooses.
//!
//! A fault starts with the first chunk of bytes from dyndata that contains a given text. The proxy
//! then injects the fault, tells the test, and waits until the test lets it continue.
//!
//! The fault suite has another proxy. It simulates a faulty network for all connections and for a
//! span of time, while this one acts on single commands.

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

/// What the proxy does with the chunk that contains the text of the fault.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Redis gets the chunk and its reply is dropped. The connection closes when the test says so.
    LoseReply,
    /// Redis gets the chunk and its reply is dropped. The connection stays open.
    SwallowReply,
    /// dyndata gets the header of a reply that is longer than anything that follows. The connection
    /// stays open.
    EndlessReply,
    /// The connection to dyndata closes. Redis gets the chunk when the test says so.
    DeliverLate,
    /// Redis gets the bytes before the text, and the rest when the test says so.
    Split,
    /// The proxy stops reading. The connection closes when the test says so.
    Stall,
    /// Redis gets nothing before the proxy has this many GETs too. The replies that follow a
    /// READONLY are held back until the test says so.
    HoldReplies { gets: usize },
    /// The reply is delayed by this time.
    Delay(Duration),
}

/// A fault that has not happened yet.
#[derive(Debug)]
struct Script {
    text: &'static [u8],
    fault: Fault,
    reached: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
}

/// The handle with which a test controls a fault.
#[derive(Debug)]
pub struct Armed {
    reached: oneshot::Receiver<()>,
    go: oneshot::Sender<()>,
}

impl Armed {
    /// Waits until the proxy has injected the fault.
    pub async fn reached(&mut self) {
        let reached = tokio::time::timeout(super::PATIENCE, &mut self.reached);
        reached.await.expect("in time").expect("the proxy runs");
    }

    /// Lets the proxy continue.
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
    /// Starts a proxy to the Redis on this port.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("binds");
        // Small buffers, so that a stalled proxy soon makes dyndata wait.
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

    /// New connections go to the Redis on this port.
    pub fn forward_to(&self, port: u16) {
        self.target.store(port, Ordering::Relaxed);
    }

    /// Injects a fault at the next chunk from dyndata that contains this text.
    pub fn arm(&self, text: &'static str, fault: Fault) -> Armed {
        let (reached, on_reached) = oneshot::channel();
        let (go, on_go) = oneshot::channel();
        self.scripts.lock().expect("no panic").push(Script {
            text: text.as_bytes(),
            fault,
            reached,
            go: on_go,
        });
        Armed {
            reached: on_reached,
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
        // An error ends the connection, as it would without a proxy.
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
                let chunk = &request[..length?];
                if chunk.is_empty() {
                    return Ok(());
                }
                let script = {
                    let mut scripts = scripts.lock().expect("no panic");
                    let place = scripts.iter().position(|it| find(chunk, it.text).is_some());
                    place.map(|place| scripts.remove(place))
                };
                match script {
                    None => redis.write_all(chunk).await?,
                    Some(script) => match inject(script, chunk, client, redis).await? {
                        Some(streams) => (client, redis) = streams,
                        None => return Ok(()),
                    },
                }
            }
            length = redis.read(&mut reply) => {
                let chunk = &reply[..length?];
                if chunk.is_empty() {
                    return Ok(());
                }
                client.write_all(chunk).await?;
            }
        }
    }
}

/// Injects the fault. Returns the streams if the connection stays open.
async fn inject(
    script: Script,
    chunk: &[u8],
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
            redis.write_all(chunk).await?;
            _ = redis.read(&mut reply).await?;
            _ = reached.send(());
            _ = go.await;
            Ok(None)
        }
        Fault::SwallowReply => {
            redis.write_all(chunk).await?;
            _ = redis.read(&mut reply).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::EndlessReply => {
            client.write_all(b"$400000000\r\n").await?;
            redis.write_all(chunk).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::DeliverLate => {
            drop(client);
            _ = reached.send(());
            _ = go.await;
            redis.write_all(chunk).await?;
            _ = redis.read(&mut reply).await?;
            Ok(None)
        }
        Fault::Stall => {
            _ = reached.send(());
            _ = go.await;
            Ok(None)
        }
        Fault::Split => {
            let (before, rest) = chunk.split_at(find(chunk, text).unwrap_or(0));
            redis.write_all(before).await?;
            // A reply means that Redis has executed the first part.
            let length = redis.read(&mut reply).await?;
            client.write_all(&reply[..length]).await?;
            _ = reached.send(());
            _ = go.await;
            redis.write_all(rest).await?;
            Ok(Some((client, redis)))
        }
        Fault::Delay(time) => {
            redis.write_all(chunk).await?;
            let length = redis.read(&mut reply).await?;
            tokio::time::sleep(time).await;
            client.write_all(&reply[..length]).await?;
            _ = reached.send(());
            Ok(Some((client, redis)))
        }
        Fault::HoldReplies { gets } => {
            let mut gathered = chunk.to_vec();
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

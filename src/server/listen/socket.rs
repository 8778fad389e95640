//! Listeners, and how to keep accepting when the system is short of something.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::{fs::FileTypeExt as _, net::UnixStream as StdUnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::{config::ListenAddr, systemd::Inherited};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// The pause after a failed accept, doubled each time, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An accepted socket that belongs to no event loop yet.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(std::net::TcpStream, PeerSlot),
    Unix(StdUnixStream),
}

/// How many connections each peer address has. Clones share the counts.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// One connection of a peer, for as long as it lasts.
#[derive(Debug)]
pub(crate) struct PeerSlot {
    peers: Peers,
    addr: IpAddr,
}

impl Peers {
    /// At most `max` connections for each.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            counts: Arc::default(),
            max,
        }
    }

    pub(crate) fn enter(&self, addr: IpAddr) -> Option<PeerSlot> {
        let mut counts = self.counts();
        let count = counts.entry(network(addr)).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(PeerSlot {
            peers: self.clone(),
            addr,
        })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut counts = self.peers.counts();
        if let Entry::Occupied(mut count) = counts.entry(network(self.addr)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, or the /64 that one IPv6 host usually has to itself.
fn network(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => {
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64))
        }
        addr => addr,
    }
}

/// The gRPC listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// Ours to remove, unless somebody else has opened the socket.
        _file: Option<SocketFile>,
    },
}

/// Removes the socket's file when the listener goes.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have tidied up already.
        _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(crate) async fn bind(addr: &ListenAddr) -> io::Result<Self> {
        match addr {
            ListenAddr::Tcp(addr) => bind_tcp(*addr).map(Self::Tcp),
            ListenAddr::Unix(path) => {
                // What a crashed process left behind is in the way; a live one's must stay.
                let left_behind = fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
                    && StdUnixStream::connect(path)
                        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
                if left_behind {
                    fs::remove_file(path)?;
                }
                Ok(Self::Unix {
                    listener: UnixListener::bind(path)?,
                    path: path.clone(),
                    _file: Some(SocketFile(path.clone())),
                })
            }
        }
    }

    /// Takes over a socket that somebody else has opened.
    pub(crate) fn adopt(socket: Inherited, addr: &ListenAddr) -> io::Result<Self> {
        Ok(match socket {
            Inherited::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Inherited::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix {
                    listener: UnixListener::from_std(listener)?,
                    path: match addr {
                        ListenAddr::Unix(path) => path.clone(),
                        ListenAddr::Tcp(_) => PathBuf::new(),
                    },
                    _file: None,
                }
            }
        })
    }

    pub(crate) fn local_addr(&self) -> ListenAddr {
        match self {
            // A listener that is bound has an address.
            Self::Tcp(listener) => ListenAddr::Tcp(
                listener
                    .local_addr()
                    .unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))),
            ),
            Self::Unix { path, .. } => ListenAddr::Unix(path.clone()),
        }
    }

    /// None if the peer has too many connections already; this one is closed then. Cancel-safe.
    pub(crate) async fn accept(&self, peers: &Peers) -> io::Result<Option<Socket>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let Some(slot) = peers.enter(peer.ip()) else {
                    return Ok(None);
                };
                // Replies are small, and each is waited for.
                stream.set_nodelay(true)?;
                Ok(Some(Socket::Tcp(stream.into_std()?, slot)))
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Some(Socket::Unix(stream.into_std()?)))
            }
        }
    }
}

/// Opens a TCP listener.
pub(crate) fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts until it works. What fails because the peer went away is tried again at once; what
/// fails because the system is short of something (EMFILE) after a pause that grows.
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

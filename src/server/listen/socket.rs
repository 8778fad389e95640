//! The listening sockets, and the sockets that they accept.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::FileTypeExt as _, net::UnixStream as StdUnixStream},
    path::PathBuf,
};

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use super::peers::{PeerSlot, Peers};
use super::settings::ListenAddr;
use crate::systemd::Inherited;

/// How many connections the kernel may queue until they are accepted.
const BACKLOG: u32 = 1024;

/// An accepted socket that no event loop has registered yet.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(std::net::TcpStream, PeerSlot),
    Unix(StdUnixStream),
}

/// The gRPC listener.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
        /// `None` if another process has opened the socket: then it removes the file.
        _file: Option<SocketFile>,
    },
}

/// Removes the file of a unix socket on drop.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The file may be gone already.
        _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    pub(crate) async fn bind(addr: &ListenAddr) -> io::Result<Self> {
        match addr {
            ListenAddr::Tcp(addr) => bind_tcp(*addr).map(Self::Tcp),
            ListenAddr::Unix(path) => {
                // The file of a crashed process is in the way. That of a live one must stay.
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

    /// Takes over a socket that another process has opened.
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
            // Does not fail: a bound listener has an address.
            Self::Tcp(listener) => ListenAddr::Tcp(
                listener
                    .local_addr()
                    .unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0))),
            ),
            Self::Unix { path, .. } => ListenAddr::Unix(path.clone()),
        }
    }

    /// Accepts a connection. Closes it and returns `None` if its peer has too many. Cancel-safe.
    pub(crate) async fn accept(&self, peers: &Peers) -> io::Result<Option<Socket>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                let Some(slot) = peers.enter(peer.ip()) else {
                    return Ok(None);
                };
                // Replies are small, and the client waits for each of them.
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

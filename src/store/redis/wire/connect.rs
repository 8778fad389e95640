//! Connections to Redis that are ready for calls: a TCP, TLS or unix socket, and a handshake on it.
//!
//! TCP sockets have TCP_NODELAY, because commands are small and each is waited for. Keepalive and
//! the user timeout find out that a peer is gone.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use redis::{Cmd, ConnectionAddr, RedisConnectionInfo};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{
    clock::Sample,
    failure::{self, ConnectError},
    handshake::{self, Greeted},
    resp::{Replies, Reply},
    tls::{RedisTls, RedisTlsFiles},
    url::RedisUrl,
};

/// Keepalive probes start after this long without traffic, and repeat as often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long written bytes may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Any connected socket.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Connects to Redis servers with one set of credentials, with TLS or without.
#[derive(Clone)]
pub(crate) struct Connector {
    /// User, password and database of the data nodes.
    identity: RedisConnectionInfo,
    password_file: Option<PathBuf>,
    tls: Option<RedisTls>,
    /// Whether connections estimate the clock of their server.
    estimates_clock: bool,
}

/// A connection that is authenticated, on the right database, and answered a PING.
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Transport>,
    /// Where it leads.
    pub(crate) addr: ConnectionAddr,
    /// Why the server cannot serve, if it answers and yet cannot: it loads its data, for example.
    pub(crate) unwell: Option<String>,
    /// What its clock showed, if anybody uses that.
    pub(crate) clock: Option<Sample>,
}

impl Connector {
    /// A connector with the user, password, database and TLS of a URL.
    pub(crate) fn new(url: &RedisUrl, password_file: Option<PathBuf>, tls: RedisTlsFiles) -> Self {
        Self {
            identity: url.identity().clone(),
            password_file,
            tls: url.is_tls().then(|| RedisTls::new(tls)),
            estimates_clock: false,
        }
    }

    /// The same, with connections that estimate the clock of their server, or without.
    pub(crate) fn estimating_clock(self, estimates_clock: bool) -> Self {
        Self {
            estimates_clock,
            ..self
        }
    }

    /// Whether connections estimate the clock of their server.
    pub(crate) fn estimates_clock(&self) -> bool {
        self.estimates_clock
    }

    /// The address of a host and port. It says whether to use TLS.
    pub(crate) fn addr(&self, host: String, port: u16) -> ConnectionAddr {
        if self.tls.is_some() {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    }

    /// Connects to a data node and asks it `questions` after a PING. A host name is resolved at
    /// every connect.
    ///
    /// Cancel-safe: dropping the call closes the connection.
    pub(crate) async fn connect<const N: usize>(
        &self,
        addr: ConnectionAddr,
        questions: [Cmd; N],
    ) -> Result<(Connected, [Bytes; N]), ConnectError> {
        let stream = self.open(&addr).await?;
        let identity = self.identity()?;
        let Greeted {
            stream,
            unwell,
            replies,
        } = handshake::greet(stream, &identity, questions).await?;
        let (stream, clock) = match self.estimates_clock {
            false => (stream, None),
            true => handshake::look_at_clock(stream).await?,
        };
        let connected = Connected {
            stream,
            addr,
            unwell,
            clock,
        };
        Ok((connected, replies))
    }

    /// Asks a sentinel `questions`. Sentinels often have no password, so they get ours only if one
    /// does not answer the last question without.
    pub(crate) async fn ask_sentinel<const N: usize>(
        &self,
        addr: &ConnectionAddr,
        questions: [Cmd; N],
    ) -> Result<[Bytes; N], ConnectError> {
        let nobody = RedisConnectionInfo::default();
        let replies = handshake::ask(self.open(addr).await?, &nobody, &questions).await?;
        let ours = self.identity()?;
        if ours.password().is_none() || !replies.last().is_some_and(|reply| wants_password(reply)) {
            return Ok(replies);
        }
        handshake::ask(self.open(addr).await?, &ours, &questions).await
    }

    /// User, password and database.
    fn identity(&self) -> Result<RedisConnectionInfo, ConnectError> {
        let identity = self.identity.clone();
        let Some(file) = &self.password_file else {
            return Ok(identity);
        };
        // Read at every connect, so that a new password is picked up.
        let password = std::fs::read_to_string(file).map_err(ConnectError::PasswordFile)?;
        Ok(identity.set_password(password.trim_end_matches(['\r', '\n'])))
    }

    async fn open(&self, addr: &ConnectionAddr) -> Result<Box<dyn Transport>, ConnectError> {
        Ok(match addr {
            ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let Some(tls) = &self.tls else {
                    return Err(io::Error::other("TLS is not set up").into());
                };
                let tls = tls.connector()?;
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| ConnectError::ServerName)?;
                Box::new(tls.connect(name, tcp(host, *port).await?).await?)
            }
            ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
            // RedisUrl admits no other kind.
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        })
    }
}

/// Whether a reply says that the server wants other credentials.
fn wants_password(reply: &[u8]) -> bool {
    match Replies::new(reply).next() {
        Some(Reply::Error(line)) => {
            let line = String::from_utf8_lossy(line);
            failure::is_about_credentials(failure::split(&line).0)
        }
        _ => false,
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

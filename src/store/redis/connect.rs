//! Connections to Redis: a TCP, TLS or unix socket with the options that a long-lived connection
//! needs, then the redis crate's handshake (password, database, PING).
//!
//! TCP_NODELAY, because commands are small and each is waited for; keepalive and the user
//! timeout, so that a peer that is gone without a word is noticed.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use super::RedisUrl;

/// Probes start after this long without traffic, and repeat as often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long written bytes may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Any connected socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Knows how to reach one Redis.
#[derive(Clone)]
pub(super) struct Connector {
    url: RedisUrl,
    password_file: Option<PathBuf>,
    tls: Option<TlsConnector>,
}

/// Why there is no connection. For the log and `/readyz`, not for callers.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("cannot read the password file: {0}")]
    PasswordFile(#[source] io::Error),
    #[error("the server name is not valid for TLS")]
    ServerName,
    #[error("connection closed")]
    Closed,
}

impl Connector {
    /// Trusts the system's certificate authorities for `rediss://`.
    pub(super) fn new(url: RedisUrl, password_file: Option<PathBuf>) -> Self {
        let tls = matches!(url.connection_info().addr(), ConnectionAddr::TcpTls { .. })
            .then(tls_connector);
        Self {
            url,
            password_file,
            tls,
        }
    }

    /// Gives a socket that Redis has greeted: authenticated, on the right database, answering.
    /// Cancel-safe: a connection that is not finished is dropped.
    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ConnectError> {
        let stream = Shared(Arc::new(Mutex::new(self.open().await?)));
        handshake(&self.settings()?, stream.clone()).await?;
        // The handshake has dropped its end.
        let stream = Arc::into_inner(stream.0).ok_or(ConnectError::Closed)?;
        Ok(stream.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// User, password and database.
    fn settings(&self) -> Result<RedisConnectionInfo, ConnectError> {
        let settings = self.url.connection_info().redis_settings().clone();
        let Some(file) = &self.password_file else {
            return Ok(settings);
        };
        // Read anew each time, so that a rotated password is picked up.
        let password = std::fs::read_to_string(file).map_err(ConnectError::PasswordFile)?;
        Ok(settings.set_password(password.trim_end_matches(['\r', '\n'])))
    }

    async fn open(&self) -> Result<Box<dyn Stream>, ConnectError> {
        Ok(match self.url.connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let Some(tls) = &self.tls else {
                    return Err(io::Error::other("TLS is not set up").into());
                };
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

/// Lets the redis crate greet Redis over the stream, and lets go of it.
async fn handshake(settings: &RedisConnectionInfo, stream: Shared) -> Result<(), ConnectError> {
    // The caller's timeout covers all of this.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(settings, stream, config).await?;
    let mut ping = Cmd::new();
    ping.arg("PING");
    tokio::select! {
        pong = connection.send_packed_command(&ping) => Ok(pong?.extract_error().map(drop)?),
        () = driver => Err(ConnectError::Closed),
    }
}

/// A stream that can be taken back from whoever was given a clone.
#[derive(Clone)]
struct Shared(Arc<Mutex<Box<dyn Stream>>>);

impl Shared {
    fn with<T>(&self, act: impl FnOnce(Pin<&mut dyn Stream>) -> T) -> T {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(Pin::new(&mut **stream))
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
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

fn tls_connector() -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a system certificate");
    }
    roots.add_parsable_certificates(found.certs);
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

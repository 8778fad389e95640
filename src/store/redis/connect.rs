//! Sockets to Redis: TCP, TLS or unix, with the options that a long-lived connection needs.
//!
//! TCP_NODELAY, because commands are small and each is waited for; keepalive and the user
//! timeout, so that a peer that is gone without a word is noticed.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use redis::{ConnectionAddr, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
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

    /// Opens a socket; also gives the user, password and database to set it up with.
    pub(super) async fn connect(
        &self,
    ) -> Result<(RedisConnectionInfo, Box<dyn Stream>), ConnectError> {
        let info = self.url.connection_info();
        let mut settings = info.redis_settings().clone();
        if let Some(file) = &self.password_file {
            // Read anew each time, so that a rotated password is picked up.
            let password = std::fs::read_to_string(file).map_err(ConnectError::PasswordFile)?;
            settings = settings.set_password(password.trim_end_matches(['\r', '\n']));
        }
        let stream: Box<dyn Stream> = match info.addr() {
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
        };
        Ok((settings, stream))
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

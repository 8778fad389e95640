//! Connections to Redis: a TCP, TLS or unix socket with the options that a long-lived connection
//! needs, then the redis crate's handshake (password, database) and a PING.
//!
//! TCP_NODELAY, because commands are small and each is waited for; keepalive and the user
//! timeout, so that a peer that is gone without a word is noticed.

use std::{
    fmt, io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ErrorKind, RedisConnectionInfo, RedisError, Value,
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

use super::{
    failure::{self, PingFailure},
    tls::{self, RedisTlsError, RedisTlsFiles},
    url::RedisUrl,
};
use crate::store::{
    failure::StoreError,
    redis::servers::{link::Challenge, sentinel::Sentinels},
};

/// Probes start after this long without traffic, and repeat as often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long written bytes may stay unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// Any connected socket.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Knows how to reach one Redis, wherever it is at the moment.
#[derive(Clone)]
pub(crate) struct Connector {
    place: Place,
    /// Of the data nodes: user, password and database.
    settings: RedisConnectionInfo,
    password_file: Option<PathBuf>,
    tls: Option<Tls>,
}

/// How TLS is spoken, if it is.
#[derive(Clone)]
enum Tls {
    /// Trusting the system's authorities, which are read once.
    System(TlsConnector),
    /// With these files, which are read at every connect, so that new ones are picked up.
    Files(RedisTlsFiles),
}

/// Where Redis is.
#[derive(Clone)]
enum Place {
    /// Always here; a host name is resolved at every connect.
    Address(ConnectionAddr),
    /// Wherever the sentinels say that the master is.
    Master(Sentinels),
}

/// A connection that Redis has greeted: authenticated, on the right database, answering.
pub(crate) struct Connected {
    pub(crate) stream: Box<dyn Stream>,
    /// Where it leads.
    pub(crate) addr: ConnectionAddr,
    /// What Redis says if it answers and yet cannot serve, as while it loads its data.
    pub(crate) unwell: Option<String>,
}

/// Why there is no connection. For the log and `/readyz`, not for callers.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("cannot read the password file: {0}")]
    PasswordFile(#[source] io::Error),
    #[error("{0}")]
    Tls(#[from] RedisTlsError),
    #[error("the server name is not valid for TLS")]
    ServerName,
    #[error("connection closed")]
    Closed,
    #[error("its reply to a PING is not the one to that PING")]
    OutOfStep,
    #[error("no node of the cluster answers")]
    NoNode,
    #[error("no node of the cluster that answers knows who has its slots")]
    NoSlots,
    #[error("no sentinel answers")]
    NoSentinel,
    #[error("the sentinels know no master of this name")]
    UnknownMaster,
    #[error("the sentinels disagree about who the master is")]
    Disagreement,
    #[error("{0} is not a master")]
    NotMaster(String),
}

impl ConnectError {
    /// What it is for the calls that come meanwhile.
    pub(crate) fn of_a_call(&self) -> StoreError {
        match self {
            Self::Redis(error)
                if error.kind() == ErrorKind::AuthenticationFailed
                    || error.code().is_some_and(failure::is_about_credentials) =>
            {
                StoreError::Auth
            }
            _ => StoreError::Unavailable,
        }
    }
}

impl Connector {
    /// To the Redis behind a URL.
    pub(crate) fn to(url: &RedisUrl, password_file: Option<PathBuf>, tls: RedisTlsFiles) -> Self {
        let info = url.connection_info();
        Self {
            settings: info.redis_settings().clone(),
            password_file,
            tls: url.is_tls().then(|| match tls.are_given() {
                true => Tls::Files(tls),
                false => Tls::System(tls::system()),
            }),
            place: Place::Address(info.addr().clone()),
        }
    }

    /// To the master that sentinels name, with the user, password, database and TLS of this
    /// one.
    pub(crate) fn through(self, sentinels: Sentinels) -> Self {
        Self {
            place: Place::Master(sentinels),
            ..self
        }
    }

    /// The same, to another node of a cluster.
    pub(crate) fn to_node(&self, host: String, port: u16) -> Self {
        Self {
            place: Place::Address(self.addr(host, port)),
            ..self.clone()
        }
    }

    /// The address of a host that is spoken to as the first one is, with TLS or without.
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

    /// Cancel-safe: a connection that is not finished is dropped.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        match &self.place {
            Place::Address(addr) => self.greet(addr.clone(), &mut []).await,
            Place::Master(sentinels) => sentinels.connect(self).await,
        }
    }

    /// Whether a connection to `addr` is to be kept: false if it should be given up because
    /// another server has taken its place. Waits for other servers, so bound it. Cancel-safe.
    pub(crate) async fn is_right(&self, addr: &ConnectionAddr) -> bool {
        match &self.place {
            Place::Address(_) => true,
            Place::Master(sentinels) => sentinels.agree_on(self, addr).await,
        }
    }

    /// Connects to `addr` as to a data node, and asks it the commands after a PING; their replies
    /// are put beside them.
    pub(crate) async fn greet(
        &self,
        addr: ConnectionAddr,
        commands: &mut [(Cmd, Value)],
    ) -> Result<Connected, ConnectError> {
        let stream = self.open(&addr).await?;
        let challenge = Challenge::new();
        let mut question = redis::cmd("PING");
        question.arg(challenge.as_bytes());
        let mut ping = [(question, Value::Nil)];
        let (stream, ()) = handshake(&self.settings()?, stream, async |connection| {
            converse(connection, &mut ping).await?;
            converse(connection, commands).await
        })
        .await?;
        let [(_, pong)] = ping;
        let unwell = match pong.extract_error() {
            Ok(Value::BulkString(text)) if challenge.is_met(&text) => None,
            // From a proxy that ignores the argument.
            Ok(Value::SimpleString(text)) if challenge.is_met(text.as_bytes()) => None,
            Ok(_) => return Err(ConnectError::OutOfStep),
            Err(error) => match error.code().map(failure::of_ping) {
                Some(PingFailure::Harmless) => None,
                Some(PingFailure::Unwell) => Some(error.to_string()),
                Some(PingFailure::Refused) | None => return Err(error.into()),
            },
        };
        Ok(Connected {
            stream,
            addr,
            unwell,
        })
    }

    /// Asks a sentinel these questions; the replies are put beside them. It need not know our
    /// credentials: it gets them if it does not answer the last question without.
    pub(crate) async fn ask_sentinel(
        &self,
        addr: &ConnectionAddr,
        questions: &mut [(Cmd, Value)],
    ) -> Result<(), ConnectError> {
        let ours = self.settings()?.set_db(0);
        let nobody = RedisConnectionInfo::default();
        let identities = match ours.password() {
            Some(_) => vec![nobody, ours],
            None => vec![nobody],
        };
        for identity in identities {
            let stream = self.open(addr).await?;
            handshake(&identity, stream, async |connection| {
                converse(connection, questions).await
            })
            .await?;
            let refused = questions.last().is_some_and(|(_, answer)| {
                let error = answer.clone().extract_error().err();
                error.is_some_and(|error| error.code().is_some_and(failure::is_about_credentials))
            });
            if !refused {
                break;
            }
        }
        Ok(())
    }

    /// User, password and database.
    fn settings(&self) -> Result<RedisConnectionInfo, ConnectError> {
        let settings = self.settings.clone();
        let Some(file) = &self.password_file else {
            return Ok(settings);
        };
        // Read anew each time, so that a rotated password is picked up.
        let password = std::fs::read_to_string(file).map_err(ConnectError::PasswordFile)?;
        Ok(settings.set_password(password.trim_end_matches(['\r', '\n'])))
    }

    async fn open(&self, addr: &ConnectionAddr) -> Result<Box<dyn Stream>, ConnectError> {
        Ok(match addr {
            ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let tls = match &self.tls {
                    Some(Tls::System(connector)) => connector.clone(),
                    Some(Tls::Files(files)) => files.load()?,
                    None => return Err(io::Error::other("TLS is not set up").into()),
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

/// For the log.
impl fmt::Display for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Address(addr) => addr.fmt(f),
            Place::Master(sentinels) => sentinels.fmt(f),
        }
    }
}

/// Lets the redis crate greet Redis over the stream and `talk` to it, and takes the stream back.
async fn handshake<T>(
    settings: &RedisConnectionInfo,
    stream: Box<dyn Stream>,
    talk: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, ConnectError>,
) -> Result<(Box<dyn Stream>, T), ConnectError> {
    let shared = Shared(Arc::new(Mutex::new(stream)));
    let result = {
        // The caller's timeout covers all of this.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (mut connection, driver) =
            MultiplexedConnection::new_with_config(settings, shared.clone(), config).await?;
        tokio::select! {
            result = talk(&mut connection) => result?,
            () = driver => return Err(ConnectError::Closed),
        }
    };
    // The crate has dropped its end.
    let stream = Arc::into_inner(shared.0).ok_or(ConnectError::Closed)?;
    let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok((stream, result))
}

/// Asks each command in turn; an error reply is a reply.
async fn converse(
    connection: &mut MultiplexedConnection,
    commands: &mut [(Cmd, Value)],
) -> Result<(), ConnectError> {
    for (command, answer) in commands {
        *answer = connection.send_packed_command(command).await?;
    }
    Ok(())
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

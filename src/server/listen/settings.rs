//! Settings of the listeners: the addresses, and TLS for gRPC.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    os::unix,
    path::PathBuf,
    str::FromStr,
};

use super::tls::{ClientCertificate, TlsFiles};
use crate::setting::{SettingError, Summary, check};

/// The address of the gRPC listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Whether only programs on this host can connect.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path, such as unix:/run/dyndata.sock".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => parse_socket_addr(text).map(Self::Tcp),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The address of the admin listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminListen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// There is no admin listener.
    Off,
}

impl FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => parse_socket_addr(text).map(Self::Tcp),
        }
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

/// Parses IP:PORT. `localhost` means 127.0.0.1. Other host names are refused: a name can have
/// several addresses, and it may not resolve yet when the process starts.
fn parse_socket_addr(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok())
    {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        "expected IP:PORT or localhost:PORT, such as 127.0.0.1:50051 or [::1]:50051".to_owned()
    })
}

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub(crate) struct ListenArgs {
    /// Address for gRPC: IP:PORT, localhost:PORT, or unix:/path
    #[arg(
        long,
        env = "DYNDATA_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:50051"
    )]
    pub(crate) listen: ListenAddr,

    /// Address for /metrics, /livez, /readyz and the status page over HTTP: IP:PORT,
    /// localhost:PORT, or off
    #[arg(
        long,
        env = "DYNDATA_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:9464"
    )]
    admin_listen: AdminListen,

    /// PEM file with the certificate chain for TLS; with --tls-key. Read again when it changes, and
    /// on SIGHUP
    #[arg(
        long,
        env = "DYNDATA_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,

    /// PEM file with the private key for TLS
    #[arg(
        long,
        env = "DYNDATA_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,

    /// PEM file with the authorities whose client certificates are accepted (mTLS). Each client
    /// needs a certificate then, or a token if the access file has tokens
    #[arg(
        long,
        env = "DYNDATA_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,
}

/// Settings of the listeners.
#[derive(Debug, Clone)]
pub(crate) struct ListenSettings {
    pub(crate) grpc: ListenAddr,
    pub(crate) admin: AdminListen,
    pub(crate) tls: Option<TlsFiles>,
}

impl ListenSettings {
    /// Whether every client shows a certificate, or may show one.
    pub(crate) fn asks_for_client_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self { grpc, admin, tls } = self;
        summary.add("listen", grpc);
        summary.add("admin-listen", admin);
        if let Some(TlsFiles {
            cert,
            key,
            client_ca,
        }) = tls
        {
            summary.add_file("tls-cert", Some(cert));
            summary.add_file("tls-key", Some(key));
            summary.add_file("tls-client-ca", client_ca.as_ref());
        }
    }
}

impl TryFrom<ListenArgs> for ListenSettings {
    type Error = SettingError;

    fn try_from(args: ListenArgs) -> Result<Self, SettingError> {
        let ListenArgs {
            listen,
            admin_listen,
            tls_cert,
            tls_key,
            tls_client_ca,
        } = args;
        check_addresses(&listen, admin_listen)?;
        let tls = tls_cert.zip(tls_key).map(|(cert, key)| TlsFiles {
            cert,
            key,
            client_ca: tls_client_ca,
        });
        if let Some(tls) = &tls {
            tls.load(ClientCertificate::Required)
                .map_err(|error| SettingError::new("tls-cert", error))?;
        }
        let settings = Self {
            grpc: listen,
            admin: admin_listen,
            tls,
        };
        if let ListenAddr::Unix(_) = settings.grpc {
            check(
                "tls-client-ca",
                !settings.asks_for_client_certificates(),
                "a unix socket has no TLS, so nobody would be asked for a certificate",
            )?;
        }
        Ok(settings)
    }
}

/// Finds what the system would refuse when the sockets are bound.
fn check_addresses(listen: &ListenAddr, admin_listen: AdminListen) -> Result<(), SettingError> {
    match (listen, admin_listen) {
        (ListenAddr::Unix(path), _) => check(
            "listen",
            unix::net::SocketAddr::from_pathname(path).is_ok(),
            "the path is longer than that of a unix socket may be (107 bytes on Linux)",
        ),
        (ListenAddr::Tcp(listen), AdminListen::Tcp(admin)) => {
            let is_same_host = listen.ip() == admin.ip()
                || listen.is_ipv4() == admin.is_ipv4()
                    && (listen.ip().is_unspecified() || admin.ip().is_unspecified());
            check(
                "admin-listen",
                !(is_same_host && listen.port() == admin.port() && listen.port() != 0),
                "is where --listen serves gRPC already",
            )
        }
        (ListenAddr::Tcp(_), AdminListen::Off) => Ok(()),
    }
}

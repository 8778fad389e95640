//! TLS on the gRPC listener: loads the certificate files and runs handshakes.
//!
//! TLS 1.2 and 1.3 with rustls's own choice of suites, ALPN `h2`. Clients can resume sessions unless
//! there is an authority for client certificates.

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::CertificateDer,
    server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier},
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{Semaphore, watch},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::{
    auth::San,
    pem::{self, PemError},
};

/// How large a ClientHello may be. Real ones have 2 KiB or less.
const MAX_CLIENT_HELLO_BYTES: u64 = 16 * 1024;

/// The paths of the certificate files.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

/// Whether a client needs a certificate, if there is an authority for client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCertificate {
    /// The client needs one.
    Required,
    /// The client may have a token instead.
    Optional,
}

/// A TLS configuration made from the files.
#[derive(Debug, Clone)]
pub(crate) struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    /// When the server's certificate expires, in seconds since 1970.
    pub(crate) expires: i64,
}

/// Why the files make no configuration. Names files, never their content.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error(transparent)]
    File(#[from] PemError),
    #[error("{} has a certificate that cannot be parsed", file.display())]
    Certificate { file: PathBuf },
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
    #[error("client certificate authority: {0}")]
    ClientCa(#[source] rustls::server::VerifierBuilderError),
}

impl TlsFiles {
    /// All paths, so that the files can be watched.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let Self {
            cert,
            key,
            client_ca,
        } = self;
        [Some(cert), Some(key), client_ca.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Reads and checks the files.
    pub(crate) fn load(&self, client: ClientCertificate) -> Result<ServerTls, TlsError> {
        let chain = pem::certificates(&self.cert)?;
        let expires = X509Certificate::from_der(&chain[0])
            .map_err(|_| TlsError::Certificate {
                file: self.cert.clone(),
            })?
            .1
            .validity()
            .not_after
            .timestamp();
        let key = pem::key(&self.key)?;
        let builder = ServerConfig::builder();
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for root in pem::certificates(file)? {
                    roots
                        .add(root)
                        .map_err(|_| TlsError::Certificate { file: file.clone() })?;
                }
                let verifier = WebPkiClientVerifier::builder(roots.into());
                let verifier = match client {
                    ClientCertificate::Required => verifier,
                    ClientCertificate::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(verifier.build().map_err(TlsError::ClientCa)?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        if self.client_ca.is_some() {
            // A resumed session would not check the client's certificate again. The certificate may
            // have expired since, or its authority may have been removed.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(ServerTls {
            config: Arc::new(config),
            expires,
        })
    }
}

/// Runs a handshake with the certificates in force. It takes one of the permits only after the
/// ClientHello, so that silent peers do not keep others waiting.
pub(crate) async fn handshake(
    mut socket: TcpStream,
    tls: watch::Receiver<ServerTls>,
    permits: &Semaphore,
) -> io::Result<TlsStream<TcpStream>> {
    let (read, write) = socket.split();
    let hello = tokio::io::join(read.take(MAX_CLIENT_HELLO_BYTES), write);
    let hello = LazyConfigAcceptor::new(Acceptor::default(), hello).await?;
    let start = StartHandshake::from_parts(hello.accepted, socket);
    let _permit = permits.acquire().await.map_err(io::Error::other)?;
    let config = Arc::clone(&tls.borrow().config);
    start.into_stream(config).await
}

/// The names in a client's certificate, which rustls has verified. Empty if there is no certificate,
/// or if it cannot be parsed.
pub(crate) fn names(certificates: Option<&[CertificateDer<'_>]>) -> Arc<[San]> {
    let parsed = certificates
        .and_then(<[_]>::first)
        .and_then(|certificate| X509Certificate::from_der(certificate).ok());
    let Some((_, certificate)) = parsed else {
        return Arc::default();
    };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Arc::default();
    };
    let names = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(San::Dns(name.to_ascii_lowercase())),
            GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
            _ => None,
        });
    names.collect()
}

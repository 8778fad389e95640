//! TLS to Redis: whom to trust, and who we are.

use std::{path::PathBuf, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use crate::pem::{self, PemError};

/// Files with certificates; the system's authorities are trusted if there is none for them.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedisTlsFiles {
    /// The authorities for Redis's certificate.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// Why the files are of no use. Names them, never what is in them.
#[derive(Debug, Error)]
pub(crate) enum RedisTlsError {
    #[error(transparent)]
    File(#[from] PemError),
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
}

impl RedisTlsFiles {
    /// Whether there are any.
    pub(crate) fn are_given(&self) -> bool {
        self.ca.is_some() || self.client.is_some()
    }

    /// Reads and checks them.
    pub(crate) fn load(&self) -> Result<TlsConnector, RedisTlsError> {
        let roots = match &self.ca {
            None => system_roots(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(pem::certificates(file)?);
                if roots.is_empty() {
                    return Err(PemError::Empty { file: file.clone() }.into());
                }
                roots
            }
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = pem::key(key)?;
                builder
                    .with_client_auth_cert(pem::certificates(cert)?, key)
                    .map_err(RedisTlsError::Pair)?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// What there is without files.
pub(crate) fn system() -> TlsConnector {
    let config = ClientConfig::builder()
        .with_root_certificates(system_roots())
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a system certificate");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

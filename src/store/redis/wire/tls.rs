//! TLS to Redis: the authorities that we trust, and our own certificate.

use std::{path::PathBuf, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio_rustls::TlsConnector;

use crate::pem::{self, PemError};

/// Files with certificates. Without a file of authorities, the system's are trusted.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedisTlsFiles {
    /// The authorities for Redis's certificate.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// Why the files cannot be used. The messages name files, and never quote them.
#[derive(Debug, Error)]
pub(crate) enum RedisTlsError {
    #[error(transparent)]
    File(#[from] PemError),
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
}

/// How to use TLS.
#[derive(Clone)]
pub(super) enum RedisTls {
    /// Trust the system's authorities. They are read once.
    System(TlsConnector),
    /// Use these files. They are read at every connect, so that new ones are picked up.
    Files(RedisTlsFiles),
}

impl RedisTls {
    pub(super) fn new(files: RedisTlsFiles) -> Self {
        if files.are_given() {
            return Self::Files(files);
        }
        let config = ClientConfig::builder()
            .with_root_certificates(system_roots())
            .with_no_client_auth();
        Self::System(TlsConnector::from(Arc::new(config)))
    }

    pub(super) fn connector(&self) -> Result<TlsConnector, RedisTlsError> {
        match self {
            Self::System(connector) => Ok(connector.clone()),
            Self::Files(files) => files.load(),
        }
    }
}

impl RedisTlsFiles {
    fn are_given(&self) -> bool {
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

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "cannot read a system certificate");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

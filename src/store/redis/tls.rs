//! TLS to Redis: whom to trust, and who we are.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use thiserror::Error;
use tokio_rustls::TlsConnector;

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
    #[error("cannot read {}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("{} has no certificate", file.display())]
    Empty { file: PathBuf },
    #[error("certificate and key: {0}")]
    Pair(#[source] rustls::Error),
}

impl RedisTlsFiles {
    /// Whether there are any.
    pub(super) fn are_given(&self) -> bool {
        self.ca.is_some() || self.client.is_some()
    }

    /// Reads and checks them.
    pub(crate) fn load(&self) -> Result<TlsConnector, RedisTlsError> {
        let roots = match &self.ca {
            None => system_roots(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(file)?);
                if roots.is_empty() {
                    return Err(RedisTlsError::Empty { file: file.clone() });
                }
                roots
            }
        };
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| RedisTlsError::File {
                        file: key.clone(),
                        reason: error.to_string(),
                    })?;
                builder
                    .with_client_auth_cert(certificates(cert)?, key)
                    .map_err(RedisTlsError::Pair)?
            }
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// What there is without files.
pub(super) fn system() -> TlsConnector {
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

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, RedisTlsError> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| RedisTlsError::File {
            file: file.clone(),
            reason: error.to_string(),
        })
}

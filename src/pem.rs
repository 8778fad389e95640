//! Reads certificates and keys from PEM files. Errors name the file, but never quote it.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use thiserror::Error;

/// Why a PEM file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum PemError {
    #[error("cannot read {}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("{} has no certificate", file.display())]
    Empty { file: PathBuf },
}

/// Reads the certificates in a file. There is at least one.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(file, &error))?;
    if certificates.is_empty() {
        return Err(PemError::Empty {
            file: file.to_owned(),
        });
    }
    Ok(certificates)
}

/// Reads the private key in a file.
pub(crate) fn key(file: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &pem::Error) -> PemError {
    PemError::File {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

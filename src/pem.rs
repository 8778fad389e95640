//! Certificates and keys from PEM files. Errors name the file, never what is in it.

use std::path::{Path, PathBuf};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};
use thiserror::Error;

/// Why a file is of no use.
#[derive(Debug, Error)]
pub(crate) enum PemError {
    #[error("cannot read {}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("{} has no certificate", file.display())]
    Empty { file: PathBuf },
}

/// The certificates in a file, at least one.
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

/// The private key in a file.
pub(crate) fn key(file: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &pem::Error) -> PemError {
    PemError::File {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

//! Certificates and access rules in force, reloaded when their files change.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;
use tokio::{sync::watch, task::JoinSet};

use super::listen::tls::{ClientCertificate, ServerTls, TlsError, TlsFiles};
use crate::{
    auth::{Access, AccessError},
    metrics::Reading,
    reload::{self, Reload, WatchedFiles},
};

/// How long before a certificate expires the log begins to warn about it.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 86_400);
/// How often the log warns about it.
const WARN_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Why certificates or the access file cannot be loaded, although the settings were checked.
#[derive(Debug, Error)]
pub(super) enum SecurityError {
    #[error("access file: {0}")]
    Access(#[source] AccessError),
    #[error(transparent)]
    Tls(TlsError),
}

/// Certificates and access rules in force. Workers follow the channels.
#[derive(Debug)]
pub(super) struct Security {
    pub(super) tls: Option<watch::Sender<ServerTls>>,
    pub(super) access: Option<watch::Sender<Access>>,
    tls_files: Option<TlsFiles>,
    access_file: Option<PathBuf>,
    watched: WatchedFiles,
}

impl Security {
    pub(super) fn load(
        tls_files: Option<TlsFiles>,
        access_file: Option<PathBuf>,
    ) -> Result<Self, SecurityError> {
        let mut files = tls_files.as_ref().map_or_else(Vec::new, TlsFiles::paths);
        files.extend(access_file.clone());
        let watched = WatchedFiles::new(files);
        let access = access_file.as_deref().map(Access::load);
        let access = access.transpose().map_err(SecurityError::Access)?;
        let client = client_certificate(access.as_ref());
        let tls = tls_files.as_ref().map(|files| files.load(client));
        let tls = tls.transpose().map_err(SecurityError::Tls)?;
        Ok(Self {
            tls: tls.map(watch::Sender::new),
            access: access.map(watch::Sender::new),
            tls_files,
            access_file,
            watched,
        })
    }

    /// Starts the tasks that follow the files.
    pub(super) fn watch(self, asked: Reload, background: &mut JoinSet<()>) {
        if let (Some(tls), Some(current)) = (&self.tls_files, &self.tls) {
            background.spawn(warn_before_expiry(current.subscribe(), tls.cert.clone()));
        }
        if self.tls_files.is_none() && self.access_file.is_none() {
            return;
        }
        let mut security = self;
        background.spawn(async move {
            loop {
                security.watched.changed(&asked).await;
                security.reload();
            }
        });
    }

    /// Reads all files again. The access file comes first, because it decides whether a client needs
    /// a certificate.
    fn reload(&self) {
        if let (Some(file), Some(access)) = (&self.access_file, &self.access) {
            reload::replace("access file", Access::load(file), access);
        }
        if let (Some(files), Some(tls)) = (&self.tls_files, &self.tls) {
            let client = {
                let access = self.access.as_ref().map(watch::Sender::borrow);
                client_certificate(access.as_deref())
            };
            reload::replace("certificates", files.load(client), tls);
        }
    }

    /// The metric of the certificate, if there is one.
    pub(super) fn reading(&self) -> Option<Reading> {
        let tls = self.tls.as_ref()?.subscribe();
        Some(Reading::gauge(
            "dyndata_tls_certificate_expiry_timestamp_seconds",
            "Expiry of the certificate of the gRPC listener, in seconds since 1970",
            move || tls.borrow().expires,
        ))
    }
}

/// A client needs a certificate, unless callers may have tokens instead.
fn client_certificate(access: Option<&Access>) -> ClientCertificate {
    match access {
        Some(access) if access.has_tokens() => ClientCertificate::Optional,
        Some(_) | None => ClientCertificate::Required,
    }
}

async fn warn_before_expiry(mut tls: watch::Receiver<ServerTls>, file: PathBuf) {
    loop {
        let expires = tls.borrow_and_update().expires;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let left = u64::try_from(expires).unwrap_or(0).saturating_sub(now);
        if left == 0 {
            tracing::error!(file = %file.display(), "the certificate has expired");
        } else if left < WARN_BEFORE.as_secs() {
            let days = left / 86_400;
            tracing::warn!(file = %file.display(), days, "the certificate expires soon");
        }
        // A new certificate is checked at once.
        if let Ok(Err(_)) = tokio::time::timeout(WARN_INTERVAL, tls.changed()).await {
            return;
        }
    }
}

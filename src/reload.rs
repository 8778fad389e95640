//! Files that are read again while the server runs: certificates and the access file.
//!
//! What they hold is compared, not their times, because a mounted secret changes by a symbolic
//! link. A new content that does not make sense is logged, and the old one stays in force.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Notify, watch};

/// How often the files are looked at without being told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks for the files to be read now, as SIGHUP does. Clones ask the same server.
#[derive(Debug, Clone, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Reads all files again, soon.
    pub fn now(&self) {
        self.0.notify_waiters();
    }
}

/// Files whose content is compared with what it was.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    files: Vec<PathBuf>,
    contents: Vec<Option<Vec<u8>>>,
}

impl WatchedFiles {
    /// Reads the files. To be called before they are used, so that no change is missed.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self {
            contents: read(&files),
            files,
        }
    }

    /// Waits until a file has changed, or somebody asks for all to be read again. Cancel-safe.
    pub(crate) async fn changed(&mut self, asked: &Reload) {
        loop {
            // Time passing is as good a reason to look as being asked.
            let asked = tokio::time::timeout(INTERVAL, asked.0.notified()).await;
            let now = read(&self.files);
            if now != self.contents || asked.is_ok() {
                self.contents = now;
                return;
            }
        }
    }
}

/// Puts what a file now holds in force; or logs why that makes no sense, and changes nothing.
pub(crate) fn replace<T, E: Display>(
    what: &'static str,
    loaded: Result<T, E>,
    current: &watch::Sender<T>,
) {
    match loaded {
        Ok(new) => {
            current.send_replace(new);
            tracing::info!(what, "reloaded");
        }
        Err(error) => {
            tracing::error!(what, %error, "cannot reload; the old one stays in force");
        }
    }
}

/// What is in the files; nothing for one that cannot be read.
fn read(files: &[impl AsRef<Path>]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

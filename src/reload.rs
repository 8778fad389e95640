//! Reloads files while the server runs: certificates and the access file.
//!
//! A file has changed when its content has changed. Its modification time is not enough, because a
//! mounted secret changes by a symbolic link. If new content is not valid, the error is logged, and
//! the old content stays in force.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Notify, watch};

/// How often the files are checked without a request to do so.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks the server to reload its files now, as SIGHUP does. Clones ask the same server.
#[derive(Debug, Clone, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Asks for all files to be read again, soon.
    pub fn now(&self) {
        self.0.notify_waiters();
    }
}

/// Files, and their content when they were last read.
#[derive(Debug)]
pub(crate) struct WatchedFiles {
    files: Vec<PathBuf>,
    contents: Vec<Option<Vec<u8>>>,
}

impl WatchedFiles {
    /// Reads the files. To be called before anything else reads them, so that no change is missed.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        Self {
            contents: read(&files),
            files,
        }
    }

    /// Waits until a file has changed, or until a reload is asked for. Cancel-safe.
    pub(crate) async fn changed(&mut self, asked: &Reload) {
        loop {
            let asked = tokio::time::timeout(INTERVAL, asked.0.notified()).await;
            let now = read(&self.files);
            if now != self.contents || asked.is_ok() {
                self.contents = now;
                return;
            }
        }
    }
}

/// Puts new content in force. If it is not valid, logs the error and changes nothing.
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

/// The content of each file, or `None` if it cannot be read.
fn read(files: &[impl AsRef<Path>]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

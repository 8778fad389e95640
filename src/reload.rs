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

/// Reads `files` whenever they change and makes of them what `load` does; for ever.
pub(crate) async fn watch<T, E: Display>(
    what: &'static str,
    files: Vec<PathBuf>,
    load: impl Fn() -> Result<T, E>,
    current: watch::Sender<T>,
    asked: Reload,
) {
    let mut contents = read(&files);
    loop {
        // Time passing is as good a reason to look as being asked.
        let asked = tokio::time::timeout(INTERVAL, asked.0.notified()).await;
        let now = read(&files);
        if now == contents && asked.is_err() {
            continue;
        }
        contents = now;
        match load() {
            Ok(new) => {
                current.send_replace(new);
                tracing::info!(what, "reloaded");
            }
            Err(error) => {
                tracing::error!(what, %error, "cannot reload; the old one stays in force");
            }
        }
    }
}

/// What is in the files; nothing for one that cannot be read.
fn read(files: &[impl AsRef<Path>]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

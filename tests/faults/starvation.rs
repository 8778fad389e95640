//! When the machine is too busy to let the service run, lateness says nothing about the service.
//! Linux counts how long each thread was ready and had to wait.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::history::Recorder;

const INTERVAL: Duration = Duration::from_millis(10);
/// Waiting for less than this is everyday life.
const NOTABLE: Duration = Duration::from_millis(5);

/// Tells a history when a process was kept from running, until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    pub fn start(pid: u32, recorder: Arc<Recorder>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut before = waits(pid);
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
                let now = recorder.now();
                let waited = waits(pid);
                for (thread, total) in &waited {
                    let span = total.saturating_sub(before.get(thread).copied().unwrap_or(*total));
                    if span > NOTABLE {
                        recorder.stalled(now.before(span + INTERVAL), now);
                    }
                }
                before = waited;
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot fail, and would be missed by nobody.
            _ = thread.join();
        }
    }
}

/// How long each thread has waited for a processor so far; empty where Linux does not say.
fn waits(pid: u32) -> HashMap<String, Duration> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return HashMap::new();
    };
    let wait = |thread: fs::DirEntry| {
        // Time on a processor, time ready but waiting, both in nanoseconds, and turns.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanos = text.split(' ').nth(1)?.parse().ok()?;
        let name = thread.file_name().to_string_lossy().into_owned();
        Some((name, Duration::from_nanos(nanos)))
    };
    threads.flatten().filter_map(wait).collect()
}

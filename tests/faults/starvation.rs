//! Notes when the machine was too busy to run the service, because lateness is then not the
//! service's fault. Linux counts how long each thread was ready to run and had to wait.

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
/// Shorter waits are normal.
const NOTABLE: Duration = Duration::from_millis(5);

/// Notes the waits of a process in a history, until it is dropped.
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
                        recorder.add_stall(now.before(span + INTERVAL), now);
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
            // The thread cannot fail.
            _ = thread.join();
        }
    }
}

/// How long each thread has waited for a processor so far. Empty if Linux does not count this.
fn waits(pid: u32) -> HashMap<String, Duration> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return HashMap::new();
    };
    let wait = |thread: fs::DirEntry| {
        // Nanoseconds on a processor, nanoseconds of waiting, number of time slices.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanos = text.split(' ').nth(1)?.parse().ok()?;
        let name = thread.file_name().to_string_lossy().into_owned();
        Some((name, Duration::from_nanos(nanos)))
    };
    threads.flatten().filter_map(wait).collect()
}

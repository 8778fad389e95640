//! Notes when the machine was too busy to run the services, the Redis processes, or the loads and
//! proxies of the tests, because lateness is then not the service's fault. Linux counts how long
//! each thread was ready to run and had to wait.
//!
//! Only single waits of more than about 20 ms count. Shorter ones are normal: on a shared machine,
//! some thread waits for a few milliseconds at almost any time.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How often to look at the threads that are known.
const INTERVAL: Duration = Duration::from_millis(20);
/// How often to look for new processes and threads.
const SEARCH: Duration = Duration::from_millis(200);
/// The names of the threads of this process that are watched.
pub const LOAD: &str = "load";
pub const PROXY: &str = "proxy";

/// The spans of time in which one of them had to wait. They are disjoint and in order.
static WAITS: Mutex<Vec<(Instant, Instant)>> = Mutex::new(Vec::new());

/// Watches until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watch {
    pub fn start() -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut threads = HashMap::new();
            let mut searched: Option<Instant> = None;
            let mut last = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                if searched.is_none_or(|searched| searched.elapsed() > SEARCH) {
                    search(&mut threads);
                    searched = Some(Instant::now());
                }
                let due = Instant::now() + INTERVAL;
                thread::sleep(INTERVAL);
                let now = Instant::now();
                if now - due > INTERVAL {
                    // This thread had to wait itself.
                    note(due, now);
                }
                let interval = now - last;
                last = now;
                // A thread that has ended cannot be read.
                threads.retain(|_, thread| {
                    let Some(waited) = thread.waited() else {
                        return false;
                    };
                    // Only a wait that began before the interval can be longer than it.
                    if waited > interval {
                        note(now - waited, now);
                    }
                    true
                });
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

/// The spans that ended after this moment.
pub fn waits_since(moment: Instant) -> Vec<(Instant, Instant)> {
    let spans = spans();
    let from = spans.partition_point(|(_, end)| *end <= moment);
    spans[from..].to_vec()
}

/// How long the machine was too busy since then.
pub fn waited_since(moment: Instant) -> Duration {
    let spans = waits_since(moment);
    spans
        .iter()
        .map(|(from, to)| *to - (*from).max(moment))
        .sum()
}

fn spans() -> MutexGuard<'static, Vec<(Instant, Instant)>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(from: Instant, to: Instant) {
    let (mut from, mut to) = (from, to);
    let mut spans = spans();
    while let Some((start, end)) = spans.pop_if(|(_, end)| *end >= from) {
        from = from.min(start);
        to = to.max(end);
    }
    spans.push((from, to));
}

/// A thread that is watched.
struct Thread {
    /// Nanoseconds on a processor, nanoseconds of waiting, number of time slices.
    schedstat: File,
    waited: Option<Duration>,
}

impl Thread {
    /// How long it had to wait since the last call.
    fn waited(&mut self) -> Option<Duration> {
        let mut text = [0; 96];
        let length = self.schedstat.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        let total = Duration::from_nanos(text.split(' ').nth(1)?.parse().ok()?);
        let before = self.waited.replace(total).unwrap_or(total);
        Some(total.saturating_sub(before))
    }
}

/// Adds the threads of all child processes, and the loads and proxies of this process. Adds nothing
/// if Linux does not count the waits.
fn search(threads: &mut HashMap<String, Thread>) {
    let this = std::process::id().to_string();
    let Ok(processes) = fs::read_dir("/proc") else {
        return;
    };
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        let is_this = name == this;
        if !is_number(&name) || !is_this && parent(&process.path()).as_ref() != Some(&this) {
            continue;
        }
        let Ok(tasks) = fs::read_dir(process.path().join("task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let path = task.path();
            if is_this && !is_load(&path) {
                continue;
            }
            let key = path.to_string_lossy().into_owned();
            if !threads.contains_key(&key)
                && let Ok(schedstat) = File::open(path.join("schedstat"))
            {
                let waited = None;
                threads.insert(key, Thread { schedstat, waited });
            }
        }
    }
}

fn is_load(task: &Path) -> bool {
    let name = fs::read_to_string(task.join("comm"));
    name.is_ok_and(|name| [LOAD, PROXY].contains(&name.trim_end()))
}

/// The parent of a process.
fn parent(process: &Path) -> Option<String> {
    let text = fs::read_to_string(process.join("stat")).ok()?;
    // The name of the program is in parentheses, and may have spaces.
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(1).map(str::to_owned)
}

//! System calls and heap allocations per Get. They are counted, so they do not depend on the speed of
//! the machine.
//!
//! The kernel counts both on the unchanged server: system calls by tracepoints, and allocations by
//! probes on the functions of mimalloc that Rust's allocator interface calls. Without perf, strace
//! counts the system calls. It slows the server down, which changes how many calls share a read or a
//! write.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    keys::{IDS, KeySet},
    load::call_all,
    operation::Operation,
    plan::TARGET_SHAPE,
    process::bound_command,
    redis::Redis,
    redis_server::Directory,
    subjects::{Kind, Programs, Subject},
};

/// Number of Gets. It is large enough to make other work (accepting, timers) negligible.
const CALLS: u64 = 100_000;

/// The event of all system calls, and the calls in which a server spends its time.
const ALL: &str = "raw_syscalls:sys_enter";
const SYSTEM_CALLS: [&str; 11] = [
    "epoll_wait",
    "epoll_ctl",
    "read",
    "write",
    "readv",
    "writev",
    "recvfrom",
    "sendto",
    "recvmsg",
    "sendmsg",
    "futex",
];

/// The functions that the mimalloc crate calls for `alloc`, `alloc_zeroed` and `realloc`.
const ALLOCATIONS: [&str; 3] = [
    "mi_malloc_aligned",
    "mi_zalloc_aligned",
    "mi_realloc_aligned",
];
const PROBE_GROUP: &str = "dyndata_bench";

/// Counts, and prints the results.
pub fn run(programs: &Programs) -> Result<()> {
    let kinds = [Kind::Dyndata, Kind::Quickstart, Kind::Manager];
    for kind in kinds {
        programs.check(kind)?;
    }
    let directory = &Directory::new();
    let mut redis = Redis::start()?;
    let keys = KeySet::random(IDS);
    redis.fill(&keys)?;

    println!("System calls per Get, {TARGET_SHAPE}, {CALLS} Gets");
    for kind in kinds {
        let subject = Subject::start(kind, programs, redis.address, &keys, directory)?;
        let counts = match with_perf(&subject, &keys, &system_call_events(), directory) {
            Ok(counts) => counts,
            Err(error) => {
                println!("  (strace instead of perf: {error:#})");
                with_strace(&subject, &keys, directory)?
            }
        };
        println!("  {:18} {}", kind.name(), per_call(&counts));
    }

    println!("Heap allocations per Get, {TARGET_SHAPE}, {CALLS} Gets");
    let counts = Probes::add(&programs.dyndata).and_then(|probes| {
        let kind = Kind::Dyndata;
        let subject = Subject::start(kind, programs, redis.address, &keys, directory)?;
        with_perf(&subject, &keys, &probes.events(), directory)
    });
    match counts {
        Ok(counts) => {
            let total: u64 = counts.iter().map(|(_, count)| count).sum();
            let total = ("all".to_owned(), total);
            let counts: Vec<_> = [total].into_iter().chain(counts).collect();
            println!("  {:18} {}", Kind::Dyndata.name(), per_call(&counts));
        }
        Err(error) => println!("  not counted: {error:#}"),
    }
    Ok(())
}

fn per_call(counts: &[(String, u64)]) -> String {
    let shown = counts.iter().filter_map(|(name, count)| {
        let per_call = *count as f64 / CALLS as f64;
        (per_call >= 0.001).then(|| format!("{name} {per_call:.3}"))
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn system_call_events() -> Vec<(String, String)> {
    let named = SYSTEM_CALLS.map(|name| (name.to_owned(), format!("syscalls:sys_enter_{name}")));
    let all = [("all".to_owned(), ALL.to_owned())];
    all.into_iter().chain(named).collect()
}

/// How often each event happened in the server during `CALLS` Gets. An event is a pair: a name for the
/// output, and the name that perf knows.
fn with_perf(
    subject: &Subject,
    keys: &KeySet,
    events: &[(String, String)],
    directory: &Directory,
) -> Result<Vec<(String, u64)>> {
    let file = directory.path("perf-stat");
    let names: Vec<&str> = events.iter().map(|(_, event)| event.as_str()).collect();
    let mut perf = bound_command("perf");
    perf.args(["stat", "-x", ",", "-e", &names.join(","), "-o"])
        .arg(&file)
        .args(["-p", &subject.process.id().to_string()]);
    let text = counted(perf, &file, subject, keys)?;
    // 1234,,syscalls:sys_enter_read,1580220,100.00,,
    let count = |(name, event): &(String, String)| {
        let line = text
            .lines()
            .find(|line| line.contains(&format!(",{event},")));
        let line = line.with_context(|| format!("no count of {event} from perf: {text}"))?;
        let count = line.split(',').next().unwrap_or_default().parse();
        Ok((name.clone(), count.with_context(|| line.to_owned())?))
    };
    events.iter().map(count).collect()
}

fn with_strace(
    subject: &Subject,
    keys: &KeySet,
    directory: &Directory,
) -> Result<Vec<(String, u64)>> {
    let file = directory.path("strace");
    let mut strace = bound_command("strace");
    strace
        .args(["-c", "-f", "-o"])
        .arg(&file)
        .args(["-p", &subject.process.id().to_string()]);
    let text = counted(strace, &file, subject, keys)?;
    // % time     seconds  usecs/call     calls    errors syscall
    let counts = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count = words.get(3)?.parse().ok()?;
        Some(((*words.last()?).to_owned(), count))
    });
    Ok(counts.collect())
}

/// Runs `counter` during `CALLS` Gets, and returns what it has written to `file`.
fn counted(mut counter: Command, file: &str, subject: &Subject, keys: &KeySet) -> Result<String> {
    let name = counter.get_program().to_string_lossy().into_owned();
    let mut counter = Counter(
        counter
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {name}"))?,
    );
    // Time for the counter to attach. An idle server does almost nothing in this time.
    thread::sleep(Duration::from_millis(1_000));
    if let Some(status) = counter.0.try_wait()? {
        bail!("the counter ended: {status}");
    }
    let workload = subject.kind.workload(Operation::Get, keys)?;
    call_all(subject.address, workload, TARGET_SHAPE, CALLS)?;
    kill(Pid::from_raw(counter.0.id() as i32), Signal::SIGINT)?;
    let limit = Instant::now() + Duration::from_secs(10);
    while counter.0.try_wait()?.is_none() {
        ensure!(Instant::now() < limit, "the counter does not end");
        thread::sleep(Duration::from_millis(10));
    }
    fs::read_to_string(file).context("the counter wrote nothing")
}

struct Counter(std::process::Child);

impl Drop for Counter {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Probes in the kernel, removed when this value is dropped.
struct Probes;

impl Probes {
    fn add(program: &Path) -> Result<Self> {
        let mut perf = Command::new("perf");
        perf.arg("probe").arg("-q").arg("-x").arg(program);
        for function in ALLOCATIONS {
            perf.args(["--add", &format!("{PROBE_GROUP}:{function}={function}")]);
        }
        let output = perf.output().context("cannot run perf")?;
        ensure!(
            output.status.success(),
            "perf probe: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self)
    }

    fn events(&self) -> Vec<(String, String)> {
        let event = |function: &str| (function.to_owned(), format!("{PROBE_GROUP}:{function}"));
        ALLOCATIONS.into_iter().map(event).collect()
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        let mut perf = Command::new("perf");
        perf.args(["probe", "-q", "--del", &format!("{PROBE_GROUP}:*")]);
        // If the removal fails, the probes cost nothing after the program has ended.
        _ = perf.output();
    }
}

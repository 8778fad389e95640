//! Child processes that cannot outlive the run, and what the kernel accounts to them.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// How long a server may take until it accepts connections.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running server. Dropping it kills it.
pub struct Process {
    child: Child,
    clock: ClockId,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts `command`, its output in a file of `directory`, and waits until `address` accepts
    /// connections.
    pub fn start(
        name: &str,
        mut command: Command,
        address: SocketAddr,
        directory: &Path,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}-{}.log", address.port()));
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let clock = clock_getcpuclockid(Pid::from_raw(child.id() as i32))?;
        let mut process = Self {
            child,
            clock,
            log,
            name: name.to_owned(),
        };
        let limit = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            process.check()?;
            if Instant::now() > limit {
                bail!("{name} does not accept connections\n{}", process.output());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time of all its threads so far, ended ones included: the scheduler's own account,
    /// in nanoseconds, not the ticks of `/proc/<pid>/stat`.
    pub fn cpu(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.context("no VmRSS")?;
        let kibibytes: u64 = text.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, self.output());
        }
        Ok(())
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A command whose process the kernel kills when this one ends, however it ends. `setpriv`
/// replaces itself by the program, so the process id is the program's.
pub fn bound_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    // Nothing from the environment may change a subject.
    for (name, _) in std::env::vars() {
        if name.starts_with("DYNDATA_") || name == "REDIS_URL" || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// A loopback address that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A new directory that is removed in the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("dyndata-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover directory in /tmp is no reason to fail.
        _ = fs::remove_dir_all(&self.0);
    }
}

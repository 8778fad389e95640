//! Child processes that end with the run, their CPU time and their memory.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::redis_server::{Directory, free_port};

/// How long a server may take until it accepts connections.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The CPU time of a process and all its threads, ended ones included. The scheduler counts it in
/// nanoseconds, while `/proc/<pid>/stat` has ticks.
#[derive(Clone, Copy)]
pub struct CpuClock(ClockId);

impl CpuClock {
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self(clock_getcpuclockid(Pid::from_raw(pid as i32))?))
    }

    pub fn now(self) -> Result<Duration> {
        Ok(clock_gettime(self.0)?.into())
    }
}

/// A running server, killed when this value is dropped.
pub struct Process {
    child: Child,
    pub clock: CpuClock,
    log: String,
    name: String,
}

impl Process {
    /// Starts `command` with its output in a file of `directory`, and waits until `address` accepts
    /// connections.
    pub fn start(
        name: &str,
        mut command: Command,
        address: SocketAddr,
        directory: &Directory,
    ) -> Result<Self> {
        let log = directory.path(&format!("{name}-{}.log", address.port()));
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let clock = CpuClock::of(child.id())?;
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

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.context("no VmRSS")?;
        let kibibytes: u64 = text.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// Returns an error if the process has ended.
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

/// A launcher whose program the kernel kills when this process ends, however it ends. `setpriv`
/// replaces itself with the program, so the process id is the program's.
pub const BOUND: &[&str] = &["setpriv", "--pdeathsig", "KILL", "--"];

/// A command under [`BOUND`], without the variables that could change a server's settings.
pub fn bound_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(BOUND[0]);
    command.args(&BOUND[1..]).arg(program);
    for (name, _) in std::env::vars() {
        let ours = ["DYNDATA_", "REDIS_", "GO", "GRPC_GO_", "RUST_LOG"];
        if ours.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// A command that is ended after `limit`.
pub fn bounded(program: &str, limit: Duration) -> Command {
    let mut command = Command::new("timeout");
    let seconds = limit.as_secs().max(1).to_string();
    command.args(["--kill-after=1", &seconds, program]);
    command
}

/// A loopback address with a free port.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

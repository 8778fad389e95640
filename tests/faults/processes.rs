//! Real processes: redis-server and the dyndata binary, on ports of their own, ended with the
//! values that stand for them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{PATIENCE, assert_no_secret, eventually};

/// A directory that goes away by itself.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("dyndata-faults-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(path);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that nobody has, with the one that a cluster's bus would take. Below the range from
/// which the system takes ports for outgoing connections, so that it stays free until it is used.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Runs at the same time start at different places.
    let start = u16::try_from(std::process::id() % 90).unwrap_or(0) * 100;
    for _ in 0..9_000 {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 9_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok()
            && TcpListener::bind(("0.0.0.0", port + 10_000)).is_ok()
        {
            return port;
        }
    }
    panic!("no free port");
}

/// Sends a signal by name, such as STOP.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()), "kill -s {name}");
}

/// A redis-server, or a sentinel.
#[derive(Debug)]
pub struct Redis {
    process: Option<Child>,
    pub host: &'static str,
    pub port: u16,
    pub directory: Directory,
    arguments: Vec<String>,
    password: Mutex<Option<String>>,
}

/// What it takes to keep what was acknowledged, whatever happens.
pub const DURABLE: &[&str] = &[
    "--save",
    "",
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--enable-debug-command",
    "yes",
];

/// Whether it is Redis 6 that the tests run on.
pub fn is_redis_6() -> bool {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let output = Command::new("redis-server").arg("--version").output();
        // Who runs it says why that fails.
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    });
    VERSION.contains("v=6.")
}

/// The arguments without what Redis 6 does not know.
fn understood(arguments: &[&str]) -> Vec<String> {
    const SINCE_7: [&str; 2] = [
        // Everybody may say DEBUG.
        "--enable-debug-command",
        "--loading-process-events-interval-bytes",
    ];
    let mut arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let is_unknown = |argument: &String| SINCE_7.contains(&argument.as_str());
    while is_redis_6()
        && let Some(place) = arguments.iter().position(is_unknown)
    {
        arguments.drain(place..place + 2);
    }
    arguments
}

impl Redis {
    /// One that keeps what it acknowledged over a kill -9.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let mut redis = Self::prepare("127.0.0.1", &[DURABLE, arguments].concat());
        redis.run();
        redis
    }

    /// Not yet running.
    pub fn prepare(host: &'static str, arguments: &[&str]) -> Self {
        Self {
            process: None,
            host,
            port: port(),
            directory: Directory::new(),
            arguments: understood(arguments),
            password: Mutex::default(),
        }
    }

    /// Runs it, and waits until it answers.
    pub fn run(&mut self) {
        self.spawn(&[]);
        eventually("redis-server answers", || self.command(&["PING"]).is_ok());
    }

    /// Runs it with more arguments, without waiting.
    pub fn spawn(&mut self, more: &[&str]) {
        self.kill();
        let log = self.directory.path().join("redis.log");
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", self.host])
            .arg("--dir")
            .arg(self.directory.path())
            .args(&self.arguments)
            .args(understood(more))
            .stdout(File::create(log).expect("a log"))
            .spawn();
        self.process = Some(process.unwrap_or_else(|error| {
            panic!("cannot run redis-server ({error}); install it: apt-get install redis-server")
        }));
    }

    /// Runs it as a sentinel, which keeps what it learns in its file.
    pub fn run_as_sentinel(&mut self, config: &Path) {
        let process = Command::new("redis-server")
            .arg(config)
            .arg("--sentinel")
            .args(["--port", &self.port.to_string(), "--bind", self.host])
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(process.expect("redis-server runs"));
        eventually("the sentinel answers", || self.command(&["PING"]).is_ok());
    }

    /// Ends it without a goodbye: kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }

    /// Makes it stand still: it keeps its connections, and answers nothing.
    pub fn freeze(&self) {
        signal(self.pid(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.pid(), "CONT");
    }

    fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn url(&self) -> String {
        format!("redis://{}:{}", self.host, self.port)
    }

    /// What the test itself says from now on.
    pub fn use_password(&self, password: &str) {
        *self.password.lock().unwrap_or_else(PoisonError::into_inner) = Some(password.to_owned());
    }

    /// A connection of the test's own, which nothing holds up for ever.
    pub fn connect(&self) -> redis::RedisResult<redis::Connection> {
        let password = self.password.lock().unwrap_or_else(PoisonError::into_inner);
        let url = match &*password {
            Some(password) => format!("redis://:{password}@{}:{}", self.host, self.port),
            None => self.url(),
        };
        let connection = redis::Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// One command on a connection of its own.
    pub fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let (name, arguments) = words.split_first().expect("a command");
        redis::cmd(name).arg(arguments).query(&mut self.connect()?)
    }

    /// A command that has to succeed.
    #[track_caller]
    pub fn must(&self, words: &[&str]) -> redis::Value {
        match self.command(words) {
            Ok(value) => value,
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    /// A command of which only the effect counts: its connection may be among those it ends.
    pub fn try_to(&self, words: &[&str]) {
        _ = self.command(words);
    }

    /// A text reply, such as INFO's.
    pub fn text(&self, words: &[&str]) -> String {
        let (name, arguments) = words.split_first().expect("a command");
        let query = |mut connection| redis::cmd(name).arg(arguments).query(&mut connection);
        self.connect().and_then(query).unwrap_or_default()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The binary under test.
#[derive(Debug)]
pub struct Dyndata {
    process: Child,
    pub addr: String,
    pub admin: String,
    directory: Directory,
}

impl Dyndata {
    /// With these flags; ready or not.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_through(&[], arguments)
    }

    /// On a Redis, and ready.
    pub fn on(url: &str, arguments: &[&str]) -> Self {
        let url = format!("--redis-url={url}");
        let server = Self::start(&[&[url.as_str()], arguments].concat());
        server.ready();
        server
    }

    /// Run by another program, which takes the command as its last arguments and replaces itself.
    pub fn start_through(through: &[&str], arguments: &[&str]) -> Self {
        let directory = Directory::new();
        let addr = format!("127.0.0.1:{}", port());
        let admin = format!("127.0.0.1:{}", port());
        let mut words: Vec<OsString> = through.iter().map(Into::into).collect();
        words.push(env!("CARGO_BIN_EXE_dyndata").into());
        let log = File::create(directory.path().join("log")).expect("a log");
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["serve", "--listen", &addr, "--admin-listen", &admin]);
        for default in ["--workers=2", "--drain-timeout=5s"] {
            let flag = default.split('=').next().unwrap_or(default);
            if !arguments.iter().any(|argument| argument.starts_with(flag)) {
                command.arg(default);
            }
        }
        let process = command
            .args(arguments)
            .env_remove("REDIS_URL")
            .env("RUST_LOG", "info")
            .stderr(Stdio::from(log))
            .spawn()
            .expect("runs");
        let mut server = Self {
            process,
            addr,
            admin,
            directory,
        };
        let start = Instant::now();
        while TcpStream::connect(&server.admin).is_err() {
            let ended = server.process.try_wait().expect("a status");
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "dyndata does not listen ({ended:?}): {}",
                server.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The port of its gRPC listener.
    pub fn port(&self) -> u16 {
        let port = self
            .addr
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        port.expect("an address has a port")
    }

    /// Waits until `/readyz` answers 200.
    pub fn ready(&self) {
        let start = Instant::now();
        while !self.is_ready() {
            assert!(
                start.elapsed() < PATIENCE,
                "never ready: {}\n{}",
                self.http("/readyz").unwrap_or_default(),
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_ready(&self) -> bool {
        self.http("/readyz")
            .is_ok_and(|reply| reply.starts_with("HTTP/1.1 200"))
    }

    /// The whole reply to a GET on the admin listener.
    pub fn http(&self, path: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(&self.admin)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        socket.read_to_string(&mut reply)?;
        Ok(reply)
    }

    pub fn terminate(&self) {
        signal(self.process.id(), "TERM");
    }

    /// Waits for its end.
    pub fn ended(&mut self, within: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            let ended = self.process.try_wait().expect("a status");
            if ended.is_some() || start.elapsed() > within {
                return ended;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Dyndata {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        let log = self.log();
        // For the report, should the case fail.
        crate::report::keep_log(&log);
        if !thread::panicking() {
            assert_no_secret("the log", &log);
        }
    }
}

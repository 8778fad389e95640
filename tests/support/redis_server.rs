//! A redis-server process, as the tests, the fault suite and the benchmark start it.
//!
//! The file depends on nothing but the standard library and the redis crate, because `benches/`
//! includes it by its path.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// The longest time to wait for something that must happen, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments with which Redis keeps each acknowledged write, even over a kill -9.
pub const DURABLE: &[&str] = &[
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--enable-debug-command",
    "yes",
];

/// Waits until a condition holds. Fails the test after [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never happened: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A free TCP port. The port 10,000 above it, which a cluster node uses for its bus, is free too.
///
/// The ports are below the range from which the system takes ports for outgoing connections, so
/// that a port stays free until it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time start at different ports.
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

/// Sends a signal, such as `STOP`, to a process.
pub fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|status| status.success()), "kill -s {name}");
}

/// A new temporary directory, removed when this value is dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dyndata-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// The path of the file with this name, whether the file exists or not.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Replaces a file in one step, as tools that rotate secrets do. Returns the file's path.
    pub fn write(&self, name: &str, content: &str) -> String {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, content).expect("writes");
        let path = self.path(name);
        fs::rename(new, &path).expect("renames");
        path
    }

    /// The content of a file, or an empty text if there is no such file.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// True if the installed redis-server is of version 6.
pub fn is_redis_6() -> bool {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let output = Command::new("redis-server").arg("--version").output();
        // A missing redis-server is reported where the test starts one.
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    });
    VERSION.contains("v=6.")
}

/// The arguments without those that Redis 6 does not know.
fn supported(arguments: &[&str]) -> Vec<String> {
    const SINCE_7: [&str; 2] = [
        // Redis 6 always allows DEBUG.
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

/// A redis-server or a sentinel, killed when this value is dropped.
#[derive(Debug)]
pub struct Redis {
    /// A program that runs redis-server: its name and arguments. Empty: redis-server is run
    /// directly.
    pub launcher: &'static [&'static str],
    pub host: &'static str,
    pub port: u16,
    pub directory: Directory,
    process: Option<Child>,
    arguments: Vec<String>,
    password: Mutex<Option<String>>,
}

impl Redis {
    /// Starts a Redis that keeps its data in memory only.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a Redis with more arguments, such as `["--requirepass", "secret"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut redis = Self::prepare(arguments);
        redis.run();
        redis
    }

    /// Starts a Redis that keeps each acknowledged write over a kill -9.
    pub fn start_durable(arguments: &[&str]) -> Self {
        Self::start_with(&[DURABLE, arguments].concat())
    }

    /// Chooses port and directory, but starts no process.
    pub fn prepare(arguments: &[&str]) -> Self {
        Self {
            launcher: &[],
            host: "127.0.0.1",
            port: free_port(),
            directory: Directory::new(),
            process: None,
            arguments: supported(arguments),
            password: Mutex::default(),
        }
    }

    /// Starts the process, or starts it again on the same port, and waits until it answers.
    pub fn run(&mut self) {
        self.spawn(&[]);
        self.wait_until_it_answers();
    }

    /// Starts the process with more arguments, without waiting.
    pub fn spawn(&mut self, more: &[&str]) {
        let unix_path = self.unix_path();
        let defaults = [
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
            &unix_path,
        ];
        let arguments: Vec<_> = defaults
            .into_iter()
            .map(str::to_owned)
            .chain(self.arguments.iter().cloned())
            .chain(supported(more))
            .collect();
        self.launch(&[], &arguments);
    }

    /// Starts the process as a sentinel with this configuration, and waits until it answers.
    pub fn run_as_sentinel(&mut self, config: &str) {
        let config = self.directory.write("sentinel.conf", config);
        self.launch(&[&config, "--sentinel"], &[]);
        self.wait_until_it_answers();
    }

    fn launch(&mut self, mode: &[&str], arguments: &[String]) {
        self.kill();
        let log = File::create(self.directory.path("redis.log")).expect("a log");
        let mut words = self.launcher.iter().chain(&["redis-server"]);
        let process = Command::new(words.next().expect("a program"))
            .args(words)
            .args(mode)
            .args(["--port", &self.port.to_string(), "--bind", self.host])
            .arg("--dir")
            .arg(&self.directory.0)
            .args(arguments)
            .stdout(log)
            .spawn();
        self.process = Some(process.unwrap_or_else(|error| {
            panic!("cannot run redis-server ({error}); install it: apt-get install redis-server")
        }));
    }

    fn wait_until_it_answers(&self) {
        eventually("redis-server answers", || match self.command(&["PING"]) {
            Ok(_) => true,
            Err(error) => error.code() == Some("NOAUTH"),
        });
    }

    /// Kills the process with SIGKILL, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }

    /// Suspends the process: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        signal(self.pid(), "STOP");
    }

    /// Resumes a process that [`Redis::freeze`] suspended.
    pub fn thaw(&self) {
        signal(self.pid(), "CONT");
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub fn url(&self) -> String {
        format!("redis://{}:{}", self.host, self.port)
    }

    /// The path of its Unix socket.
    pub fn unix_path(&self) -> String {
        self.directory.path("redis.sock")
    }

    /// The password for the test's own connections from now on.
    pub fn use_password(&self, password: &str) {
        *self.password.lock().unwrap_or_else(PoisonError::into_inner) = Some(password.to_owned());
    }

    /// A connection for the test itself. No read on it takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn connect(&self) -> redis::Connection {
        let connection = self.try_connect();
        connection.unwrap_or_else(|error| panic!("no connection to redis-server: {error}"))
    }

    fn try_connect(&self) -> redis::RedisResult<redis::Connection> {
        let password = self.password.lock().unwrap_or_else(PoisonError::into_inner);
        let url = match &*password {
            Some(password) => format!("redis://:{password}@{}:{}", self.host, self.port),
            None => self.url(),
        };
        let connection = redis::Client::open(url)?.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Sends one command on a connection of its own.
    pub fn command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let (name, arguments) = words.split_first().expect("a command");
        redis::cmd(name)
            .arg(arguments)
            .query(&mut self.try_connect()?)
    }

    /// Sends a command that must succeed.
    #[track_caller]
    pub fn must(&self, words: &[&str]) -> redis::Value {
        match self.command(words) {
            Ok(value) => value,
            Err(error) => panic!("{words:?}: {error}"),
        }
    }

    /// Sends a command whose reply may get lost, for example because the command ends its own
    /// connection.
    pub fn try_to(&self, words: &[&str]) {
        _ = self.command(words);
    }

    /// The text reply to a command such as INFO. Empty if there is none.
    pub fn text(&self, words: &[&str]) -> String {
        let value = self.command(words);
        value
            .and_then(|value| Ok(redis::from_redis_value(value)?))
            .unwrap_or_default()
    }

    /// Makes Redis answer no client for a while.
    pub fn pause(&self, millis: u32) {
        self.must(&["CLIENT", "PAUSE", &millis.to_string(), "ALL"]);
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

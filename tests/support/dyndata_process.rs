//! The dyndata binary as a process.

use std::{
    cell::RefCell,
    ffi::OsString,
    fs::File,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Directory, PATIENCE, assert_no_secret, free_port, redis_server::signal};

thread_local! {
    static LOGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The logs of the processes that have ended on this thread since the last call.
pub fn take_logs() -> Vec<String> {
    LOGS.take()
}

/// A process of the binary under test, killed when this value is dropped.
#[derive(Debug)]
pub struct Dyndata {
    process: Child,
    pub addr: String,
    pub admin: String,
    directory: Directory,
}

impl Dyndata {
    /// Starts the binary with these flags, and waits until it listens. It may not be ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_through(&[], arguments)
    }

    /// Starts the binary on a Redis, and waits until it is ready.
    pub fn on(url: &str, arguments: &[&str]) -> Self {
        let url = format!("--redis-url={url}");
        let server = Self::start(&[&[url.as_str()], arguments].concat());
        server.ready();
        server
    }

    /// Starts the binary through another program, which gets the command as its last arguments and
    /// replaces itself with it.
    pub fn start_through(through: &[&str], arguments: &[&str]) -> Self {
        let directory = Directory::new();
        let addr = format!("127.0.0.1:{}", free_port());
        let admin = format!("127.0.0.1:{}", free_port());
        let mut words: Vec<OsString> = through.iter().map(Into::into).collect();
        words.push(env!("CARGO_BIN_EXE_dyndata").into());
        let log = File::create(directory.path("log")).expect("a log");
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
        let names_indexed = |argument: &&str| argument.starts_with("--indexed-namespaces");
        if let Some(namespace) = super::namespace_of_environment()
            && !arguments.iter().any(names_indexed)
        {
            command.arg(format!("--indexed-namespaces={namespace}"));
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

    /// Starts the binary in its own mount namespace, in which `file` replaces a file of the system.
    /// Only root can do this, so the error says why it failed.
    pub fn start_with_file(file: &str, replaced: &str, arguments: &[&str]) -> Result<Self, String> {
        let mount = format!(r#"mount --bind '{file}' '{replaced}' && exec "$0" "$@""#);
        let through = ["unshare", "--mount", "sh", "-c", mount.as_str()];
        let tried = Command::new(through[0])
            .args(&through[1..])
            .arg("true")
            .output();
        if !tried.as_ref().is_ok_and(|output| output.status.success()) {
            return Err(format!("cannot make a mount namespace: {tried:?}"));
        }
        Ok(Self::start_through(&through, arguments))
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The port of the gRPC listener.
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
        socket.set_read_timeout(Some(PATIENCE))?;
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

    /// Waits for the end of the process. `None` if it takes too long.
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
        self.directory.read("log")
    }
}

impl Drop for Dyndata {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        let log = self.log();
        LOGS.with_borrow_mut(|logs| logs.push(log.clone()));
        if !thread::panicking() {
            assert_no_secret("the log", &log);
        }
    }
}

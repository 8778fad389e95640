//! The subjects of the benchmark: the service and its peers, each in its own process.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    keys::KeySet,
    load::{self, Protocol},
    operation::{INDEXED, Operation},
    process::{Process, bound_command, free_address},
    ratelimit,
    redis_server::Directory,
    workload::Workload,
};

/// A kind of subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Dyndata,
    /// Another process of dyndata. The difference between the two is noise.
    Again,
    Quickstart,
    Manager,
    Deadpool,
    Go,
    Ratelimit,
    Python,
    Webdis,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Dyndata,
        Self::Again,
        Self::Quickstart,
        Self::Manager,
        Self::Deadpool,
        Self::Go,
        Self::Ratelimit,
        Self::Python,
        Self::Webdis,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dyndata => "dyndata",
            Self::Again => "dyndata (A/A)",
            Self::Quickstart => "tonic, no store",
            Self::Manager => "ConnectionManager",
            Self::Deadpool => "deadpool",
            Self::Go => "grpc-go, go-redis",
            Self::Ratelimit => "envoyproxy/ratelimit",
            Self::Python => "Python",
            Self::Webdis => "webdis (HTTP/1.1)",
        }
    }

    /// False for dyndata itself.
    pub fn is_peer(self) -> bool {
        !matches!(self, Self::Dyndata | Self::Again)
    }

    pub fn has_store(self) -> bool {
        self != Self::Quickstart
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::Webdis => Protocol::Http1,
            _ => Protocol::Grpc,
        }
    }

    /// True if it has this kind of call.
    pub fn serves(self, operation: Operation) -> bool {
        let is_old = matches!(
            operation,
            Operation::Get | Operation::Mark | Operation::BatchGet(_)
        );
        match self {
            Self::Dyndata | Self::Again => true,
            Self::Manager => is_old || matches!(operation, Operation::BatchMark(_)),
            Self::Ratelimit => operation == Operation::Limit,
            _ => is_old,
        }
    }

    pub fn workload(self, operation: Operation, keys: &KeySet) -> Result<Workload> {
        match self {
            Self::Ratelimit => Ok(Workload::ratelimit(keys)),
            Self::Webdis => Workload::webdis(operation, keys),
            _ => Ok(Workload::grpc(operation, keys, !self.has_store())),
        }
    }
}

/// Where the programs are.
pub struct Programs {
    pub dyndata: PathBuf,
    /// The directory of the peers' executables.
    pub peers: PathBuf,
    /// `benches/`.
    pub benches: PathBuf,
}

impl Programs {
    fn python(&self) -> (PathBuf, PathBuf) {
        let tools = self.benches.join("../.tools");
        (tools.join("python/bin/python"), tools.join("bench-python"))
    }

    fn go(&self) -> PathBuf {
        self.benches.join("../.tools/bench-go/server")
    }

    fn ratelimit(&self) -> PathBuf {
        self.benches.join("../.tools/bin/ratelimit")
    }

    /// Returns an error that names a missing program.
    pub fn check(&self, kind: Kind) -> Result<()> {
        let path = match kind {
            Kind::Dyndata | Kind::Again => self.dyndata.clone(),
            Kind::Quickstart => self.peers.join("quickstart"),
            Kind::Manager => self.peers.join("manager"),
            Kind::Deadpool => self.peers.join("deadpool"),
            Kind::Go => self.go(),
            Kind::Ratelimit => self.ratelimit(),
            Kind::Python => self.python().0,
            Kind::Webdis => "/usr/bin/webdis".into(),
        };
        ensure!(
            path.exists(),
            "{} is missing; make bench makes it",
            path.display()
        );
        Ok(())
    }
}

/// A running server.
pub struct Subject {
    pub kind: Kind,
    pub process: Process,
    pub address: SocketAddr,
}

impl Subject {
    /// Starts a server on `redis` and waits until it answers.
    pub fn start(
        kind: Kind,
        programs: &Programs,
        redis: SocketAddr,
        keys: &KeySet,
        directory: &Directory,
    ) -> Result<Self> {
        let url = format!("redis://{redis}");
        let subject = match kind {
            Kind::Dyndata | Kind::Again => {
                let service = Self::start_dyndata(programs, Some(redis), &[], keys, directory)?;
                return Ok(Self { kind, ..service });
            }
            Kind::Quickstart => {
                let command = bound_command(programs.peers.join("quickstart"));
                Self::start_peer(kind, command, &url, directory)?
            }
            Kind::Manager => {
                let command = bound_command(programs.peers.join("manager"));
                Self::start_peer(kind, command, &url, directory)?
            }
            Kind::Deadpool => {
                let command = bound_command(programs.peers.join("deadpool"));
                Self::start_peer(kind, command, &url, directory)?
            }
            Kind::Python => {
                let (interpreter, generated) = programs.python();
                let mut command = bound_command(interpreter);
                command
                    .env("PYTHONPATH", generated)
                    .env("PYTHONDONTWRITEBYTECODE", "1")
                    .arg(programs.benches.join("peers/python/server.py"));
                Self::start_peer(kind, command, &url, directory)?
            }
            Kind::Go => Self::start_peer(kind, bound_command(programs.go()), &url, directory)?,
            Kind::Ratelimit => Self::start_ratelimit(programs, redis, directory)?,
            Kind::Webdis => return Self::start_webdis(redis, directory),
        };
        let operation = if kind.serves(Operation::Get) {
            Operation::Get
        } else {
            Operation::Limit
        };
        load::wait_until_served(subject.address, kind.workload(operation, keys)?)?;
        Ok(subject)
    }

    /// The service with its default settings and those in `arguments`; without `redis`, on the
    /// embedded store.
    pub fn start_dyndata(
        programs: &Programs,
        redis: Option<SocketAddr>,
        arguments: &[&str],
        keys: &KeySet,
        directory: &Directory,
    ) -> Result<Self> {
        let address = free_address();
        let mut command = bound_command(&programs.dyndata);
        command
            .args(["serve", "--listen", &address.to_string()])
            // All load comes from one address, with up to 5,000 connections.
            .args(["--max-connections-per-peer", "10000"])
            .args(["--max-in-flight", "4096"])
            .args(["--indexed-namespaces", INDEXED])
            .args(["--admin-listen", &free_address().to_string()])
            .args(arguments);
        if let Some(redis) = redis {
            command.args(["--redis-url", &format!("redis://{redis}")]);
        }
        let subject = Self {
            kind: Kind::Dyndata,
            process: Process::start("dyndata", command, address, directory)?,
            address,
        };
        if redis.is_some() {
            let workload = subject.kind.workload(Operation::Get, keys)?;
            load::wait_until_served(address, workload)?;
        }
        Ok(subject)
    }

    fn start_peer(
        kind: Kind,
        mut command: Command,
        redis_url: &str,
        directory: &Directory,
    ) -> Result<Self> {
        let address = free_address();
        command
            .args(["--listen", &address.to_string()])
            .args(["--redis-url", redis_url]);
        Ok(Self {
            kind,
            process: Process::start(kind.name(), command, address, directory)?,
            address,
        })
    }

    /// envoyproxy/ratelimit with the defaults of its settings, except for addresses and statsd.
    fn start_ratelimit(
        programs: &Programs,
        redis: SocketAddr,
        directory: &Directory,
    ) -> Result<Self> {
        let address = free_address();
        // It watches the directory above its configuration.
        let root = directory.path("ratelimit");
        let configuration = format!("{root}/bench/config");
        fs::create_dir_all(&configuration)?;
        fs::write(
            format!("{configuration}/bench.yaml"),
            ratelimit::CONFIGURATION,
        )?;
        let mut command = bound_command(programs.ratelimit());
        let other_addresses = [("HOST", "PORT"), ("DEBUG_HOST", "DEBUG_PORT")];
        for (host, port) in other_addresses {
            let address = free_address();
            command
                .env(host, address.ip().to_string())
                .env(port, address.port().to_string());
        }
        command
            .env("GRPC_HOST", address.ip().to_string())
            .env("GRPC_PORT", address.port().to_string())
            .env("REDIS_SOCKET_TYPE", "tcp")
            .env("REDIS_URL", redis.to_string())
            .env("RUNTIME_ROOT", root)
            .env("RUNTIME_SUBDIRECTORY", "bench")
            .env("USE_STATSD", "false");
        Ok(Self {
            kind: Kind::Ratelimit,
            process: Process::start("ratelimit", command, address, directory)?,
            address,
        })
    }

    fn start_webdis(redis: SocketAddr, directory: &Directory) -> Result<Self> {
        let address = free_address();
        // The package's own configuration, on our ports, without the log of every request.
        let configuration = serde_json::json!({
            "redis_host": redis.ip().to_string(),
            "redis_port": redis.port(),
            "http_host": address.ip().to_string(),
            "http_port": address.port(),
            "threads": 2,
            "daemonize": false,
            "database": 0,
            "verbosity": 0,
            "logfile": directory.path("webdis-requests.log"),
        });
        let file = directory.path("webdis.json");
        fs::write(&file, configuration.to_string())?;
        let mut command = bound_command("/usr/bin/webdis");
        command.arg(file);
        let process = Process::start("webdis", command, address, directory)?;
        // It connects to Redis by itself, a moment after it listens.
        std::thread::sleep(Duration::from_millis(300));
        Ok(Self {
            kind: Kind::Webdis,
            process,
            address,
        })
    }
}

//! The one Redis of a run, spoken to directly: to fill it, to ask what it ran, to time it.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    keys::{KeySet, MARK_TTL},
    process::{Process, bound_command, free_address},
};

/// A Redis server without persistence, and a connection to it.
pub struct Redis {
    pub process: Process,
    pub address: SocketAddr,
    connection: BufReader<TcpStream>,
}

impl Redis {
    pub fn start(directory: &Path) -> Result<Self> {
        let address = free_address()?;
        let mut command = bound_command("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string()])
            .args(["--maxclients", "10000", "--daemonize", "no"])
            .arg("--dir")
            .arg(directory);
        let process = Process::start("redis-server", command, address, directory)?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            process,
            address,
            connection: BufReader::new(stream),
        })
    }

    pub fn version(&mut self) -> Result<String> {
        let info = self.text(&["INFO", "server"])?;
        let version = info
            .lines()
            .find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.context("no redis_version")?.to_owned())
    }

    /// Stores every value of `keys` for a day.
    pub fn fill(&mut self, keys: &KeySet) -> Result<()> {
        for ids in keys.ids().chunks(500) {
            for id in ids {
                let value = keys.value(id).to_string();
                self.send(&["SET", &peer::key(id), &value, "EX", "86400"])?;
            }
            for _ in ids {
                self.receive()?;
            }
        }
        Ok(())
    }

    /// Checks that the first `count` ids hold what a Mark of `keys` wrote, with its expiry.
    pub fn check_marked(&mut self, keys: &KeySet, count: usize) -> Result<()> {
        for id in keys.ids().iter().take(count) {
            let key = peer::key(id);
            let stored = self.text(&["GET", &key])?;
            ensure!(
                stored == keys.value(id).to_string(),
                "Mark: Redis holds {stored:?} at {key}"
            );
            let left: i64 = self.text(&["PTTL", &key])?.parse()?;
            ensure!(
                (1..=MARK_TTL.as_millis() as i64).contains(&left),
                "Mark: {key} expires in {left} ms"
            );
        }
        Ok(())
    }

    pub fn reset_statistics(&mut self) -> Result<()> {
        self.text(&["CONFIG", "RESETSTAT"]).map(drop)
    }

    /// How often each command ran since the last reset.
    pub fn command_calls(&mut self) -> Result<HashMap<String, u64>> {
        let info = self.text(&["INFO", "commandstats"])?;
        // cmdstat_get:calls=21175,usec=70372,…
        let calls = info.lines().filter_map(|line| {
            let (command, statistics) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = statistics.strip_prefix("calls=")?.split(',').next()?;
            Some((command.to_owned(), calls.parse().ok()?))
        });
        Ok(calls.collect())
    }

    /// Waits until no command but our own has run for a while.
    pub fn settle(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(10);
        let mut before = None;
        while Instant::now() < limit {
            let mut calls = self.command_calls()?;
            calls.remove("info");
            let calls = Some(calls);
            if before == calls {
                return Ok(());
            }
            before = calls;
            thread::sleep(Duration::from_millis(100));
        }
        bail!("Redis does not come to rest")
    }

    /// The median time of one GET on one connection, nothing else going on.
    pub fn round_trip(&mut self, keys: &KeySet) -> Result<Duration> {
        const CALLS: usize = 3_000;
        let mut times = Vec::with_capacity(CALLS);
        for id in keys.ids().iter().cycle().take(CALLS) {
            let key = peer::key(id);
            let start = Instant::now();
            self.text(&["GET", &key])?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times[CALLS / 2])
    }

    /// Gets per second of `redis-benchmark -t get -P 1 -c 50`.
    pub fn benchmark(&mut self, requests: u32) -> Result<f64> {
        let output = Command::new("redis-benchmark")
            .args(["-t", "get", "-P", "1", "-c", "50", "--csv"])
            .args(["-p", &self.address.port().to_string()])
            .args(["-n", &requests.to_string()])
            .output()
            .context("cannot run redis-benchmark")?;
        // "GET","98039.22",…
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("\"GET\",\""));
        let number = line.and_then(|line| line.split('"').next());
        let number = number.with_context(|| format!("redis-benchmark printed {text:?}"))?;
        Ok(number.parse()?)
    }

    fn text(&mut self, command: &[&str]) -> Result<String> {
        self.send(command)?;
        self.receive()
    }

    fn send(&mut self, command: &[&str]) -> Result<()> {
        let mut bytes = format!("*{}\r\n", command.len());
        for argument in command {
            bytes.push_str(&format!("${}\r\n{argument}\r\n", argument.len()));
        }
        self.connection.get_mut().write_all(bytes.as_bytes())?;
        Ok(())
    }

    /// One reply. Nothing that is asked here is answered with an array.
    fn receive(&mut self) -> Result<String> {
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).context("no reply")?;
        Ok(match kind {
            "+" | ":" => rest.to_owned(),
            "$" if rest == "-1" => "(nil)".to_owned(),
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>()? + 2];
                self.connection.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                String::from_utf8(bytes)?
            }
            _ => bail!("Redis answered {line:?}"),
        })
    }
}

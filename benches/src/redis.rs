//! The Redis of a run, and a connection of our own: to fill it, to count its commands, to time it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    keys::KeySet,
    process::{BOUND, CpuClock, bounded},
    redis_server, watch,
    workload::TTL,
};

/// A Redis server without persistence, and a connection to it.
pub struct Redis {
    pub address: SocketAddr,
    pub clock: CpuClock,
    connection: redis::Connection,
    server: redis_server::Redis,
}

impl Redis {
    pub fn start() -> Result<Self> {
        let mut server = redis_server::Redis::prepare(&["--maxclients", "10000"]);
        server.launcher = BOUND;
        server.run();
        Ok(Self {
            address: SocketAddr::from(([127, 0, 0, 1], server.port)),
            clock: CpuClock::of(server.pid())?,
            connection: server.connect(),
            server,
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
            let mut pipeline = redis::pipe();
            for id in ids {
                pipeline.set_ex(peer::key(id), keys.value(id), 86_400);
            }
            pipeline.exec(&mut self.connection)?;
        }
        Ok(())
    }

    /// Removes all values of `keys`.
    pub fn remove(&mut self, keys: &KeySet) -> Result<()> {
        for ids in keys.ids().chunks(5_000) {
            let mut command = redis::cmd("UNLINK");
            for id in ids {
                command.arg(peer::key(id));
            }
            command.exec(&mut self.connection)?;
        }
        Ok(())
    }

    /// Removes the index of an indexed namespace, so that nothing is marked there. Its values stay
    /// until they expire, and nobody reads them.
    pub fn remove_index(&mut self, namespace: &str) -> Result<()> {
        let mut command = redis::cmd("UNLINK");
        for shard in 0..64 {
            command.arg(format!("dyn_data_index:{{{namespace}.{shard}}}"));
        }
        Ok(command.exec(&mut self.connection)?)
    }

    /// Checks that the first `count` ids hold what a Mark of `keys` wrote, with its expiry.
    pub fn check_marked(&mut self, keys: &KeySet, count: usize) -> Result<()> {
        for id in keys.ids().iter().take(count) {
            let key = peer::key(id);
            let stored = self.text(&["GET", &key])?;
            ensure!(
                stored == keys.value(id).to_string(),
                "Redis holds {stored:?} at {key}"
            );
            let left: i64 = self.text(&["PTTL", &key])?.parse()?;
            ensure!(
                (1..=TTL.as_millis() as i64).contains(&left),
                "{key} expires in {left} ms"
            );
        }
        Ok(())
    }

    /// Checks that each watcher knows the values of its ids in Redis.
    pub fn check_known(&mut self, keys: &KeySet, known: &[HashMap<String, i64>]) -> Result<()> {
        for (watcher, known) in known.iter().enumerate() {
            let ids = watch::ids_of(keys.ids(), watcher);
            let mut command = redis::cmd("MGET");
            for id in &ids {
                command.arg(peer::key(id));
            }
            let stored: Vec<Option<i64>> = command.query(&mut self.connection)?;
            for (id, stored) in ids.iter().zip(stored) {
                let known = known.get(id).copied();
                ensure!(
                    known == stored,
                    "watcher {watcher} knows {known:?} of {id}, Redis holds {stored:?}"
                );
            }
        }
        Ok(())
    }

    pub fn reset_statistics(&mut self) -> Result<()> {
        self.text(&["CONFIG", "RESETSTAT"]).map(drop)
    }

    /// How often each command ran since the last reset of the statistics.
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

    /// Waits until no other client has run a command for a while.
    pub fn settle(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        let mut before = None;
        while Instant::now() < limit {
            let mut calls = self.command_calls()?;
            // Ours, and health checks.
            calls.remove("info");
            calls.remove("ping");
            let calls = Some(calls);
            if before == calls {
                return Ok(());
            }
            before = calls;
            thread::sleep(Duration::from_millis(50));
        }
        bail!("Redis does not come to rest")
    }

    /// The median time of one GET on one idle connection.
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

    /// SETs per second of `redis-benchmark -P 100 -t set`.
    pub fn benchmark(&mut self, requests: u32) -> Result<f64> {
        let output = bounded("redis-benchmark", Duration::from_secs(30))
            .args(["-P", "100", "-t", "set", "--csv"])
            .args(["-p", &self.address.port().to_string()])
            .args(["-n", &requests.to_string()])
            .output()
            .context("cannot run redis-benchmark")?;
        // "SET","980392.19",…
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("\"SET\",\""));
        let number = line.and_then(|line| line.split('"').next());
        let number = number.with_context(|| format!("redis-benchmark printed {text:?}"))?;
        Ok(number.parse()?)
    }

    /// The text reply to a command.
    fn text(&mut self, command: &[&str]) -> Result<String> {
        let reply = redis::cmd(command[0])
            .arg(&command[1..])
            .query(&mut self.connection);
        reply.with_context(|| self.server.directory.read("redis.log"))
    }
}

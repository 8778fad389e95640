//! Redis behind Sentinel: who is the master now.
//!
//! Every connect asks all sentinels anew, so that a failover is followed by breaking the
//! connection. They are asked side by side, because one that hangs must not hide the others, and
//! what they say is checked with ROLE, because during a failover they may not know yet.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::{fmt, time::Duration};

use redis::{ConnectionAddr, Value};
use tokio::{task::JoinSet, time::timeout};

use super::connect::{ConnectError, Connected, Connector};

/// How long one sentinel may take to answer, connecting included.
const PATIENCE: Duration = Duration::from_millis(400);

/// The sentinels, and the name of the master that they watch.
#[derive(Clone)]
pub(super) struct Sentinels {
    addrs: Vec<ConnectionAddr>,
    master: String,
}

impl Sentinels {
    pub(super) fn new(addrs: Vec<ConnectionAddr>, master: String) -> Self {
        Self { addrs, master }
    }

    /// Connects to the master. `connector` has the credentials.
    pub(super) async fn connect(&self, connector: &Connector) -> Result<Connected, ConnectError> {
        let mut error = ConnectError::UnknownMaster;
        for (host, port) in self.ask_all(connector).await? {
            match connect_to_master(connector, connector.addr(host, port)).await {
                Ok(connected) => return Ok(connected),
                Err(reason) => error = reason,
            }
        }
        Err(error)
    }

    /// Whether one of the sentinels, any of them, still names this address; true if it cannot say.
    /// Asked often, because an old master goes on taking writes, which are lost.
    pub(super) async fn name(&self, connector: &Connector, addr: &ConnectionAddr) -> bool {
        let sentinel = &self.addrs[fastrand::usize(..self.addrs.len())];
        match timeout(PATIENCE, self.ask(connector, sentinel)).await {
            Ok(Ok((host, port))) => connector.addr(host, port) == *addr,
            Ok(Err(_)) | Err(_) => true,
        }
    }

    async fn ask(
        &self,
        connector: &Connector,
        sentinel: &ConnectionAddr,
    ) -> Result<(String, u16), ConnectError> {
        let mut question = redis::cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let answer = connector.ask_sentinel(sentinel, question).await?;
        // Nil from one that knows no such master.
        redis::from_redis_value(answer).map_err(|_| ConnectError::UnknownMaster)
    }

    /// The addresses that the sentinels give, the one with the most votes first.
    async fn ask_all(&self, connector: &Connector) -> Result<Vec<(String, u16)>, ConnectError> {
        let mut asked = JoinSet::new();
        for addr in &self.addrs {
            let (this, connector, addr) = (self.clone(), connector.clone(), addr.clone());
            asked.spawn(async move { timeout(PATIENCE, this.ask(&connector, &addr)).await });
        }
        let mut votes: Vec<((String, u16), usize)> = Vec::new();
        let mut error = ConnectError::NoSentinel;
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(Ok(addr))) => {
                    let place = votes.iter().position(|(voted, _)| *voted == addr);
                    let place = place.unwrap_or_else(|| {
                        votes.push((addr, 0));
                        votes.len() - 1
                    });
                    votes[place].1 += 1;
                    // What the majority says, the others need not be waited for.
                    if votes[place].1 > self.addrs.len() / 2 {
                        break;
                    }
                }
                Ok(Ok(Err(reason))) => error = reason,
                // Silent, or the runtime is ending.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if votes.is_empty() {
            return Err(error);
        }
        votes.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        Ok(votes.into_iter().map(|(addr, _)| addr).collect())
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "master {}", self.master)
    }
}

/// Connects to a data node, if it is a master.
async fn connect_to_master(
    connector: &Connector,
    addr: ConnectionAddr,
) -> Result<Connected, ConnectError> {
    let mut questions = [(redis::cmd("ROLE"), Value::Nil)];
    let connected = connector.greet(addr, &mut questions).await?;
    let [(_, role)] = questions;
    match role.extract_error()? {
        Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"master".to_vec())) => {
            Ok(connected)
        }
        _ => Err(ConnectError::NotMaster(connected.addr.to_string())),
    }
}

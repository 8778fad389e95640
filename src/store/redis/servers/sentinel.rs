//! Redis behind Sentinel: who is the master now.
//!
//! Sentinels may disagree: one that was cut off from the others goes on naming a master that has
//! been replaced, and that master may go on saying that it is one. Whatever is written to it is
//! lost. So every connect asks all sentinels side by side, and one rule decides ([`elect`]):
//!
//! - The address with the highest configuration epoch wins. Sentinel gives every failover a higher
//!   epoch than those before.
//! - If sentinels name several addresses with that epoch, or none of them tells its epoch, the
//!   address wins that more than half of those who answer name.
//! - Otherwise nobody wins, and there is no connection.
//!
//! A sentinel that does not answer in time, or knows no master of this name, has no say. The winner
//! has to say in ROLE that it is a master, because during a failover it may not be one yet. If it
//! cannot be reached, there is no connection: another address is never taken instead.
//!
//! Once a second one of the sentinels, in turn, is asked whether the address is still the same. If
//! it names another one, all are asked, and the connection is left only if another address wins.
//!
//! What the sentinels think of the master's health (the flags in SENTINEL MASTER) does not matter
//! here: a master that is down for them is replaced by them, or is still the only one. Addresses
//! are compared as they are given; with `announce-hostnames`, all sentinels should announce names.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ConnectionAddr, RedisError, Value};
use tokio::time::timeout;

use super::{
    super::wire::connect::{ConnectError, Connected, Connector},
    survey::{Patience, survey},
};

/// How long sentinels may take to answer, connecting included.
const PATIENCE: Patience = Patience {
    bound: Duration::from_millis(400),
    linger: Duration::from_millis(150),
};

/// The sentinels, and the name of the master that they watch.
#[derive(Clone)]
pub(crate) struct Sentinels {
    addrs: Vec<ConnectionAddr>,
    master: String,
    /// Counts up; says whose turn it is to be asked whether the master is still the same.
    turn: Arc<AtomicUsize>,
}

/// Host and port of a master, as sentinels give it.
type MasterAddr = (String, u16);

/// What a sentinel says.
#[derive(Debug)]
struct Answer {
    master: MasterAddr,
    /// The configuration epoch since which it is the master; not given by a sentinel whose access
    /// rules forbid SENTINEL MASTER.
    epoch: Option<u64>,
}

impl Sentinels {
    pub(crate) fn new(addrs: Vec<ConnectionAddr>, master: String) -> Self {
        let first = fastrand::usize(..addrs.len());
        Self {
            addrs,
            master,
            turn: Arc::new(AtomicUsize::new(first)),
        }
    }

    /// Connects to the master. `connector` has the credentials.
    pub(crate) async fn connect(&self, connector: &Connector) -> Result<Connected, ConnectError> {
        let (host, port) = self.master(connector).await?;
        connect_to_master(connector, connector.addr(host, port)).await
    }

    /// Whether a connection to this address is to be kept: false only if another one wins. Asked
    /// often, so it asks one sentinel as long as that one names the same address.
    pub(crate) async fn agree_on(&self, connector: &Connector, addr: &ConnectionAddr) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.addrs.len();
        let mut question = [(self.question("GET-MASTER-ADDR-BY-NAME"), Value::Nil)];
        let asked = connector.ask_sentinel(&self.addrs[turn], &mut question);
        if !matches!(timeout(PATIENCE.bound, asked).await, Ok(Ok(()))) {
            return true;
        }
        let [(_, answer)] = question;
        match redis::from_redis_value::<MasterAddr>(answer) {
            Ok((host, port)) if connector.addr(host.clone(), port) != *addr => {}
            Ok(_) | Err(_) => return true,
        }
        match self.master(connector).await {
            Ok((host, port)) => connector.addr(host, port) == *addr,
            Err(_) => true,
        }
    }

    /// Asks all sentinels; gives the address that wins.
    async fn master(&self, connector: &Connector) -> Result<MasterAddr, ConnectError> {
        let mut answers = Vec::new();
        let mut error = ConnectError::NoSentinel;
        let questions = self.addrs.iter().map(|addr| {
            let (this, connector, addr) = (self.clone(), connector.clone(), addr.clone());
            async move { this.ask(&connector, &addr).await }
        });
        survey(questions, PATIENCE, |answer| {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(reason) => error = reason,
            }
            answers.len() > self.addrs.len() / 2
        })
        .await;
        if answers.is_empty() {
            return Err(error);
        }
        elect(&answers).cloned().ok_or(ConnectError::Disagreement)
    }

    async fn ask(
        &self,
        connector: &Connector,
        sentinel: &ConnectionAddr,
    ) -> Result<Answer, ConnectError> {
        // The epoch first: should a failover come between, the new address has an old epoch, and
        // not the old address a new one. The address is not taken from SENTINEL MASTER, in which
        // the sentinel that leads a failover has the new epoch before the new address.
        let mut questions = ["MASTER", "GET-MASTER-ADDR-BY-NAME"]
            .map(|subcommand| (self.question(subcommand), Value::Nil));
        connector.ask_sentinel(sentinel, &mut questions).await?;
        let [fields, master] = questions.map(|(_, answer)| answer.extract_error());
        Ok(Answer {
            // Nil from one that knows no such master.
            master: redis::from_redis_value(master?).map_err(|_| ConnectError::UnknownMaster)?,
            epoch: fields.ok().and_then(epoch),
        })
    }

    fn question(&self, subcommand: &str) -> Cmd {
        let mut question = redis::cmd("SENTINEL");
        question.arg(subcommand).arg(&self.master);
        question
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "master {}", self.master)
    }
}

/// The rule by which a master is chosen among those that sentinels name.
fn elect(answers: &[Answer]) -> Option<&MasterAddr> {
    // An epoch that is not given is lower than any other.
    let newest = answers.iter().map(|answer| answer.epoch).max()?;
    let named: Vec<_> = answers
        .iter()
        .filter(|answer| answer.epoch == newest)
        .map(|answer| &answer.master)
        .collect();
    if named.iter().all(|master| *master == named[0]) {
        return Some(named[0]);
    }
    named.into_iter().find(|candidate| {
        let votes = answers.iter().filter(|answer| answer.master == **candidate);
        2 * votes.count() > answers.len()
    })
}

/// The configuration epoch in the reply to SENTINEL MASTER.
fn epoch(fields: Value) -> Option<u64> {
    let fields: Result<HashMap<String, String>, RedisError> =
        redis::from_redis_value(fields).map_err(Into::into);
    fields.ok()?.get("config-epoch")?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_epoch_wins_and_then_the_majority() {
        for (answers, winner) in [
            (&[][..], None),
            (&[("a", Some(1))], Some("a")),
            (&[("a", None)], Some("a")),
            // The epoch counts for more than the number of those who say so.
            (&[("a", Some(1)), ("a", Some(1)), ("b", Some(2))], Some("b")),
            (&[("a", Some(9)), ("b", Some(10))], Some("b")),
            (&[("a", Some(1)), ("b", Some(2)), ("b", Some(2))], Some("b")),
            (&[("a", None), ("a", None), ("b", Some(1))], Some("b")),
            // Equal epochs.
            (&[("a", Some(1)), ("b", Some(1))], None),
            (&[("a", Some(1)), ("b", Some(1)), ("b", Some(1))], Some("b")),
            (&[("a", Some(2)), ("b", Some(2)), ("b", Some(1))], Some("b")),
            (&[("a", Some(2)), ("b", Some(2)), ("c", Some(1))], None),
            // The majority names one with an older epoch.
            (
                &[
                    ("a", Some(2)),
                    ("b", Some(2)),
                    ("c", Some(1)),
                    ("c", Some(1)),
                    ("c", Some(1)),
                ],
                None,
            ),
            // No epochs.
            (&[("a", None), ("b", None)], None),
            (&[("a", None), ("b", None), ("a", None)], Some("a")),
            (&[("a", None), ("a", None), ("b", None), ("b", None)], None),
        ] {
            let list: Vec<_> = answers
                .iter()
                .map(|(host, epoch)| Answer {
                    master: ((*host).to_owned(), 6379),
                    epoch: *epoch,
                })
                .collect();
            let elected = elect(&list).map(|(host, _)| host.as_str());
            assert_eq!(elected, winner, "{answers:?}");
        }
    }

    #[test]
    fn the_epoch_is_read_if_it_is_given() {
        let read = |text: &str| {
            let fields: Vec<_> = text
                .split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect();
            epoch(Value::Array(
                fields.into_iter().map(Value::BulkString).collect(),
            ))
        };
        assert_eq!(read("name mymaster config-epoch 12 quorum 2"), Some(12));
        assert_eq!(read("name mymaster"), None);
        assert_eq!(read("config-epoch -1"), None);
        assert_eq!(read("name mymaster config-epoch"), None);
        assert_eq!(epoch(Value::Nil), None);
    }
}

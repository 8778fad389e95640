//! Redis behind Sentinel: which server is the master now.
//!
//! Sentinels may disagree. One that was cut off from the others still names a master that has been
//! replaced, and that master may still say that it is one. Whatever is written to it is lost. So
//! every connect asks all sentinels at once, and one rule decides ([`elect`]):
//!
//! - The address with the highest configuration epoch wins. Sentinel gives every failover a higher
//!   epoch than those before.
//! - If sentinels name several addresses with that epoch, or none of them tells its epoch, the
//!   address wins that more than half of those who answer name.
//! - Otherwise nobody wins, and there is no connection.
//!
//! A sentinel has no vote if it does not answer in time, or knows no master of this name. The
//! winner has to say in ROLE that it is a master, because during a failover it may not be one yet.
//! If the winner cannot be reached, there is no connection. Another address is never taken instead.
//!
//! Once a second, one of the sentinels is asked whether the address is still the same; they take
//! turns. If one names another address, all are asked, and the connection is given up only if
//! another address wins.
//!
//! What the sentinels think of the master's health (the flags in SENTINEL MASTER) does not matter
//! here. They replace a master that is down for them, or have no other one. Addresses are compared
//! as they are given. With `announce-hostnames`, all sentinels should announce names.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/sentinel-clients/>

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ConnectionAddr};
use tokio::time::timeout;

use super::{
    super::wire::{
        connect::{Connected, Connector},
        failure::ConnectError,
        resp::{Replies, Reply},
    },
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
    /// Counts up. Says which sentinel to ask next whether the master is still the same.
    turn: Arc<AtomicUsize>,
}

/// Host and port of a master, as sentinels give them.
type MasterAddr = (String, u16);

/// The answer of one sentinel.
#[derive(Debug)]
struct Vote {
    master: MasterAddr,
    /// The configuration epoch since which it is the master. A sentinel whose access rules forbid
    /// SENTINEL MASTER does not tell it.
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

    /// Connects to the master with the credentials of `connector`.
    pub(super) async fn connect(&self, connector: &Connector) -> Result<Connected, ConnectError> {
        let (host, port) = self.master(connector).await?;
        let addr = connector.addr(host, port);
        let (connected, [role]) = connector.connect(addr, [redis::cmd("ROLE")]).await?;
        ConnectError::check(&role)?;
        let mut role = Replies::new(&role);
        match (role.next(), role.next()) {
            (Some(Reply::Array(_)), Some(Reply::Bulk(b"master"))) => Ok(connected),
            _ => Err(ConnectError::NotMaster(connected.addr.to_string())),
        }
    }

    /// Whether to keep a connection to this address. Returns false only if another address wins.
    /// Asks one sentinel, and the others only if that one names another address.
    pub(super) async fn agree_on(&self, connector: &Connector, addr: &ConnectionAddr) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.addrs.len();
        let question = [self.question("GET-MASTER-ADDR-BY-NAME")];
        let asked = connector.ask_sentinel(&self.addrs[turn], question);
        let Ok(Ok([answer])) = timeout(PATIENCE.bound, asked).await else {
            return true;
        };
        match master_addr(&answer) {
            Ok((host, port)) if connector.addr(host.clone(), port) != *addr => {}
            Ok(_) | Err(_) => return true,
        }
        match self.master(connector).await {
            Ok((host, port)) => connector.addr(host, port) == *addr,
            Err(_) => true,
        }
    }

    /// Asks all sentinels. Returns the address that wins.
    async fn master(&self, connector: &Connector) -> Result<MasterAddr, ConnectError> {
        let mut votes = Vec::new();
        let mut error = ConnectError::NoSentinel;
        let questions = self.addrs.iter().map(|addr| {
            let (this, connector, addr) = (self.clone(), connector.clone(), addr.clone());
            async move { this.ask(&connector, &addr).await }
        });
        survey(questions, PATIENCE, |answer| {
            match answer {
                Ok(vote) => votes.push(vote),
                Err(reason) => error = reason,
            }
            votes.len() > self.addrs.len() / 2
        })
        .await;
        if votes.is_empty() {
            return Err(error);
        }
        elect(&votes).cloned().ok_or(ConnectError::Disagreement)
    }

    async fn ask(
        &self,
        connector: &Connector,
        sentinel: &ConnectionAddr,
    ) -> Result<Vote, ConnectError> {
        // The epoch is asked first. If a failover comes between the two, the new address then has
        // an old epoch; the other way round, the old address would have the new epoch. The address
        // in SENTINEL MASTER is of no use: the sentinel that leads a failover has the new epoch
        // there before the new address.
        let questions = ["MASTER", "GET-MASTER-ADDR-BY-NAME"].map(|what| self.question(what));
        let [fields, master] = connector.ask_sentinel(sentinel, questions).await?;
        Ok(Vote {
            master: master_addr(&master)?,
            epoch: epoch(&fields),
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

/// Chooses the master among the addresses that sentinels name.
fn elect(votes: &[Vote]) -> Option<&MasterAddr> {
    // An epoch that is not given is lower than any other.
    let newest = votes.iter().map(|vote| vote.epoch).max()?;
    let named: Vec<_> = votes
        .iter()
        .filter(|vote| vote.epoch == newest)
        .map(|vote| &vote.master)
        .collect();
    if named.iter().all(|master| *master == named[0]) {
        return Some(named[0]);
    }
    named.into_iter().find(|candidate| {
        let same = votes.iter().filter(|vote| vote.master == **candidate);
        2 * same.count() > votes.len()
    })
}

/// The address in the reply to SENTINEL GET-MASTER-ADDR-BY-NAME. The reply is nil if the sentinel
/// knows no such master.
fn master_addr(reply: &[u8]) -> Result<MasterAddr, ConnectError> {
    ConnectError::check(reply)?;
    let mut replies = Replies::new(reply);
    let mut read = || {
        let Some(Reply::Array(2)) = replies.next() else {
            return None;
        };
        let host = replies.next()?.text()?.to_owned();
        Some((host, replies.next()?.number()?.try_into().ok()?))
    };
    read().ok_or(ConnectError::UnknownMaster)
}

/// The configuration epoch in the reply to SENTINEL MASTER, a list of names and values.
fn epoch(reply: &[u8]) -> Option<u64> {
    let mut replies = Replies::new(reply);
    let Some(Reply::Array(_)) = replies.next() else {
        return None;
    };
    while let (Some(name), Some(value)) = (replies.next(), replies.next()) {
        if let Reply::Bulk(b"config-epoch") = name {
            return value.number()?.try_into().ok();
        }
    }
    None
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
                .map(|(host, epoch)| Vote {
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
            let fields: Vec<_> = text.split(' ').collect();
            let strings = fields
                .iter()
                .map(|field| format!("${}\r\n{field}\r\n", field.len()));
            let strings: String = strings.collect();
            epoch(format!("*{}\r\n{strings}", fields.len()).as_bytes())
        };
        assert_eq!(read("name mymaster config-epoch 12 quorum 2"), Some(12));
        assert_eq!(read("name mymaster"), None);
        assert_eq!(read("config-epoch -1"), None);
        assert_eq!(read("name mymaster config-epoch"), None);
        assert_eq!(epoch(b"*-1\r\n"), None);
        assert_eq!(epoch(b"-NOPERM no\r\n"), None);
    }
}

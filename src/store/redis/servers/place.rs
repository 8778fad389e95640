//! Where a link leads: to a fixed address, or to whichever server is the master.

use std::fmt;

use redis::ConnectionAddr;

use super::{
    super::wire::{
        connect::{Connected, Connector},
        failure::ConnectError,
    },
    sentinel::Sentinels,
};

/// A server, and how to connect to it.
#[derive(Clone)]
pub(crate) struct Place {
    connector: Connector,
    target: Target,
}

#[derive(Clone)]
enum Target {
    Address(ConnectionAddr),
    Node(ConnectionAddr),
    Master(Sentinels),
}

impl Place {
    pub(crate) fn at(connector: Connector, addr: ConnectionAddr) -> Self {
        Self {
            connector,
            target: Target::Address(addr),
        }
    }

    /// A node of a cluster, which has to be a master.
    pub(crate) fn of_node(connector: Connector, addr: ConnectionAddr) -> Self {
        Self {
            connector,
            target: Target::Node(addr),
        }
    }

    /// The server that sentinels name as the master.
    pub(crate) fn of_master(connector: Connector, sentinels: Sentinels) -> Self {
        Self {
            connector,
            target: Target::Master(sentinels),
        }
    }

    /// Whether connections estimate the clock of the server.
    pub(super) fn estimates_clock(&self) -> bool {
        self.connector.estimates_clock()
    }

    /// Connects to the server. Cancel-safe: dropping the call closes the connection.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        match &self.target {
            Target::Address(addr) | Target::Node(addr) => {
                let (connected, []) = self.connector.connect(addr.clone(), []).await?;
                Ok(connected)
            }
            Target::Master(sentinels) => sentinels.connect(&self.connector).await,
        }
    }

    /// Connects once more to a server that [`Place::connect`] has found. Cancel-safe.
    pub(crate) async fn connect_again(
        &self,
        addr: &ConnectionAddr,
    ) -> Result<Connected, ConnectError> {
        let (connected, []) = self.connector.connect(addr.clone(), []).await?;
        Ok(connected)
    }

    /// Whether only a master may be at this place.
    pub(crate) fn wants_master(&self) -> bool {
        matches!(self.target, Target::Node(_) | Target::Master(_))
    }

    /// Whether to keep a connection to `addr`. Returns false if another server has taken its place.
    /// Waits for other servers, so the caller must bound it. Cancel-safe.
    pub(crate) async fn is_right(&self, addr: &ConnectionAddr) -> bool {
        match &self.target {
            Target::Address(_) | Target::Node(_) => true,
            Target::Master(sentinels) => sentinels.agree_on(&self.connector, addr).await,
        }
    }
}

/// For the log.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Address(addr) | Target::Node(addr) => addr.fmt(f),
            Target::Master(sentinels) => sentinels.fmt(f),
        }
    }
}

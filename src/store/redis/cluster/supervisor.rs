//! Keeps the map of slots right, and says whether the cluster serves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{ConnectionAddr, Value};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    super::{
        connect::{ConnectError, Connector},
        link::{Effect, Report},
    },
    Map, Node, SLOTS, Shared,
    view::View,
};
use crate::store::LinkState;

/// The pause between two looks at the map while all is well, while something is not, and at
/// least.
const SETTLED: Duration = Duration::from_secs(5);
const UNSETTLED: Duration = Duration::from_millis(250);
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long a node from the settings may take to tell the map, connecting included; and how often
/// those are asked, if no node of the map answers.
const SEED_TIMEOUT: Duration = Duration::from_secs(1);
const SEED_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the map right, for ever.
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    seeds: Vec<ConnectionAddr>,
    seeds_asked: Option<Instant>,
    report: Report,
    last_state: Option<LinkState>,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, seeds: Vec<ConnectionAddr>, report: Report) -> Self {
        Self {
            shared,
            seeds,
            seeds_asked: None,
            report,
            last_state: None,
        }
    }

    pub(super) async fn run(mut self) -> Infallible {
        loop {
            let state = match self.look().await {
                Ok(view) => {
                    let state = if view.ok {
                        LinkState::Up
                    } else {
                        LinkState::Down("redis: the cluster says that it is down".to_owned())
                    };
                    self.install(view);
                    if self.last_state != Some(LinkState::Up) {
                        self.first_connects().await;
                    }
                    state
                }
                Err(error) => LinkState::Down(format!("redis: {error}")),
            };
            self.set(state);
            sleep(LEAST_PAUSE).await;
            let pause = if self.is_settled() {
                SETTLED
            } else {
                UNSETTLED
            };
            // Time passing is as good a reason to look as being told.
            _ = timeout(pause, self.shared.stale.notified()).await;
        }
    }

    /// Waits until every node has been tried once, or for so long: who hears that the cluster
    /// serves shall not find its nodes unconnected.
    async fn first_connects(&mut self) {
        let nodes = self.shared.map().nodes.clone();
        let tried = nodes.iter().map(|node| node.link.connected());
        _ = timeout(SEED_TIMEOUT, join_all(tried)).await;
    }

    /// All is well, and every master is connected.
    fn is_settled(&self) -> bool {
        let map = self.shared.map();
        self.last_state == Some(LinkState::Up) && map.nodes.iter().all(|node| node.link.is_up())
    }

    /// Asks the nodes of the map side by side, and those of the settings if none answers.
    async fn look(&mut self) -> Result<View, ConnectError> {
        let nodes = self.shared.map().nodes.clone();
        let mut asked = JoinSet::new();
        for Node { addr, link } in nodes {
            asked.spawn(async move {
                let reply = link.request(Effect::Read, |commands| {
                    commands.whole(&[b"CLUSTER", b"INFO"]);
                    commands.whole(&[b"CLUSTER", b"SLOTS"]);
                });
                let reply = reply.await.ok()?;
                let mut rest = &reply[..];
                let mut parser = redis::Parser::new();
                let info = parser.parse_value(&mut rest).ok()?;
                let slots = parser.parse_value(&mut rest).ok()?;
                View::read(info, slots, &addr.host)
            });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Some(view)) = answer {
                return Ok(view);
            }
        }
        self.ask_seeds().await
    }

    async fn ask_seeds(&mut self) -> Result<View, ConnectError> {
        if let Some(asked) = self.seeds_asked {
            tokio::time::sleep_until(asked + SEED_INTERVAL).await;
        }
        self.seeds_asked = Some(Instant::now());
        let mut error = ConnectError::NoNode;
        for seed in &self.seeds {
            match timeout(SEED_TIMEOUT, ask_seed(&self.shared.connector, seed)).await {
                Ok(Ok(view)) => return Ok(view),
                Ok(Err(reason)) => error = reason,
                Err(_) => {}
            }
        }
        Err(error)
    }

    /// Puts a new map in force; links to nodes that are in both maps stay.
    fn install(&self, view: View) {
        let mut map = self.shared.map();
        let mut new = Map {
            nodes: Vec::new(),
            slots: vec![None; usize::from(SLOTS)],
        };
        for (addr, first, last) in view.ranges {
            let known = map.nodes.iter().find(|node| node.addr == addr);
            let place = new.place(&addr, || {
                known.map_or_else(|| self.shared.link(&addr), |node| node.link.clone())
            });
            new.slots[usize::from(first)..=usize::from(last)].fill(Some(place));
        }
        *map = new;
    }

    /// Logs a state once, not at every look.
    fn set(&mut self, state: LinkState) {
        if self.last_state.as_ref() == Some(&state) {
            return;
        }
        match &state {
            LinkState::Up => tracing::info!("redis cluster serves"),
            LinkState::Down(reason) => tracing::warn!(reason, "redis cannot serve"),
        }
        (self.report)(state.clone());
        self.last_state = Some(state);
    }
}

async fn ask_seed(connector: &Connector, seed: &ConnectionAddr) -> Result<View, ConnectError> {
    let mut questions = ["INFO", "SLOTS"].map(|what| {
        let mut question = redis::cmd("CLUSTER");
        question.arg(what);
        (question, Value::Nil)
    });
    connector.greet(seed.clone(), &mut questions).await?;
    let (ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) = seed else {
        // The settings admit no other kind.
        return Err(ConnectError::NoNode);
    };
    let [info, slots] = questions.map(|(_, answer)| answer.extract_error());
    View::read(info?, slots?, host).ok_or(ConnectError::NoNode)
}

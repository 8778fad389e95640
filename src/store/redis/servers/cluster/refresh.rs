//! The task that keeps the map of slots right, and reports whether the cluster serves.
//!
//! Nodes may disagree: one that was reset knows no slots, and one that was cut off has an old map.
//! So the task asks all nodes of the map at once and installs the best answer ([`View::worth`]). It
//! also asks the seeds, the nodes in the settings, if no node of the map says that the cluster
//! serves, and now and then in any case. Otherwise a map that leads to the wrong nodes could stay
//! for ever. An empty map never replaces another one.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::ConnectionAddr;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    super::{
        super::wire::{connect::Connector, failure::ConnectError, resp::Replies},
        effect::Effect,
        link::Report,
        survey::{Patience, survey},
    },
    slots::{Node, NodeAddr, SLOTS, SlotMap, Topology},
    view::View,
};
use crate::store::status::LinkState;

/// The pause between two looks at the map while all is well.
const SETTLED: Duration = Duration::from_secs(5);
/// The pause while something is wrong.
const UNSETTLED: Duration = Duration::from_millis(250);
/// The pause in any case, even if the map is said to be outdated.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long nodes of the map may take to answer.
const NODE_PATIENCE: Patience = Patience {
    bound: Duration::from_secs(1),
    linger: Duration::from_millis(150),
};
/// How long seeds may take to answer. There is no connection to them yet.
const SEED_PATIENCE: Patience = Patience {
    bound: Duration::from_secs(1),
    linger: Duration::from_millis(500),
};
/// How long to wait for the nodes of the first map to be tried once.
const FIRST_CONNECTS: Duration = Duration::from_secs(1);
/// Minimum time between two questions to the seeds while no node of the map says that the cluster
/// serves.
const SEED_INTERVAL: Duration = Duration::from_secs(1);
/// How often to ask the seeds in any case.
const SETTLED_SEED_INTERVAL: Duration = Duration::from_secs(30);

/// Keeps the map right, for ever.
pub(super) struct MapRefresh {
    topology: Arc<Topology>,
    seeds: Vec<ConnectionAddr>,
    seeds_asked: Option<Instant>,
    report: Report,
    last_state: Option<LinkState>,
}

impl MapRefresh {
    pub(super) fn new(topology: Arc<Topology>, seeds: Vec<ConnectionAddr>, report: Report) -> Self {
        Self {
            topology,
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
                Err(error) => {
                    self.topology.map().failure = Some(error.for_calls());
                    LinkState::Down(format!("redis: {error}"))
                }
            };
            self.set(state);
            sleep(LEAST_PAUSE).await;
            let pause = if self.is_settled() {
                SETTLED
            } else {
                UNSETTLED
            };
            // Look again after the pause, or as soon as the map may be outdated.
            _ = timeout(pause, self.topology.stale.notified()).await;
        }
    }

    /// Waits until every node has been tried once, but not for long. The cluster is reported as up
    /// only after that, so that the first calls do not fail.
    async fn first_connects(&mut self) {
        let nodes = self.topology.map().nodes.clone();
        let tried = nodes.iter().map(|node| node.link.connected());
        _ = timeout(FIRST_CONNECTS, join_all(tried)).await;
    }

    /// Whether the cluster serves and every master is connected.
    fn is_settled(&self) -> bool {
        let map = self.topology.map();
        self.last_state == Some(LinkState::Up) && map.nodes.iter().all(|node| node.link.is_up())
    }

    /// Asks the nodes for the map. Returns the best answer.
    async fn look(&mut self) -> Result<View, ConnectError> {
        let nodes = self.topology.map().nodes.clone();
        let mut best = Best::default();
        best.hear(nodes.iter().cloned().map(ask_node), NODE_PATIENCE)
            .await;
        let serves = best.view.as_ref().is_some_and(|view| view.ok);
        let interval = match serves {
            true => SETTLED_SEED_INTERVAL,
            false => SEED_INTERVAL,
        };
        if let Some(asked) = self.seeds_asked {
            if best.view.is_some() && asked.elapsed() < interval {
                return best.result();
            }
            sleep_until(asked + interval).await;
        }
        self.seeds_asked = Some(Instant::now());
        let seeds = self.seeds.iter().filter(|seed| {
            // A node is not asked twice.
            !serves || !nodes.iter().any(|node| is_at(seed, &node.addr))
        });
        let connector = &self.topology.connector;
        let questions = seeds.map(|seed| ask_seed(connector.clone(), seed.clone()));
        best.hear(questions, SEED_PATIENCE).await;
        best.result()
    }

    /// Installs a new map. A node that was in the old map keeps its link.
    fn install(&self, view: View) {
        let mut map = self.topology.map();
        let mut new = SlotMap {
            nodes: Vec::new(),
            slots: vec![None; usize::from(SLOTS)],
            failure: None,
        };
        for (addr, first, last) in view.ranges {
            let known = map.nodes.iter().find(|node| node.addr == addr);
            let place = new.place(&addr, || {
                known.map_or_else(|| self.topology.link(&addr), |node| node.link.clone())
            });
            new.slots[usize::from(first)..=usize::from(last)].fill(Some(place));
        }
        *map = new;
    }

    /// Reports a state and logs it, once and not at every look.
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

/// The best answer so far.
#[derive(Default)]
struct Best {
    view: Option<View>,
    /// Why there is no view.
    error: Option<ConnectError>,
}

impl Best {
    async fn hear<Q>(&mut self, questions: impl Iterator<Item = Q>, patience: Patience)
    where
        Q: Future<Output = Result<View, ConnectError>> + Send + 'static,
    {
        let mut errors = BTreeMap::new();
        let questions = questions
            .enumerate()
            .map(|(place, question)| async move { (place, question.await) });
        survey(questions, patience, |(place, answer)| {
            match answer {
                Ok(view) => {
                    let best = self.view.as_ref().map(View::worth);
                    if best.is_none_or(|best| view.worth() > best) {
                        self.view = Some(view);
                    }
                }
                Err(reason) => _ = errors.insert(place, reason),
            }
            self.view.as_ref().is_some_and(|view| view.ok)
        })
        .await;
        // The error of the first node, not of the quickest. It stays the same while nothing
        // changes, and each new error is a new line in the log.
        if let Some((_, reason)) = errors.pop_first() {
            self.error = Some(reason);
        }
    }

    fn result(self) -> Result<View, ConnectError> {
        self.view.ok_or(self.error.unwrap_or(ConnectError::NoNode))
    }
}

/// Asks a node of the map, through its link.
async fn ask_node(node: Node) -> Result<View, ConnectError> {
    let reply = node.link.request(Effect::Read, |commands| {
        commands.whole(&[b"CLUSTER", b"INFO"]);
        commands.whole(&[b"CLUSTER", b"SLOTS"]);
    });
    let reply = reply.await.map_err(|_| ConnectError::NoNode)?;
    let mut replies = Replies::new(&reply);
    let info = replies.next();
    View::read(info, replies, &node.addr.host).ok_or(ConnectError::NoSlots)
}

/// Asks a node of the settings, on a connection for this one question.
async fn ask_seed(connector: Connector, seed: ConnectionAddr) -> Result<View, ConnectError> {
    let questions = ["INFO", "SLOTS"].map(|what| redis::cmd("CLUSTER").arg(what).to_owned());
    let (_, [info, slots]) = connector.connect(seed.clone(), questions).await?;
    ConnectError::check(&info)?;
    ConnectError::check(&slots)?;
    let host = host_and_port(&seed).map_or("", |(host, _)| host);
    let info = Replies::new(&info).next();
    View::read(info, Replies::new(&slots), host).ok_or(ConnectError::NoSlots)
}

fn is_at(seed: &ConnectionAddr, addr: &NodeAddr) -> bool {
    host_and_port(seed) == Some((&addr.host, addr.port))
}

fn host_and_port(seed: &ConnectionAddr) -> Option<(&str, u16)> {
    match seed {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        // The settings admit no other kind.
        _ => None,
    }
}

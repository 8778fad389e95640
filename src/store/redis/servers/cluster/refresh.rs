//! Keeps the map of slots right, and says whether the cluster serves.
//!
//! Nodes may disagree: one that was reset knows no slots, and one that was cut off has an old map.
//! So all nodes of the map are asked side by side, and the best answer is put in force
//! ([`View::worth`]). The nodes of the settings, the seeds, are asked as well if no node of the map
//! says that the cluster serves, and now and then, so that a map which leads to the wrong nodes
//! does not stay for ever. An empty map never replaces another one.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{ConnectionAddr, Value};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    super::{
        super::wire::connect::{ConnectError, Connector},
        link::{Effect, Report},
        survey::{Patience, survey},
    },
    Addr, Map, Node, SLOTS, Shared,
    view::View,
};
use crate::store::status::LinkState;

/// The pause between two looks at the map while all is well, while something is not, and at
/// least.
const SETTLED: Duration = Duration::from_secs(5);
const UNSETTLED: Duration = Duration::from_millis(250);
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// How long nodes of the map may take to tell what they know of it, and how long seeds may, to which
/// there is no connection yet.
const NODE_PATIENCE: Patience = Patience {
    bound: Duration::from_secs(1),
    linger: Duration::from_millis(150),
};
const SEED_PATIENCE: Patience = Patience {
    bound: Duration::from_secs(1),
    linger: Duration::from_millis(500),
};
/// How long the first calls wait for nodes that are not connected.
const FIRST_CONNECTS: Duration = Duration::from_secs(1);
/// How often the nodes from the settings are asked, at most, if no node of the map says that the
/// cluster serves; and how often they are asked anyway.
const SEED_INTERVAL: Duration = Duration::from_secs(1);
const SETTLED_SEED_INTERVAL: Duration = Duration::from_secs(30);

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
                Err(error) => {
                    self.shared.map().failure = Some(error.of_a_call());
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
            // Time passing is as good a reason to look as being told.
            _ = timeout(pause, self.shared.stale.notified()).await;
        }
    }

    /// Waits until every node has been tried once, or for so long: who hears that the cluster
    /// serves shall not find its nodes unconnected.
    async fn first_connects(&mut self) {
        let nodes = self.shared.map().nodes.clone();
        let tried = nodes.iter().map(|node| node.link.connected());
        _ = timeout(FIRST_CONNECTS, join_all(tried)).await;
    }

    /// All is well, and every master is connected.
    fn is_settled(&self) -> bool {
        let map = self.shared.map();
        self.last_state == Some(LinkState::Up) && map.nodes.iter().all(|node| node.link.is_up())
    }

    /// Asks for the map; gives the best answer.
    async fn look(&mut self) -> Result<View, ConnectError> {
        let nodes = self.shared.map().nodes.clone();
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
            // Not twice.
            !serves || !nodes.iter().any(|node| is_at(seed, &node.addr))
        });
        let connector = &self.shared.connector;
        let questions = seeds.map(|seed| ask_seed(connector.clone(), seed.clone()));
        best.hear(questions, SEED_PATIENCE).await;
        best.result()
    }

    /// Puts a new map in force; links to nodes that are in both maps stay.
    fn install(&self, view: View) {
        let mut map = self.shared.map();
        let mut new = Map {
            nodes: Vec::new(),
            slots: vec![None; usize::from(SLOTS)],
            failure: None,
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

/// The best answer so far.
#[derive(Default)]
struct Best {
    view: Option<View>,
    /// Why there is none.
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
        // The same one each time, whoever was quickest: a new reason is a new line in the log.
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
    let mut rest = &reply[..];
    let mut parser = redis::Parser::new();
    let info = parser.parse_value(&mut rest)?;
    let slots = parser.parse_value(&mut rest)?;
    View::read(info, slots, &node.addr.host).ok_or(ConnectError::NoSlots)
}

/// Asks a node of the settings, on a connection for this one question.
async fn ask_seed(connector: Connector, seed: ConnectionAddr) -> Result<View, ConnectError> {
    let mut questions = ["INFO", "SLOTS"].map(|what| {
        let mut question = redis::cmd("CLUSTER");
        question.arg(what);
        (question, Value::Nil)
    });
    connector.greet(seed.clone(), &mut questions).await?;
    let [info, slots] = questions.map(|(_, answer)| answer.extract_error());
    let host = host_and_port(&seed).map_or("", |(host, _)| host);
    View::read(info?, slots?, host).ok_or(ConnectError::NoSlots)
}

fn is_at(seed: &ConnectionAddr, addr: &Addr) -> bool {
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

//! The feed of changes of a cluster: a tracker for each master.
//!
//! The owner of a slot tells what changes in it. When a slot gets another owner, the former owner
//! may say nothing. So every key of the slot counts as changed once the new owner is tracked. While
//! the owner of a slot is not tracked, changes in the slot are not noticed.

use std::{sync::Arc, time::Duration};

use redis::ConnectionAddr;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    super::{
        layout::KeyLayout,
        servers::{
            cluster::{Cluster, Owners},
            place::Place,
            task::AbortOnDrop,
        },
        wire::connect::Connector,
    },
    reads::RedisReader,
    tracker::{Told, Tracker},
};
use crate::store::{
    changes::{ChangeEvent, Parts},
    failure::StoreError,
};

/// How often to look at the map of slots.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// After this many looks, the nodes are asked whether the map is right.
const LOOKS_PER_CHECK: u32 = 4;
/// How many events of all nodes together may wait.
const EVENTS: usize = 64;

/// The task that follows the map of slots.
pub(super) struct NodeTrackers {
    cluster: Cluster,
    connector: Connector,
    layout: KeyLayout,
    timeout: Duration,
    namespaces: watch::Receiver<Arc<[String]>>,
    tell: mpsc::Sender<(u64, Told)>,
    nodes: Vec<TrackedNode>,
    /// The number of the next node.
    next_number: u64,
    nodes_tell: mpsc::Sender<(u64, Told)>,
    told: mpsc::Receiver<(u64, Told)>,
    /// The number of the owner of each slot, as the map has it.
    owners: Vec<Option<u64>>,
    /// For each slot what was told.
    slots: Vec<SlotState>,
}

struct TrackedNode {
    number: u64,
    addr: ConnectionAddr,
    state: NodeState,
    tracked: Arc<[String]>,
    /// Whether the node has said that nothing is missing.
    is_complete: bool,
    _tracker: AbortOnDrop,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Starting,
    Up,
    Down(StoreError),
}

/// What was told of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Nothing,
    /// The node with this number tells its changes.
    Began(u64),
    Lost,
}

/// What becomes of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotStep {
    Stay,
    Begin(u64),
    /// Another node has the slot.
    Move(u64),
    Lose(StoreError),
}

impl NodeTrackers {
    pub(super) fn new(
        cluster: Cluster,
        connector: Connector,
        layout: KeyLayout,
        timeout: Duration,
        namespaces: watch::Receiver<Arc<[String]>>,
        tell: mpsc::Sender<(u64, Told)>,
    ) -> Self {
        let (nodes_tell, told) = mpsc::channel(EVENTS);
        let slots = Cluster::SLOTS;
        Self {
            cluster,
            connector,
            layout,
            timeout,
            namespaces,
            tell,
            nodes: Vec::new(),
            next_number: 0,
            nodes_tell,
            told,
            owners: vec![None; slots],
            slots: vec![SlotState::Nothing; slots],
        }
    }

    pub(super) async fn run(mut self) {
        let reader = RedisReader::Cluster(self.cluster.clone(), self.layout.clone());
        self.tell(Told::Reader(Some(reader))).await;
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0u32;
        loop {
            tokio::select! {
                told = self.told.recv() => {
                    // There is a sender here, so that the channel never closes.
                    if let Some((number, told)) = told {
                        self.hear(number, told).await;
                    }
                }
                _ = looks.tick() => {
                    count = count.wrapping_add(1);
                    if count.is_multiple_of(LOOKS_PER_CHECK) {
                        self.cluster.check_soon();
                    }
                    self.look().await;
                }
            }
        }
    }

    /// Follows the map of slots.
    async fn look(&mut self) {
        match self.cluster.owners() {
            Ok(Owners { nodes, slots }) => {
                self.nodes.retain(|node| nodes.contains(&node.addr));
                let numbers: Vec<_> = nodes.into_iter().map(|addr| self.number(addr)).collect();
                let number = |place: Option<usize>| place.map(|place| numbers[place]);
                self.owners = slots.into_iter().map(number).collect();
                self.settle(StoreError::Unavailable).await;
            }
            // The map is not known yet.
            Err(None) => {}
            Err(Some(error)) => {
                self.owners.fill(None);
                self.settle(error).await;
            }
        }
    }

    /// The number of the node at an address. Starts to track the node if it is new.
    fn number(&mut self, addr: ConnectionAddr) -> u64 {
        if let Some(node) = self.nodes.iter().find(|node| node.addr == addr) {
            return node.number;
        }
        let number = self.next_number;
        self.next_number += 1;
        let tracker = Tracker::new(
            Place::of_node(self.connector.clone(), addr.clone()),
            self.layout.clone(),
            self.timeout,
            self.namespaces.clone(),
            (number, self.nodes_tell.clone()),
        );
        let task = tokio::spawn(tracker.run());
        self.nodes.push(TrackedNode {
            number,
            addr,
            state: NodeState::Starting,
            tracked: Arc::default(),
            is_complete: false,
            _tracker: AbortOnDrop(task.abort_handle()),
        });
        number
    }

    /// Tells what has become of the slots. `error` is that of slots without an owner.
    async fn settle(&mut self, error: StoreError) {
        let steps: Vec<_> = (0..self.slots.len())
            .map(|slot| self.step(slot, error))
            .collect();
        let mut told: Vec<SlotStep> = Vec::new();
        for step in &steps {
            if *step == SlotStep::Stay || told.contains(step) {
                continue;
            }
            told.push(*step);
            let parts = Parts::Some(steps.iter().map(|other| other == step).collect());
            let namespaces = self.common_namespaces();
            let (state, event) = match *step {
                SlotStep::Stay => continue,
                SlotStep::Begin(node) => {
                    let event = ChangeEvent::Began { parts, namespaces };
                    (SlotState::Began(node), event)
                }
                SlotStep::Move(node) => (SlotState::Began(node), ChangeEvent::AllChanged(parts)),
                SlotStep::Lose(error) => (SlotState::Lost, ChangeEvent::Lost { parts, error }),
            };
            for (slot, _) in steps.iter().enumerate().filter(|(_, other)| *other == step) {
                self.slots[slot] = state;
            }
            self.tell(Told::Event(event)).await;
        }
    }

    fn step(&self, slot: usize, error: StoreError) -> SlotStep {
        let owner = self.owners[slot].and_then(|number| self.node(number));
        let state = owner.map_or(NodeState::Down(error), |node| node.state);
        let number = owner.map(|node| node.number);
        match (state, self.slots[slot], number) {
            (NodeState::Up, SlotState::Began(before), Some(number)) if before == number => {
                SlotStep::Stay
            }
            (NodeState::Up, SlotState::Began(_), Some(number)) => SlotStep::Move(number),
            (NodeState::Up, _, Some(number)) => SlotStep::Begin(number),
            (_, SlotState::Lost, _) | (NodeState::Starting, SlotState::Nothing, _) => {
                SlotStep::Stay
            }
            (NodeState::Down(error), _, _) => SlotStep::Lose(error),
            (NodeState::Starting | NodeState::Up, _, _) => SlotStep::Lose(error),
        }
    }

    fn node(&self, number: u64) -> Option<&TrackedNode> {
        self.nodes.iter().find(|node| node.number == number)
    }

    /// The namespaces that every node tracks which tracks at all.
    fn common_namespaces(&self) -> Arc<[String]> {
        let up = || self.nodes.iter().filter(|node| node.state == NodeState::Up);
        let Some(first) = up().next() else {
            return Arc::default();
        };
        let common = |name: &&String| up().all(|node| node.tracked.contains(name));
        first.tracked.iter().filter(common).cloned().collect()
    }

    async fn hear(&mut self, number: u64, told: Told) {
        let Some(node) = self.nodes.iter_mut().find(|node| node.number == number) else {
            return;
        };
        let Told::Event(event) = told else {
            // Reads go to whichever node has the slot.
            return;
        };
        match event {
            ChangeEvent::Began { namespaces, .. } => {
                node.state = NodeState::Up;
                node.tracked = namespaces;
                self.settle(StoreError::Unavailable).await;
            }
            ChangeEvent::Tracking { namespaces } => {
                node.tracked = namespaces;
                let namespaces = self.common_namespaces();
                self.tell(Told::Event(ChangeEvent::Tracking { namespaces }))
                    .await;
            }
            ChangeEvent::Lost { error, .. } => {
                node.state = NodeState::Down(error);
                node.is_complete = false;
                self.settle(StoreError::Unavailable).await;
            }
            ChangeEvent::Changed(keys) => {
                self.tell(Told::Event(ChangeEvent::Changed(keys))).await;
            }
            ChangeEvent::AllChanged(_) => {
                let slots = self.slots.iter();
                let parts = slots
                    .map(|state| *state == SlotState::Began(number))
                    .collect();
                let event = ChangeEvent::AllChanged(Parts::Some(parts));
                self.tell(Told::Event(event)).await;
            }
            ChangeEvent::Complete => {
                node.is_complete = true;
                self.tell_complete().await;
            }
        }
    }

    /// Says that nothing is missing, if all nodes have said so.
    async fn tell_complete(&mut self) {
        let mut slots = self.slots.iter();
        let has_begun = slots.all(|state| matches!(state, SlotState::Began(_)));
        if has_begun && self.nodes.iter().all(|node| node.is_complete) {
            for node in &mut self.nodes {
                node.is_complete = false;
            }
            self.tell(Told::Event(ChangeEvent::Complete)).await;
        }
    }

    async fn tell(&self, told: Told) {
        // It fails only if the feed is gone, and this task soon, too.
        _ = self.tell.send((0, told)).await;
    }
}

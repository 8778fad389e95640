//! The feed of changes of the embedded store.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{key::Key, shards::MemoryStore};
use crate::{
    model::{Id, Namespace},
    store::changes::{ChangeEvent, Parts, Reading},
};

/// How often to say that all changes have been told.
const COMPLETE_INTERVAL: Duration = Duration::from_secs(1);
/// How many ids are listed at a time.
const PAGE_SIZE: usize = 1_000;

/// The feed of changes of an embedded store.
#[derive(Debug)]
pub(crate) struct MemoryChanges {
    store: Arc<MemoryStore>,
    events: VecDeque<ChangeEvent>,
    is_on: bool,
    next_complete: Instant,
}

impl MemoryChanges {
    /// A store has one feed.
    pub(crate) fn new(store: Arc<MemoryStore>) -> Self {
        Self {
            store,
            events: VecDeque::new(),
            is_on: false,
            next_complete: Instant::now(),
        }
    }

    pub(crate) fn key(&self, namespace: Namespace<'_>, id: Id<'_>) -> Vec<u8> {
        Key::new(namespace, id).to_bytes().into()
    }

    pub(crate) fn id_of<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        std::str::from_utf8(key).ok()?.split_once('/')
    }

    pub(crate) fn track(&mut self, namespaces: Arc<[String]>) {
        let was_on = std::mem::replace(&mut self.is_on, !namespaces.is_empty());
        self.store.changes.follow(Arc::clone(&namespaces));
        if !self.is_on {
            self.events.clear();
        } else if was_on {
            self.events.push_back(ChangeEvent::Tracking { namespaces });
        } else {
            self.next_complete = Instant::now() + COMPLETE_INTERVAL;
            let parts = Parts::All;
            self.events
                .push_back(ChangeEvent::Began { parts, namespaces });
        }
    }

    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> ChangeEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if !self.is_on {
                return std::future::pending().await;
            }
            if let Some(event) = self.store.changes.take() {
                return event;
            }
            tokio::select! {
                () = self.store.changes.wake.notified() => {}
                () = tokio::time::sleep_until(self.next_complete) => {
                    self.next_complete = Instant::now() + COMPLETE_INTERVAL;
                    return ChangeEvent::Complete;
                }
            }
        }
    }

    pub(crate) fn reader(&self) -> MemoryReader {
        MemoryReader(Arc::clone(&self.store))
    }
}

/// Reads what keys of an embedded store hold.
#[derive(Debug)]
pub(crate) struct MemoryReader(Arc<MemoryStore>);

impl MemoryReader {
    pub(crate) fn read(&self, keys: &[Arc<[u8]>]) -> Vec<Reading> {
        let now = std::time::Instant::now();
        let read = |key: &Arc<[u8]>| {
            self.0.read(&Key::from_bytes(key), |slot| {
                let (value, expiry) = slot?;
                let left = expiry.checked_duration_since(now)?;
                (!left.is_zero()).then(|| (value.clone().into_owned(), Some(left)))
            })
        };
        keys.iter().map(|key| Ok(read(key))).collect()
    }

    /// Lists page by page. The worker of the same thread comes in between.
    pub(crate) async fn list(&self, namespace: &str, max: usize) -> Vec<Box<str>> {
        let mut ids = Vec::new();
        let Ok(namespace) = Namespace::try_from(namespace) else {
            return ids;
        };
        let mut start = None;
        loop {
            let page = self.0.list(namespace, PAGE_SIZE, start);
            ids.extend(page.ids.into_iter().map(|(id, _)| id));
            start = page.next;
            if start.is_none() || ids.len() > max {
                return ids;
            }
            tokio::task::yield_now().await;
        }
    }
}

//! Whether calls can be served, for `grpc.health.v1` and `/readyz`.
//!
//! Not ready until the store has been connected for the first time. Then the state follows the
//! store, with a delay: a change counts when two looks in a row see it. Not ready from the start of
//! a shutdown.

use std::time::Duration;

use tokio::sync::watch;

use crate::store::LinkState;

/// How often to look at the store, and how many looks in a row have to see a change before it
/// counts. A link that is replaced at once must not make balancers move the traffic of a whole
/// fleet.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBES: u32 = 2;

/// Whether calls can be served, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    NotReady(String),
}

/// Writes the [`Readiness`] that the health service and `/readyz` read.
#[derive(Debug)]
pub(crate) struct Health {
    readiness: watch::Sender<Readiness>,
}

impl Health {
    /// Not ready until [`Health::follow`] says otherwise.
    pub(crate) fn new() -> Self {
        Self {
            readiness: watch::Sender::new(Readiness::NotReady("starting".to_owned())),
        }
    }

    /// What the gRPC health service and `/readyz` follow.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Follows the store for ever: ready as soon as the store is up for the first time. From then
    /// on a change counts when [`PROBES`] looks in a row see it. Cancel-safe.
    pub(crate) async fn follow(&self, mut store: watch::Receiver<LinkState>) {
        loop {
            let seen = store.borrow_and_update().clone();
            let LinkState::Down(reason) = seen else {
                break;
            };
            self.set(Readiness::NotReady(reason));
            if store.changed().await.is_err() {
                return;
            }
        }
        self.set(Readiness::Ready);
        let mut ready = true;
        let mut against = 0;
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            let seen = store.borrow().clone();
            let agrees = ready == (seen == LinkState::Up);
            against = if agrees { 0 } else { against + 1 };
            if against == PROBES {
                ready = !ready;
                against = 0;
            }
            match seen {
                LinkState::Up if ready => self.set(Readiness::Ready),
                LinkState::Down(reason) if !ready => self.set(Readiness::NotReady(reason)),
                // The change has not lasted for long enough yet.
                LinkState::Up | LinkState::Down(_) => {}
            }
        }
    }

    /// Not ready from now on. To be called when nothing follows the store any more.
    pub(crate) fn shut_down(&self) {
        self.readiness
            .send_replace(Readiness::NotReady("shutting down".to_owned()));
    }

    fn set(&self, readiness: Readiness) {
        if *self.readiness.borrow() == readiness {
            return;
        }
        match &readiness {
            Readiness::Ready => tracing::info!("ready"),
            Readiness::NotReady(reason) => tracing::warn!(reason, "not ready"),
        }
        self.readiness.send_replace(readiness);
    }
}

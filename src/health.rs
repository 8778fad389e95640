//! What the service says about itself: `grpc.health.v1` and `/readyz`, both from one state.
//!
//! The names "" and `dyndata.v1.DynData` follow the store: NOT_SERVING until it is there, while it
//! is not (and has not been for two looks in a row), and from the start of a shutdown. The name
//! `liveness` is SERVING for as long as the process answers.

use std::time::Duration;

use tokio::sync::watch;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{service, store::LinkState};

/// How often the store is looked at, and how many looks in a row make a change, so that a link
/// that is replaced at once does not move a whole fleet's traffic.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBES: u32 = 2;

/// Whether calls can be served; if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    NotReady(String),
}

/// Keeps the health service and `/readyz` in step with the store.
#[derive(Debug)]
pub(crate) struct Health {
    reporter: HealthReporter,
    readiness: watch::Sender<Readiness>,
}

impl Health {
    /// Not ready until [`Health::follow`] says otherwise.
    pub(crate) async fn new() -> Self {
        let health = Self {
            reporter: HealthReporter::new(),
            readiness: watch::Sender::new(Readiness::NotReady("starting".to_owned())),
        };
        health.report(ServingStatus::NotServing).await;
        health
            .reporter
            .set_service_status("liveness", ServingStatus::Serving)
            .await;
        health
    }

    /// What the gRPC health service reads.
    pub(crate) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    /// What `/readyz` reads.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Follows the store for ever: ready as soon as it is there for the first time, and from then
    /// on a change counts when [`PROBES`] looks in a row see it. Cancel-safe.
    pub(crate) async fn follow(&self, mut store: watch::Receiver<LinkState>) {
        loop {
            let seen = store.borrow_and_update().clone();
            let LinkState::Down(reason) = seen else {
                break;
            };
            self.set(Readiness::NotReady(reason)).await;
            if store.changed().await.is_err() {
                return;
            }
        }
        self.set(Readiness::Ready).await;
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
                LinkState::Up if ready => self.set(Readiness::Ready).await,
                LinkState::Down(reason) if !ready => self.set(Readiness::NotReady(reason)).await,
                // Not for long enough yet.
                LinkState::Up | LinkState::Down(_) => {}
            }
        }
    }

    /// From now on nothing is served.
    pub(crate) async fn shut_down(&self) {
        self.readiness
            .send_replace(Readiness::NotReady("shutting down".to_owned()));
        self.report(ServingStatus::NotServing).await;
    }

    async fn set(&self, readiness: Readiness) {
        if *self.readiness.borrow() == readiness {
            return;
        }
        let status = match &readiness {
            Readiness::Ready => {
                tracing::info!("ready");
                ServingStatus::Serving
            }
            Readiness::NotReady(reason) => {
                tracing::warn!(reason, "not ready");
                ServingStatus::NotServing
            }
        };
        self.readiness.send_replace(readiness);
        self.report(status).await;
    }

    async fn report(&self, status: ServingStatus) {
        for name in ["", service::NAME] {
            self.reporter.set_service_status(name, status).await;
        }
    }
}

//! What the service says about itself: `grpc.health.v1` and `/readyz`, both from one state.
//!
//! The services "" and `dyndata.v1.DynData` follow the store: NOT_SERVING until it is there, while
//! it is not (and has not been for two looks in a row), and from the start of a shutdown. The
//! service `liveness` is SERVING for as long as the process answers.

use std::time::Duration;

use tokio::sync::watch;

use crate::{
    error::Error,
    proto::health::{
        HealthCheckRequest, HealthCheckResponse, HealthListResponse,
        health_check_response::ServingStatus,
    },
    service,
    store::LinkState,
};

/// How often the store is looked at, and how many looks in a row make a change, so that a link
/// that is replaced at once does not move a whole fleet's traffic.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
const PROBES: u32 = 2;
/// The service that is SERVING whatever the store does.
const LIVENESS: &str = "liveness";

/// Whether calls can be served; if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    NotReady(String),
}

/// Keeps the health service and `/readyz` in step with the store.
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

    /// What the gRPC health service answers.
    pub(crate) fn service(&self) -> HealthService {
        HealthService {
            readiness: self.readiness.subscribe(),
        }
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
                // Not for long enough yet.
                LinkState::Up | LinkState::Down(_) => {}
            }
        }
    }

    /// From now on nothing is served.
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

/// The answers of `grpc.health.v1.Health`. Clones give the same answers.
#[derive(Debug, Clone)]
pub(crate) struct HealthService {
    readiness: watch::Receiver<Readiness>,
}

impl HealthService {
    /// The status of one service; an error if the server has no such service.
    pub(crate) fn check(&self, request: &HealthCheckRequest) -> Result<HealthCheckResponse, Error> {
        match self.status(&request.service) {
            ServingStatus::ServiceUnknown => Err(Error::ServiceUnknown),
            status => Ok(response(status)),
        }
    }

    /// The status of every service.
    pub(crate) fn list(&self) -> HealthListResponse {
        let statuses = ["", service::NAME, LIVENESS]
            .map(|name| (name.to_owned(), response(self.status(name))));
        HealthListResponse {
            statuses: statuses.into(),
        }
    }

    /// The statuses of one service from now on.
    pub(crate) fn watch(self, request: HealthCheckRequest) -> HealthWatch {
        HealthWatch {
            health: self,
            service: request.service,
            told: None,
        }
    }

    fn status(&self, service: &str) -> ServingStatus {
        match service {
            "" | service::NAME => match *self.readiness.borrow() {
                Readiness::Ready => ServingStatus::Serving,
                Readiness::NotReady(_) => ServingStatus::NotServing,
            },
            LIVENESS => ServingStatus::Serving,
            _ => ServingStatus::ServiceUnknown,
        }
    }
}

/// The statuses of one service: the present one, then each change. A service that the server does
/// not have is SERVICE_UNKNOWN, for ever.
#[derive(Debug)]
pub(crate) struct HealthWatch {
    health: HealthService,
    service: String,
    told: Option<ServingStatus>,
}

impl HealthWatch {
    /// The next status; none when the server is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<HealthCheckResponse> {
        loop {
            self.health.readiness.mark_unchanged();
            let status = self.health.status(&self.service);
            if self.told.replace(status) != Some(status) {
                return Some(response(status));
            }
            self.health.readiness.changed().await.ok()?;
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_tells_each_change_of_status_once() {
        let health = Health::new();
        let watch = |service: &str| {
            health.service().watch(HealthCheckRequest {
                service: service.to_owned(),
            })
        };
        let mut main = watch("");
        let mut unknown = watch("other");
        let told = async |watch: &mut HealthWatch| {
            tokio::select! {
                biased;
                status = watch.next() => status.map(|response| response.status()),
                () = std::future::ready(()) => None,
            }
        };
        assert_eq!(told(&mut main).await, Some(ServingStatus::NotServing));
        // Another reason for the same status is no change.
        health.set(Readiness::NotReady("another reason".to_owned()));
        assert_eq!(told(&mut main).await, None);
        health.set(Readiness::Ready);
        assert_eq!(told(&mut main).await, Some(ServingStatus::Serving));
        health.shut_down();
        assert_eq!(told(&mut main).await, Some(ServingStatus::NotServing));
        assert_eq!(told(&mut main).await, None);
        assert_eq!(
            told(&mut unknown).await,
            Some(ServingStatus::ServiceUnknown)
        );
        assert_eq!(told(&mut unknown).await, None);
    }
}

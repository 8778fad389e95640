//! The calls of `grpc.health.v1.Health`.
//!
//! The services "" and `dyndata.v1.DynData` are SERVING while [`Readiness`] says that calls can be
//! served. The service `liveness` is SERVING for as long as the process answers.

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;

use super::message::{ReplyEncoder, decode};
use crate::{
    error::Error,
    health::Readiness,
    proto::health::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
    },
    rpc::DYN_DATA,
};

/// The service that is SERVING whatever the store does.
const LIVENESS: &str = "liveness";

/// Answers health checks. Clones give the same answers.
#[derive(Debug, Clone)]
pub(crate) struct HealthService {
    readiness: watch::Receiver<Readiness>,
}

impl HealthService {
    pub(crate) fn new(readiness: watch::Receiver<Readiness>) -> Self {
        Self { readiness }
    }

    /// Check: the status of one service, or an error if the server has no such service.
    pub(crate) fn check(&self, message: Bytes, encoder: &ReplyEncoder) -> Result<Bytes, Error> {
        let HealthCheckRequest { service } = decode(message)?;
        match self.status(&service) {
            ServingStatus::ServiceUnknown => Err(Error::ServiceUnknown),
            status => encoder.encode(&response(status)),
        }
    }

    /// List: the status of every service.
    pub(crate) fn list(&self, message: Bytes, encoder: &ReplyEncoder) -> Result<Bytes, Error> {
        let HealthListRequest {} = decode(message)?;
        let statuses =
            ["", DYN_DATA, LIVENESS].map(|name| (name.to_owned(), response(self.status(name))));
        encoder.encode(&HealthListResponse {
            statuses: statuses.into(),
        })
    }

    /// Watch: the status of one service now, and each change of it.
    pub(crate) fn watch(
        self,
        message: Bytes,
        encoder: ReplyEncoder,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + 'static, Error> {
        let statuses = StatusWatch::new(self, decode(message)?);
        Ok(stream::unfold(
            (statuses, encoder),
            |(mut statuses, encoder)| async {
                let status = statuses.next().await?;
                Some((encoder.encode(&response(status)), (statuses, encoder)))
            },
        ))
    }

    fn status(&self, service: &str) -> ServingStatus {
        match service {
            "" | DYN_DATA => match *self.readiness.borrow() {
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
struct StatusWatch {
    health: HealthService,
    service: String,
    /// The last status that the caller was told.
    told: Option<ServingStatus>,
}

impl StatusWatch {
    fn new(health: HealthService, request: HealthCheckRequest) -> Self {
        Self {
            health,
            service: request.service,
            told: None,
        }
    }

    /// The next status, or `None` when the server is gone. Cancel-safe.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            self.health.readiness.mark_unchanged();
            let status = self.health.status(&self.service);
            if self.told.replace(status) != Some(status) {
                return Some(status);
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
        let not_ready = |reason: &str| Readiness::NotReady(reason.to_owned());
        let readiness = watch::Sender::new(not_ready("starting"));
        let watch = |service: &str| {
            let health = HealthService::new(readiness.subscribe());
            let service = service.to_owned();
            StatusWatch::new(health, HealthCheckRequest { service })
        };
        let mut main = watch("");
        let mut unknown = watch("other");
        let told = async |watch: &mut StatusWatch| {
            tokio::select! {
                biased;
                status = watch.next() => status,
                () = std::future::ready(()) => None,
            }
        };
        assert_eq!(told(&mut main).await, Some(ServingStatus::NotServing));
        // Another reason for the same status is no change.
        readiness.send_replace(not_ready("another reason"));
        assert_eq!(told(&mut main).await, None);
        readiness.send_replace(Readiness::Ready);
        assert_eq!(told(&mut main).await, Some(ServingStatus::Serving));
        readiness.send_replace(not_ready("shutting down"));
        assert_eq!(told(&mut main).await, Some(ServingStatus::NotServing));
        assert_eq!(told(&mut main).await, None);
        assert_eq!(
            told(&mut unknown).await,
            Some(ServingStatus::ServiceUnknown)
        );
        assert_eq!(told(&mut unknown).await, None);
    }
}

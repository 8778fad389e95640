//! The calls of `grpc.health.v1.Health`: from a request's bytes to what [`crate::health`] answers,
//! and from its answer to bytes.

use bytes::Bytes;
use futures_util::stream;

use crate::{
    error::Error,
    health::HealthService,
    proto::health::HealthListRequest,
    server::call::{
        reply_stream::{MessageStream, StreamLimits},
        unary::{self, ReplyLimits},
    },
};

/// A method of `grpc.health.v1.Health`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum HealthRpc {
    Check,
    List,
    Watch,
}

impl HealthRpc {
    /// The method behind a request path.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
        match path.strip_prefix("/grpc.health.v1.Health/")? {
            "Check" => Some(Self::Check),
            "List" => Some(Self::List),
            "Watch" => Some(Self::Watch),
            _ => None,
        }
    }
}

/// One status.
pub(crate) fn check(
    health: HealthService,
    message: Bytes,
    limits: ReplyLimits,
) -> Result<Bytes, Error> {
    let request = unary::decode(message)?;
    limits.reply(&health.check(&request)?)
}

/// All statuses.
pub(crate) fn list(
    health: HealthService,
    message: Bytes,
    limits: ReplyLimits,
) -> Result<Bytes, Error> {
    let HealthListRequest {} = unary::decode(message)?;
    limits.reply(&health.list())
}

/// One status, and its changes.
pub(crate) fn watch(
    health: HealthService,
    message: Bytes,
    limits: ReplyLimits,
    stream_limits: StreamLimits,
) -> Result<MessageStream, Error> {
    let request = unary::decode(message)?;
    let statuses = stream::unfold(
        (health.watch(request), limits),
        |(mut watch, limits)| async {
            let status = watch.next().await?;
            Some((limits.reply(&status), (watch, limits)))
        },
    );
    Ok(MessageStream::new(statuses, stream_limits))
}

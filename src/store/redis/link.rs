//! One supervised connection to Redis, shared by all calls of one worker.
//!
//! Concurrent commands pipeline by themselves on a multiplexed connection; a pool with a checkout
//! per call costs several times as much CPU. A supervisor task owns the connection: it connects,
//! checks with PING, drives it until it breaks, and connects again. While there is none, commands
//! fail at once. This is also the seam for other ways to reach Redis.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, Pipeline, RedisError, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::{task::AbortHandle, time::timeout};

use super::connect::{ConnectError, Connector};
use crate::store::{LinkState, StoreError, StoreStatus};

/// How long one attempt to connect may take, name resolution, TLS and PING included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause before the first attempt to connect again, and the longest one.
const BACKOFF: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(1);
/// Commands that may wait for the connection's task; beyond it callers wait, within the timeout.
const QUEUE: usize = 1024;

/// A handle to the connection. Clones share it; the last one to go ends the supervisor.
#[derive(Clone)]
pub(super) struct Link {
    shared: Arc<Shared>,
    timeout: Duration,
    _supervisor: Arc<AbortOnDrop>,
}

#[derive(Default)]
struct Shared {
    /// Never contended: a link is used on one thread only.
    connection: Mutex<Option<MultiplexedConnection>>,
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Starts the supervisor on the current runtime. It reports to `status` as link `number`.
    pub(super) fn start(
        connector: Connector,
        timeout: Duration,
        number: usize,
        status: StoreStatus,
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let supervisor = Supervisor {
            connector,
            shared: Arc::clone(&shared),
            number,
            status,
        };
        let task = tokio::spawn(supervisor.run());
        Self {
            shared,
            timeout,
            _supervisor: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// Runs one command. An error reply is an error.
    pub(super) async fn command(&self, command: &Cmd) -> Result<Value, StoreError> {
        let mut connection = self.connection()?;
        let reply = timeout(self.timeout, connection.send_packed_command(command)).await;
        match reply {
            Err(_) => Err(StoreError::Timeout),
            Ok(Err(error)) => Err(classify(&error)),
            Ok(Ok(Value::ServerError(error))) => Err(classify(&error.into())),
            Ok(Ok(value)) => Ok(value),
        }
    }

    /// Runs several commands in one go, one reply for each; a reply may be an error.
    pub(super) async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut connection = self.connection()?;
        let replies = connection.req_packed_commands(pipeline, 0, pipeline.len());
        match timeout(self.timeout, replies).await {
            Err(_) => Err(StoreError::Timeout),
            Ok(Err(error)) => Err(classify(&error)),
            Ok(Ok(values)) => Ok(values),
        }
    }

    fn connection(&self) -> Result<MultiplexedConnection, StoreError> {
        self.shared
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .ok_or(StoreError::Unavailable)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

struct Supervisor {
    connector: Connector,
    shared: Arc<Shared>,
    number: usize,
    status: StoreStatus,
}

impl Supervisor {
    async fn run(self) {
        let mut pause = *BACKOFF.start();
        let mut last_reason = String::new();
        loop {
            match timeout(CONNECT_TIMEOUT, self.connect()).await {
                Ok(Ok((connection, driver))) => {
                    tracing::info!(worker = self.number, "redis connected");
                    self.set(Some(connection));
                    self.status.set(self.number, LinkState::Up);
                    pause = *BACKOFF.start();
                    last_reason.clear();
                    // Ends when the connection does.
                    driver.await;
                    self.set(None);
                    self.down("connection closed", &mut last_reason);
                }
                Ok(Err(error)) => self.down(&error.to_string(), &mut last_reason),
                Err(_) => self.down("connecting timed out", &mut last_reason),
            }
            // Between half the pause and all of it, so that workers and replicas spread.
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(*BACKOFF.end());
        }
    }

    async fn connect(
        &self,
    ) -> Result<
        (
            MultiplexedConnection,
            std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
        ),
        ConnectError,
    > {
        let (settings, stream) = self.connector.connect().await?;
        let config = AsyncConnectionConfig::new()
            // The timeout of an operation is enforced above, waiting for a place included.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let (mut connection, driver) =
            MultiplexedConnection::new_with_config(&settings, stream, config).await?;
        let mut driver: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(driver);
        let mut ping = Cmd::new();
        ping.arg("PING");
        let ponged = async { connection.send_packed_command(&ping).await?.extract_error() };
        tokio::select! {
            pong = pin!(ponged) => pong?,
            () = &mut driver => return Err(ConnectError::Closed),
        };
        Ok((connection, driver))
    }

    fn set(&self, connection: Option<MultiplexedConnection>) {
        *self
            .shared
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Logs a reason once, not at every attempt of a long outage.
    fn down(&self, reason: &str, last_reason: &mut String) {
        if last_reason != reason {
            tracing::warn!(worker = self.number, reason, "redis not connected");
            reason.clone_into(last_reason);
        }
        self.status
            .set(self.number, LinkState::Down(format!("redis: {reason}")));
    }
}

/// What an error of the redis crate means for a call. Redis's own text goes to the log only.
pub(super) fn classify(error: &RedisError) -> StoreError {
    let class = match error.code() {
        Some("LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS") => {
            StoreError::Busy
        }
        Some("READONLY") => StoreError::ReadOnly,
        Some("OOM") => StoreError::OutOfMemory,
        Some("MISCONF") => StoreError::Misconfigured,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => StoreError::Auth,
        Some("WRONGTYPE") => StoreError::WrongType,
        Some("ERR")
            if error
                .detail()
                .is_some_and(|d| d.contains("max number of clients")) =>
        {
            StoreError::Busy
        }
        Some(_) => StoreError::Unexpected,
        None => match error.kind() {
            ErrorKind::AuthenticationFailed => StoreError::Auth,
            // What remains is a connection that broke, or that talks something else than RESP.
            _ => StoreError::Unavailable,
        },
    };
    match class {
        // A caller's doing, and the supervisor's business.
        StoreError::WrongType | StoreError::Unavailable => {
            tracing::debug!(%error, "redis error");
        }
        _ => tracing::warn!(%error, "redis error"),
    }
    class
}

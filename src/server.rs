//! The server: bind, run, drain.
//!
//! [`Server::bind`] opens the listeners. From then on their addresses are known, and connections
//! wait in the queue of the kernel. [`Bound::run`] starts the workers and serves until its shutdown
//! future ends. A worker is a thread with its own event loop. The thread that calls `run` accepts
//! connections, serves the admin endpoints and keeps health.
//!
//! A shutdown has three steps:
//!
//! 1. Health says NOT_SERVING.
//! 2. For the shutdown delay, everything is still served.
//! 3. The drain: the listener closes, every connection gets a GOAWAY, and running calls may finish
//!    until the drain timeout.

mod announce;
pub(crate) mod call;
mod connection;
pub(crate) mod listen;
pub(crate) mod liveness;
mod security;
pub(crate) mod settings;
pub(crate) mod shutdown;
mod stores;
mod watches;
mod worker;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use self::{
    announce::announce,
    call::shared::CallConfig,
    connection::ConnectionConfig,
    listen::{
        accept::accept_into,
        settings::{AdminListen, ListenAddr},
        socket::{self, Listener},
    },
    liveness::Liveness,
    security::Security,
    shutdown::ShutdownDelay,
    stores::{Stores, connecting},
    worker::{Worker, WorkerConfig},
};
use crate::{
    admin::{Admin, StatusPage},
    config::Config,
    health::Health,
    metrics::{Metrics, Reading, Recorder, process},
    reload::Reload,
    service::health::HealthService,
    store::LinkState,
    systemd::Inherited,
    trace::Tracing,
    watch::{WatchHub, WatchTask},
};

/// How long the first attempt to connect to the store may delay accepting.
const FIRST_CONNECT: Duration = Duration::from_secs(1);
/// How long after the drain timeout a worker may still take to end.
const JOIN_GRACE: Duration = Duration::from_secs(1);

/// Why the server cannot run.
#[derive(Debug, Error)]
pub enum ServerError {
    /// An address could not be bound.
    #[error("cannot listen on {addr}: {source}")]
    Bind {
        /// The address, as in the settings.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates or the access file are not valid any more. They were when the settings were
    /// checked.
    #[error("{0}")]
    Security(String),
    /// The thread of a worker could not be started.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
}

/// The entry point for running a server. The [crate] documentation has an example.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Opens the listeners. Connections queue from here on, and are served by [`Bound::run`].
    pub async fn bind(config: Config) -> Result<Bound, ServerError> {
        let listener = Listener::bind(&config.listen.grpc).await;
        Self::with_listener(config, listener)
    }

    /// Like [`Server::bind`], with a gRPC listener that is open already. The settings have to name its
    /// address ([`ServeArgs::listen_at`](crate::config::ServeArgs::listen_at)).
    pub async fn adopt(config: Config, socket: Inherited) -> Result<Bound, ServerError> {
        let listener = Listener::adopt(socket, &config.listen.grpc);
        Self::with_listener(config, listener)
    }

    fn with_listener(config: Config, listener: io::Result<Listener>) -> Result<Bound, ServerError> {
        let listener = listener.map_err(|source| ServerError::Bind {
            addr: config.listen.grpc.to_string(),
            source,
        })?;
        let admin = match config.listen.admin {
            AdminListen::Off => None,
            AdminListen::Tcp(addr) => {
                Some(socket::bind_tcp(addr).map_err(|source| ServerError::Bind {
                    addr: addr.to_string(),
                    source,
                })?)
            }
        };
        let security = Security::load(config.listen.tls.clone(), config.access.file.clone())
            .map_err(|error| ServerError::Security(error.to_string()))?;
        let liveness = Liveness::for_workers(config.server.workers);
        let shutdown_delay = ShutdownDelay::new(config.server.shutdown_delay);
        Ok(Bound {
            config,
            listener,
            admin,
            security,
            reload: Reload::default(),
            liveness,
            shutdown_delay,
        })
    }
}

/// A server with its listeners open.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    listener: Listener,
    admin: Option<TcpListener>,
    security: Security,
    reload: Reload,
    liveness: Liveness,
    shutdown_delay: ShutdownDelay,
}

impl Bound {
    /// Tells whether the event loops turn, once the server runs.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Asks the running server to read certificates and the access file again.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Ends the shutdown delay of the running server early.
    pub fn shutdown_delay(&self) -> ShutdownDelay {
        self.shutdown_delay.clone()
    }

    /// The address of the gRPC listener. If the setting has port 0, the system has chosen the port.
    pub fn local_addr(&self) -> ListenAddr {
        self.listener.local_addr()
    }

    /// The address of the admin listener, if there is one.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
            .as_ref()
            .and_then(|admin| admin.local_addr().ok())
    }

    /// Serves until `shutdown` ends, and then for the shutdown delay with health NOT_SERVING. Then
    /// drains: running calls may finish until the drain timeout. Dropping the future stops at once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        announce(
            &self.config.store,
            &self.config.listen,
            &self.config.access,
            &self.local_addr(),
            self.admin_addr(),
        );
        let Self {
            config,
            listener,
            admin,
            security,
            reload,
            liveness,
            shutdown_delay,
        } = self;

        // The tasks of this thread. They end with this function.
        let mut background = JoinSet::new();
        let health = Arc::new(Health::new());
        let stores = Stores::open(&config.store, config.server.workers, &mut background);
        let store_status = stores.status().subscribe();
        let following = background.spawn({
            let (health, status) = (Arc::clone(&health), store_status.clone());
            async move { health.follow(status).await }
        });
        let max_reply_bytes = config.requests.max_reply_bytes;
        let (task, watches) = WatchTask::new(config.watches, max_reply_bytes, stores.changes());
        background.spawn(task.run());
        let recorders: Vec<_> = (0..config.server.workers)
            .map(|_| Arc::<Recorder>::default())
            .collect();
        let refused = Arc::<AtomicU64>::default();
        if let Some(admin) = admin {
            let mut readings = stores.readings();
            readings.extend(watches::readings(&watches));
            readings.extend(security.reading());
            readings.extend(process::readings());
            readings.extend(connection_readings(&refused, &liveness));
            let endpoints = Admin {
                liveness: liveness.clone(),
                readiness: health.readiness(),
                metrics: Arc::new(Metrics::new(recorders.clone(), readings)),
                status_page: StatusPage::new(&config.summary()),
            };
            background.spawn(endpoints.serve(admin));
        }

        let tracing = Tracing::from_environment();
        let (drain, draining) = watch::channel(());
        let workers = Workers {
            config: &config,
            security: &security,
            stores: &stores,
            health: &health,
            watches: &watches,
            liveness: &liveness,
            tracing: tracing.as_ref(),
            draining,
        };
        let workers = workers.start(recorders)?;
        security.watch(reload, &mut background);

        let leave = async {
            shutdown.await;
            // Otherwise health would follow the store back to SERVING.
            following.abort();
            health.shut_down();
            shutdown_delay.wait().await;
        };
        tokio::select! {
            () = leave => {}
            never = async {
                first_connect(store_status).await;
                accept_into(&listener, &workers, &liveness, &config.server, &refused).await
            } => match never {},
        }

        tracing::info!(timeout = %humantime::format_duration(config.server.drain_timeout), "draining");
        liveness.drain();
        drop(listener);
        drop(drain);
        join(workers, config.server.drain_timeout + JOIN_GRACE).await;
        if let Some(tracing) = tracing {
            tracing.shut_down().await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Starts the workers with everything that they share.
struct Workers<'a> {
    config: &'a Config,
    security: &'a Security,
    stores: &'a Stores,
    health: &'a Health,
    watches: &'a WatchHub,
    liveness: &'a Liveness,
    tracing: Option<&'a Tracing>,
    /// Closes when the drain begins.
    draining: watch::Receiver<()>,
}

impl Workers<'_> {
    /// Starts one worker for each recorder.
    fn start(&self, recorders: Vec<Arc<Recorder>>) -> Result<Vec<Worker>, ServerError> {
        let workers = recorders.into_iter().enumerate();
        workers
            .map(|(number, recorder)| Worker::start(self.worker(number, recorder)))
            .collect::<Result<_, _>>()
            .map_err(ServerError::Worker)
    }

    fn worker(&self, number: usize, recorder: Arc<Recorder>) -> WorkerConfig {
        let Config {
            access,
            requests,
            server,
            ..
        } = self.config;
        WorkerConfig {
            number,
            calls: CallConfig {
                store: self.stores.for_worker(number),
                limits: *requests,
                access: self.security.access.as_ref().map(watch::Sender::subscribe),
                reflection: access.reflection,
                max_deadline: server.max_deadline,
                max_in_flight: server.max_in_flight,
                recorder,
                tracing: self.tracing.cloned(),
                health: HealthService::new(self.health.readiness()),
                watches: self.watches.clone(),
            },
            connections: ConnectionConfig {
                tls: self.security.tls.as_ref().map(watch::Sender::subscribe),
                limits: server.connection,
                draining: self.draining.clone(),
                drain_timeout: server.drain_timeout,
            },
            liveness: self.liveness.clone(),
        }
    }
}

/// The metrics of the listener and of the event loops.
fn connection_readings(refused: &Arc<AtomicU64>, liveness: &Liveness) -> [Reading; 2] {
    let (refused, liveness) = (Arc::clone(refused), liveness.clone());
    [
        Reading::counter(
            "dyndata_connections_refused",
            "Connections closed at once because of max-connections or max-connections-per-peer",
            move || refused.load(Ordering::Relaxed),
        ),
        Reading::gauge(
            "dyndata_workers_moving",
            "Workers whose event loop is not stuck",
            move || i64::try_from(liveness.moving()).unwrap_or(i64::MAX),
        ),
    ]
}

/// Waits until the first attempt to connect to the store has succeeded or failed. Calls that come
/// before that would fail, so their connections wait in the queue of the listener.
async fn first_connect(mut store: watch::Receiver<LinkState>) {
    let connected = store.wait_for(|state| *state != connecting());
    _ = tokio::time::timeout(FIRST_CONNECT, connected).await;
}

/// Waits for all workers to end, for at most `timeout` together.
async fn join(workers: Vec<Worker>, timeout: Duration) {
    let deadline = tokio::time::Instant::now() + timeout;
    for worker in workers {
        let ended = tokio::time::timeout_at(deadline, worker.ended()).await;
        if ended.is_err() {
            tracing::error!("a worker did not end in time; leaving it behind");
        }
    }
}

//! The server: parse without binding, bind, say where, run, drain.
//!
//! [`Server::bind`] opens the listeners, so that the addresses are known and connections queue;
//! [`Bound::run`] starts the workers and serves until its shutdown future ends. Workers are
//! threads with an event loop each; the thread that calls `run` accepts sockets, serves the admin
//! endpoints and keeps health.
//!
//! Shutdown: NOT_SERVING at once; serve on for the shutdown delay; then the drain: stop accepting,
//! GOAWAY on every connection, finish what is running, for at most the drain timeout.

pub(crate) mod call;
mod connection;
pub(crate) mod listen;
pub(crate) mod liveness;
mod security;
pub(crate) mod shutdown;
mod stores;
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
    call::shared::CallConfig,
    listen::socket::{self, Listener, Peers, Socket},
    liveness::Liveness,
    security::Security,
    shutdown::ShutdownDelay,
    stores::{Stores, connecting},
    worker::{ConnectionConfig, Worker, WorkerConfig},
};
use crate::{
    admin::{Admin, StatusPage},
    config::{AdminListen, Config, LimitsConfig, ListenAddr, Reflection, StoreConfig},
    health::Health,
    metrics::{Metrics, Reading, Recorder, process},
    reload::Reload,
    service::health::HealthService,
    store::LinkState,
    systemd::Inherited,
    telemetry::OncePerSecond,
    trace::Tracing,
};

/// How long the first attempt to connect to the store may keep clients waiting.
const FIRST_CONNECT: Duration = Duration::from_secs(1);
/// The pause before a socket is offered again to workers that had no room for it.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How much longer than the drain timeout a worker may take to end.
const JOIN_GRACE: Duration = Duration::from_secs(1);

/// Why the server does not run.
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
    /// Certificates or the access file, which were good when they were checked, are not any more.
    #[error("{0}")]
    Security(String),
    /// A thread, or what it needs, could not be started.
    #[error("cannot start a worker: {0}")]
    Worker(#[source] io::Error),
}

/// The entry to a server of one's own; see the [crate] documentation for an example.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Opens the listeners. Connections queue from here on, and are served by [`Bound::run`].
    pub async fn bind(config: Config) -> Result<Bound, ServerError> {
        let listener = Listener::bind(&config.listen).await;
        Self::with_listener(config, listener)
    }

    /// As [`Server::bind`], on a gRPC listener that is open already and that the settings name
    /// ([`ServeArgs::listen_at`](crate::config::ServeArgs::listen_at)).
    pub async fn adopt(config: Config, socket: Inherited) -> Result<Bound, ServerError> {
        let listener = Listener::adopt(socket, &config.listen);
        Self::with_listener(config, listener)
    }

    fn with_listener(config: Config, listener: io::Result<Listener>) -> Result<Bound, ServerError> {
        let listener = listener.map_err(|source| ServerError::Bind {
            addr: config.listen.to_string(),
            source,
        })?;
        let admin = match config.admin_listen {
            AdminListen::Off => None,
            AdminListen::Tcp(addr) => {
                Some(socket::bind_tcp(addr).map_err(|source| ServerError::Bind {
                    addr: addr.to_string(),
                    source,
                })?)
            }
        };
        let security = Security::load(&config.security)?;
        let liveness = Liveness::of_workers(config.workers);
        let shutdown_delay = ShutdownDelay::new(config.shutdown_delay);
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
    /// Whether the event loops turn, once the server runs.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// Asks for certificates and the access file to be read again; works while the server runs.
    pub fn reload(&self) -> Reload {
        self.reload.clone()
    }

    /// Ends the shutdown delay early; works while the server runs.
    pub fn shutdown_delay(&self) -> ShutdownDelay {
        self.shutdown_delay.clone()
    }

    /// Where gRPC is served, with the port that the system chose if the setting says 0.
    pub fn local_addr(&self) -> ListenAddr {
        self.listener.local_addr()
    }

    /// Where the admin endpoints are served, if they are.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
            .as_ref()
            .and_then(|admin| admin.local_addr().ok())
    }

    /// Serves until `shutdown` ends, then for the shutdown delay with health NOT_SERVING, and then
    /// until what is running has finished or the drain timeout has passed. Dropping it stops at
    /// once.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        self.announce();
        let Self {
            config,
            listener,
            admin,
            security,
            reload,
            liveness,
            shutdown_delay,
        } = self;

        let health = Arc::new(Health::new());
        // Tasks of this thread; they end with this function.
        let mut background = JoinSet::new();
        let stores = Stores::open(&config, &mut background);
        let recorders: Vec<_> = (0..config.workers)
            .map(|_| Arc::<Recorder>::default())
            .collect();
        let refused = Arc::<AtomicU64>::default();
        let mut readings = stores.readings();
        readings.extend(security.reading());
        readings.extend(process::readings());
        readings.push(Reading::counter(
            "dyndata_connections_refused",
            "Connections closed at once because of max-connections or max-connections-per-peer",
            {
                let refused = Arc::clone(&refused);
                move || refused.load(Ordering::Relaxed)
            },
        ));
        readings.push(Reading::gauge(
            "dyndata_workers_moving",
            "Workers whose event loop turns",
            {
                let liveness = liveness.clone();
                move || i64::try_from(liveness.moving()).unwrap_or(i64::MAX)
            },
        ));
        let metrics = Metrics::new(recorders.clone(), readings);

        let status = stores.status().subscribe();
        let following = background.spawn({
            let health = Arc::clone(&health);
            async move { health.follow(status).await }
        });
        if let Some(admin) = admin {
            let endpoints = Admin {
                liveness: liveness.clone(),
                readiness: health.readiness(),
                metrics: Arc::new(metrics),
                status_page: StatusPage::new(&config.summary()),
            };
            background.spawn(endpoints.serve(admin));
        }

        let tracing = Tracing::from_environment();
        let (drain, draining) = watch::channel(());
        let mut workers = Vec::with_capacity(config.workers);
        for (number, recorder) in recorders.into_iter().enumerate() {
            let worker = WorkerConfig {
                number,
                calls: CallConfig {
                    store: stores.for_worker(number),
                    limits: config.limits.requests,
                    access: security.access.as_ref().map(watch::Sender::subscribe),
                    reflection: config.security.reflection,
                    max_deadline: config.limits.max_deadline,
                    max_in_flight: config.limits.max_in_flight,
                    recorder,
                    tracing: tracing.clone(),
                    health: HealthService::new(health.readiness()),
                },
                connections: ConnectionConfig {
                    tls: security.tls.as_ref().map(watch::Sender::subscribe),
                    limits: config.limits.connection,
                },
                draining: draining.clone(),
                drain_timeout: config.drain_timeout,
                liveness: liveness.clone(),
            };
            workers.push(Worker::start(worker).map_err(ServerError::Worker)?);
        }
        security.watch(&config.security, reload, &mut background);

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
                first_connect(stores.status().subscribe()).await;
                accept_into(&listener, &workers, &liveness, &config.limits, &refused).await
            } => match never {},
        }

        tracing::info!(timeout = %humantime::format_duration(config.drain_timeout), "draining");
        liveness.drain();
        drop(listener);
        drop(drain);
        let deadline = tokio::time::Instant::now() + config.drain_timeout + JOIN_GRACE;
        for worker in workers {
            if tokio::time::timeout_at(deadline, worker.ended())
                .await
                .is_err()
            {
                tracing::error!("a worker did not end in time; leaving it behind");
            }
        }
        if let Some(tracing) = tracing {
            tracing.shut_down().await;
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// The lines that a person who starts the server needs.
    fn announce(&self) {
        let addr = self.local_addr();
        match &self.config.store {
            StoreConfig::Memory { max_entries } => {
                tracing::info!(store = "embedded", max_entries, "store");
                tracing::warn!(
                    "no REDIS_URL: the data is this process's alone and is lost on exit"
                );
            }
            StoreConfig::Redis(redis) => {
                tracing::info!(store = "redis", mode = %redis.mode, url = %redis.urls, "store");
            }
        }
        if self.config.security.insecure {
            tracing::warn!("--insecure: callers may be unknown and unencrypted");
        }
        if let Some(admin) = self.admin_addr() {
            tracing::info!("serving /metrics, /livez and /readyz on http://{admin}");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            "serving gRPC on {addr}"
        );
        if let Some(target) = self.plain_target(&addr) {
            tracing::info!(
                r#"try: grpcurl -plaintext -d '{{"id":"42","int_value":100}}' {target} dyndata.v1.DynData/Mark"#
            );
        }
    }

    /// What grpcurl calls, if a call without TLS, without credentials and through reflection
    /// works. With TLS or an access file, the command would need names and files that only the
    /// caller knows.
    fn plain_target(&self, addr: &ListenAddr) -> Option<String> {
        let security = &self.config.security;
        if security.access_file.is_some() || security.reflection != Reflection::Open {
            return None;
        }
        match addr {
            ListenAddr::Tcp(_) if security.tls.is_some() => None,
            ListenAddr::Tcp(addr) => Some(addr.to_string()),
            // Other characters mean something to a shell or in a URL.
            ListenAddr::Unix(path) => {
                let path = std::path::absolute(path)
                    .ok()?
                    .into_os_string()
                    .into_string()
                    .ok()?;
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
                path.chars().all(is_plain).then(|| format!("unix://{path}"))
            }
        }
    }
}

/// Waits until the store has been connected to, or not: calls that come meanwhile would fail, and
/// can wait as well.
async fn first_connect(mut store: watch::Receiver<LinkState>) {
    _ = tokio::time::timeout(
        FIRST_CONNECT,
        store.wait_for(|state| *state != connecting()),
    )
    .await;
}

/// Hands sockets to workers, for ever.
async fn accept_into(
    listener: &Listener,
    workers: &[Worker],
    liveness: &Liveness,
    limits: &LimitsConfig,
    refused: &AtomicU64,
) -> std::convert::Infallible {
    static LOG: OncePerSecond = OncePerSecond::new();
    let peers = Peers::new(limits.max_connections_per_peer);
    loop {
        let socket = socket::retry(|| listener.accept(&peers)).await;
        let open: usize = workers.iter().map(Worker::connections).sum();
        let socket = match socket {
            Some(socket) if open < limits.max_connections => socket,
            // Closed at once, so that a client can try elsewhere, instead of left in the queue.
            socket => {
                refused.fetch_add(1, Ordering::Relaxed);
                if LOG.take() {
                    let limit = match socket {
                        Some(_) => "max-connections",
                        None => "max-connections-per-peer",
                    };
                    tracing::warn!(open, limit, "connections refused");
                }
                continue;
            }
        };
        hand_out(socket, workers, liveness).await;
    }
}

/// Gives a socket to the worker with the fewest connections, so that no two clients share an event
/// loop while another is idle; to one that stands still only if there is no other.
async fn hand_out(mut socket: Socket, workers: &[Worker], liveness: &Liveness) {
    loop {
        let mut by_load: Vec<_> = workers.iter().enumerate().collect();
        by_load.sort_by_key(|(number, worker)| (liveness.is_stuck(*number), worker.connections()));
        for (_, worker) in by_load {
            match worker.hand_over(socket) {
                Ok(()) => return,
                Err(back) => socket = back,
            }
        }
        // All are full: meanwhile the kernel queues.
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

//! dyndata is a gRPC service for *dynamic data*: small values about the current state of things,
//! which expire by themselves when nobody refreshes them. `Mark` writes a value with a time to
//! live, `Get` and `BatchGet` read values, and Redis keeps them.
//!
//! # Map
//!
//! | module | holds |
//! |---|---|
//! | [`proto`] | the wire contract, generated from `proto/dyndata/v1/dyndata.proto` |
//! | `rpc` | the table of RPCs, from which dispatch, access checks, metrics and spans derive |
//! | [`config`] | flags and environment, turned into a checked [`Config`]; a setting itself stands beside what it sets |
//! | `setting` | what the settings of all modules share |
//! | [`model`] | ids, namespaces, values, times to live: what is valid, and to and from proto |
//! | [`error`] | every way a call can fail, and the one mapping to a gRPC status |
//! | `auth` | the access file: who may do what |
//! | `pem` | certificates and keys from files |
//! | `reload` | reloads files while the server runs |
//! | `service` | the handlers of the RPCs: parse, ask the store, reply |
//! | `store` | the values: an embedded store, or Redis |
//! | [`server`] | listeners, workers, connections, calls, shutdown |
//! | `codec` | the messages of the calls that are made most, without copies |
//! | `budget` | the memory that calls may hold |
//! | `health` | whether calls can be served, for `grpc.health.v1` and `/readyz` |
//! | `trace` | spans, and sending them by OTLP |
//! | `metrics` | what is counted and timed, and `/metrics` |
//! | `admin` | the HTTP listener for probes and metrics |
//! | [`event_loop`] | ends event loops without waiting for blocked threads |
//! | [`systemd`] | socket activation, readiness and watchdog |
//! | [`telemetry`] | the log |
//! | `log_limit` | the rate limit of log lines |
//! | `decimal` | decimal numbers in what a peer sends |
//! | [`cli`] | the client commands; the only module that prints |
//! | `fuzzing` | checks of all parsers, for any bytes; only in tests and builds for fuzzing |
//!
//! # One Get
//!
//! ```text
//! accept -> worker -> connection: TLS, HTTP/2
//!        -> dispatch: guard (metrics, span), who calls, the whole message, in-flight limit, deadline
//!        -> service::values::call: codec::requests::Get -> access check -> Id::try_from
//!        -> Store::get -> one GET on the worker's own link to Redis
//!        -> codec::replies: entry to bytes -> the trailers end the guard
//! ```
//!
//! The acceptor hands each socket to the worker with the fewest open connections. A worker is one
//! thread with one event loop and its own link to Redis (in a cluster, one link to each master). A
//! call never leaves its thread.
//!
//! # Invariants
//!
//! - `store` knows nothing of gRPC, `service` knows nothing of Redis, and only `error` makes the
//!   `tonic::Status` of a call.
//! - Nothing on the path of a request crosses threads, takes a contended lock or waits without a
//!   deadline.
//! - Every task has an owner that ends it, and every queue has a bound.
//! - Stores are a closed enum and not a trait object: both are in every binary, and the settings
//!   pick one.
//! - A value is never in the log or in an error. Of an id, only its length is.
//! - No two files import each other. A module may re-export its children, and children import
//!   siblings and lower modules, never their parent.
//!
//! # Use as a library
//!
//! ```
//! use dyndata::{Config, Server};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! // The embedded store on a free port, without the admin listener.
//! let config = Config::parse_from(["--listen", "127.0.0.1:0", "--admin-listen", "off"])?;
//! let bound = Server::bind(config).await?;
//! println!("listening on {}", bound.local_addr());
//!
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let running = tokio::spawn(bound.run(async { _ = stopped.await }));
//! // ... calls are served until:
//! stop.send(()).ok();
//! running.await??;
//! # Ok(())
//! # })
//! # }
//! ```

pub mod cli;
pub mod config;
pub mod error;
pub mod event_loop;
#[cfg(any(test, fuzzing))]
#[path = "../fuzz/oracles/mod.rs"]
pub mod fuzzing;
pub mod model;
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code; its documentation is the proto file's"
)]
pub mod proto;
pub mod server;
pub mod systemd;
pub mod telemetry;

mod admin;
mod auth;
mod budget;
mod codec;
mod decimal;
mod health;
mod log_limit;
mod metrics;
mod pem;
mod reload;
mod rpc;
mod service;
mod setting;
mod store;
mod text;
mod trace;
mod watch;

pub use config::Config;
pub use server::Server;

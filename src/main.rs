//! The `dyndata` binary: parse, start the log, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use dyndata::{
    Config, Server,
    cli::{self, Cli, Command},
    config::ServeArgs,
    event_loop,
    systemd::{self, Inherited},
    telemetry,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Err(error) => cli::usage(&error),
        Ok(Cli { command }) => match command {
            Command::Serve(args) => serve(*args),
            Command::Client(client) => client.run(),
        },
    }
}

fn serve(mut args: ServeArgs) -> ExitCode {
    let inherited = match Inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => return cli::failed(&error),
    };
    match inherited.as_ref().map(Inherited::local_addr).transpose() {
        // The settings check this address like any other.
        Ok(Some(addr)) => args.listen_at(addr),
        Ok(None) => {}
        Err(error) => return cli::failed(&error),
    }
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return cli::bad_config(&error),
    };
    telemetry::init(config.log_format());
    // The usual soft limit of 1,024 open files is below the default of --max-connections.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // This thread accepts connections and serves the admin listener. Each worker has its own thread.
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| event_loop::run(runtime, run(config, inherited)));
    match served {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "cannot serve");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    config: Config,
    inherited: Option<Inherited>,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Each of the two receives every signal from here on.
    let (mut first, mut signals) = (Signals::new()?, Signals::new()?);
    let mut hangup = signal(SignalKind::hangup())?;
    let bound = match inherited {
        Some(socket) => Server::adopt(config, socket).await?,
        None => Server::bind(config).await?,
    };
    systemd::ready();
    let (reload, liveness) = (bound.reload(), bound.liveness());
    let shutdown_delay = bound.shutdown_delay();
    let reloading = async {
        while hangup.recv().await.is_some() {
            reload.now();
        }
        std::future::pending().await
    };
    let shutdown = async {
        first.next().await;
        systemd::stopping();
    };
    // The second signal ends the shutdown delay. One more signal ends the process, even in the drain.
    let impatient = async {
        signals.next().await;
        signals.next().await;
        if shutdown_delay.end() {
            tracing::warn!("second signal: draining without further delay");
            signals.next().await;
        }
    };
    tokio::select! {
        served = bound.run(shutdown) => Ok(served.map(|()| ExitCode::SUCCESS)?),
        never = reloading => never,
        never = systemd::feed_watchdog(liveness) => match never {},
        () = impatient => {
            tracing::warn!("another signal: ending at once");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The signals that ask the process to end: SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

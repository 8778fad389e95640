//! The `dyndata` binary: parse, start the log, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use dyndata::{
    Config, Server,
    cli::{self, Cli, Command},
    config::ServeArgs,
    telemetry,
};
use tokio::signal::unix::{SignalKind, signal};

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

fn serve(args: ServeArgs) -> ExitCode {
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return cli::bad_config(&error),
    };
    telemetry::init(config.log_format());
    // The usual soft limit of 1,024 is below the connections that are allowed by default.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // This thread accepts, probes and scrapes; the workers have their own.
    let served = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(run(config)));
    match served {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "cannot serve");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut again = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let second_signal = async {
        // These streams see the first signal too.
        for _ in 0..2 {
            tokio::select! {
                _ = again.0.recv() => {}
                _ = again.1.recv() => {}
            }
        }
    };
    let mut hangup = signal(SignalKind::hangup())?;
    let bound = Server::bind(config).await?;
    let reload = bound.reload();
    let reloading = async {
        while hangup.recv().await.is_some() {
            reload.now();
        }
        std::future::pending().await
    };
    tokio::select! {
        served = bound.run(shutdown) => Ok(served.map(|()| ExitCode::SUCCESS)?),
        never = reloading => never,
        () = second_signal => {
            tracing::warn!("second signal: ending at once");
            Ok(ExitCode::FAILURE)
        }
    }
}

//! The benchmark: dyndata beside its peers, on one machine, in one run. `README.md` says how to
//! read the results.

mod cell;
mod counts;
mod h2load;
mod http1;
mod keys;
mod load;
mod measure;
mod memory;
mod open_loop;
mod operation;
mod plan;
mod plot;
mod presence;
mod process;
mod ratelimit;
mod redis;
#[path = "../../tests/support/redis_server.rs"]
#[allow(dead_code, reason = "the benchmark needs a part of it")]
mod redis_server;
mod report;
mod results;
mod servers;
mod subjects;
mod targets;
mod watch;
mod workload;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{measure::Bench, results::Row, subjects::Programs};

/// The files with the results, in this directory.
const FULL_RESULTS: &str = "results.jsonl";
const QUICK_RESULTS: &str = "results-quick.jsonl";

// The generator shares the machine with the servers, so it should cost little.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures dyndata beside its peers.
#[derive(Parser)]
struct Args {
    /// Measure only what the targets need, in under three minutes
    #[arg(long)]
    quick: bool,
    /// Number of rounds [default: 5, with --quick 4]
    #[arg(long)]
    rounds: Option<usize>,
    /// Measure only calls whose name starts with this, such as BatchMark; print, and write nothing
    #[arg(long)]
    only: Option<String>,
    /// The service's executable
    #[arg(long, default_value = "target/release/dyndata", global = true)]
    dyndata: PathBuf,
    /// The directory `benches`, for peers and results
    #[arg(long, default_value = "benches", global = true)]
    benches: PathBuf,
    /// The page with the tables of a full run; the plot stands beside it
    #[arg(long, default_value = "docs/performance.md", global = true)]
    page: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Print system calls and heap allocations per Get, and compare nothing
    Counts,
    /// Print the results of the last full run again, and write the page's tables and the plot
    Page,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let executable = std::env::current_exe()?;
    let programs = Programs {
        dyndata: args.dyndata.clone(),
        peers: executable.parent().context("no directory")?.to_owned(),
        benches: args.benches.clone(),
    };
    match args.command {
        Some(Command::Counts) => counts::run(&programs),
        Some(Command::Page) => {
            let text = fs::read_to_string(args.benches.join(FULL_RESULTS))?;
            let rows = results::from_lines(&text)?;
            report::print(&rows);
            write_page(&args, &rows)
        }
        None => compare(&args, programs),
    }
}

fn compare(args: &Args, programs: Programs) -> Result<()> {
    let start = Instant::now();
    let mut steps = plan::steps(args.quick, args.rounds);
    if let Some(only) = &args.only {
        steps.retain(|(_, step)| step.calls(only));
        ensure!(!steps.is_empty(), "no call's name starts with {only}");
    }
    let mut bench = Bench::start(programs, &plan::subjects(args.quick))?;

    let total: Duration = steps.iter().map(|(_, step)| step.estimate()).sum();
    let mut done = Duration::ZERO;
    let count = steps.len();
    let mut failed = None;
    for (index, (round, step)) in steps.into_iter().enumerate() {
        let line = match bench.run(round, step) {
            Ok(line) => line,
            // What has been measured so far is still printed.
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        done += step.estimate();
        // Correct the estimate for the whole run by the time that the steps so far have taken.
        let expected = start
            .elapsed()
            .mul_f64(total.as_secs_f64() / done.as_secs_f64());
        eprintln!(
            "[{:>4}/{count} {}/{}] round {} {line}",
            index + 1,
            clock(start.elapsed()),
            clock(expected),
            round + 1
        );
    }

    let rows = bench.results.rows();
    report::print(&rows);
    if args.only.is_none() {
        write_results(args, &rows)?;
    }
    println!("The run took {}.", clock(start.elapsed()));
    if let Some(error) = failed {
        return Err(error.context("the run ended early"));
    }
    let lost = bench.results.lost.iter();
    let lost = lost.filter(|lost| !lost.subject.is_peer()).count();
    ensure!(lost == 0, "rows of dyndata that were lost: {lost}");
    Ok(())
}

/// Writes the rows of a run, and after a full run also the page.
fn write_results(args: &Args, rows: &[Row]) -> Result<()> {
    let name = if args.quick {
        QUICK_RESULTS
    } else {
        FULL_RESULTS
    };
    let file = args.benches.join(name);
    fs::write(&file, results::to_lines(rows)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("The results are in {}.", file.display());
    if args.quick {
        return Ok(());
    }
    write_page(args, rows)
}

/// Writes the tables of the page, and the plot.
fn write_page(args: &Args, rows: &[Row]) -> Result<()> {
    let page = fs::read_to_string(&args.page)
        .with_context(|| format!("cannot read {}", args.page.display()))?;
    fs::write(&args.page, report::update_page(&page, rows)?)?;
    let plot = args.page.with_extension("svg");
    fs::write(&plot, plot::svg(rows))?;
    println!(
        "The tables are in {}, the plot is {}.",
        args.page.display(),
        plot.display()
    );
    Ok(())
}

/// Raises the limit on open files. Thousands of connections need it here and in the servers,
/// which inherit it.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

//! Runs the cases, several at the same time, and prints the results.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    report::{self, Report},
    starvation::Watch,
    support::dyndata_process::take_logs,
};

/// Number of cases that run at the same time. Cases mostly wait.
const LANES: usize = 4;
/// Number of log lines of the service to show for a failed case.
const LOG_LINES: usize = 25;
/// Number of failures of each case that are repeated at the end of the output.
const SHOWN_AT_THE_END: usize = 3;

/// A test case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub turn: Turn,
    pub run: fn(&Pace) -> Report,
}

/// When a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// At the same time as other cases.
    Beside,
    /// Alone, because the case measures times.
    Alone,
    /// After all other cases, for the rest of the time.
    Last,
}

impl Case {
    pub const fn new(name: &'static str, run: fn(&Pace) -> Report) -> Self {
        Self {
            name,
            turn: Turn::Beside,
            run,
        }
    }

    pub const fn alone(name: &'static str, run: fn(&Pace) -> Report) -> Self {
        Self {
            turn: Turn::Alone,
            ..Self::new(name, run)
        }
    }

    pub const fn last(name: &'static str, run: fn(&Pace) -> Report) -> Self {
        Self {
            turn: Turn::Last,
            ..Self::new(name, run)
        }
    }
}

/// The length of the run, and the seed of its random choices.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The end of the long version. `None` in the short version.
    pub until: Option<Instant>,
    pub seed: u64,
}

impl Pace {
    /// Returns the number for the short or for the long version.
    pub fn times(&self, short: usize, long: usize) -> usize {
        if self.until.is_some() { long } else { short }
    }
}

/// Runs the cases that the command line asks for.
pub fn run(cases: &[Case]) -> ExitCode {
    assert!(
        std::env::var_os("REDIS_URL").is_none(),
        "REDIS_URL is set, and would decide which store is tested; unset it"
    );
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => {
                for case in cases {
                    println!("{}: test", case.name);
                }
                return ExitCode::SUCCESS;
            }
            // Flags of libtest, which have no meaning here.
            "--test-threads" | "--format" | "--color" | "--skip" => _ = arguments.next(),
            flag if flag.starts_with('-') => {}
            name => names.push(name.to_owned()),
        }
    }
    let chosen: Vec<_> = cases
        .iter()
        .filter(|case| names.is_empty() || names.iter().any(|name| case.name.contains(name)))
        .copied()
        .collect();
    let started = Instant::now();
    let number = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        )
    };
    let seconds = number("DYNDATA_CHAOS_SECONDS");
    let pace = Pace {
        until: seconds.map(|seconds| started + Duration::from_secs(seconds)),
        seed: number("DYNDATA_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32)),
    };
    println!("DYNDATA_CHAOS_SEED={}", pace.seed);

    let _watch = Watch::start();
    // The report of a case shows its panic.
    std::panic::set_hook(Box::new(|_| {}));
    let total = chosen.len();
    let mut reports = Vec::with_capacity(total);
    for (turn, lanes) in [(Turn::Beside, LANES), (Turn::Alone, 1), (Turn::Last, LANES)] {
        let now = chosen.iter().filter(|case| case.turn == turn).copied();
        run_in_lanes(now.collect(), lanes, &pace, |case, report, took| {
            println!(
                "[{:>2}/{total}] {:<44} {:<7} {:>5.1} s",
                reports.len() + 1,
                case.name,
                report.verdict(),
                took.as_secs_f64()
            );
            for failure in &report.failures {
                println!("    ! {failure}");
            }
            reports.push((case.name, report));
        });
    }
    // In the order in which the cases are declared.
    reports.sort_by_key(|(name, _)| cases.iter().position(|case| case.name == *name));
    println!(
        "\n{}",
        report::table(reports.iter().map(|(name, report)| (*name, report)))
    );
    for (name, report) in &reports {
        let details = report.details();
        if !details.is_empty() {
            print!("{name}\n{details}");
        }
    }
    let failed: Vec<_> = reports
        .iter()
        .filter(|(_, report)| !report.failures.is_empty())
        .collect();
    println!(
        "\n{total} cases, {} failed, {:.0} s",
        failed.len(),
        started.elapsed().as_secs_f64()
    );
    // Once more, because often only the end of a log is kept.
    for (name, report) in &failed {
        println!("FAILED {name}");
        for failure in report.failures.iter().take(SHOWN_AT_THE_END) {
            println!("    ! {failure}");
        }
    }
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs cases on several threads, and calls `ended` on this thread after each.
fn run_in_lanes(
    cases: Vec<Case>,
    lanes: usize,
    pace: &Pace,
    mut ended: impl FnMut(Case, Report, Duration),
) {
    let queue = Mutex::new(cases.into_iter());
    let (reports, finished) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..lanes {
            let (queue, reports) = (&queue, reports.clone());
            scope.spawn(move || {
                loop {
                    // In the condition of the loop, the lock would be held during the case.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(case) = next else { return };
                    let start = Instant::now();
                    let report = run_one(case, pace);
                    if reports.send((case, report, start.elapsed())).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        for (case, report, took) in finished {
            ended(case, report, took);
        }
    });
}

fn run_one(case: Case, pace: &Pace) -> Report {
    let mut report = catch_unwind(AssertUnwindSafe(|| (case.run)(pace)))
        .unwrap_or_else(|panic| Report::of(vec![format!("panicked: {}", message(&*panic))]));
    for log in take_logs() {
        if !report.failures.is_empty() {
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES);
            report.logs.push(lines[from..].join("\n      "));
        }
    }
    report
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

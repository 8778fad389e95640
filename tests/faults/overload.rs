//! More calls than the service can take. The calls that it accepts must be as fast as without
//! overload, and the other calls must be refused at once.

use std::{thread::sleep, time::Duration};

use crate::{
    history::{Operation, Outcome},
    load::{AtTheEnd, Load, Rate, endings, percentile},
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    support::{Dyndata, Redis},
    trial::{Losses, Trial},
};

pub const CASES: &[Case] = &[Case::alone("service: three times its capacity", overload)];

/// The duration of a Redis command, which makes the capacity known ...
const DELAY: Duration = Duration::from_millis(50);
/// ... with this many calls at the same time. The number is small, because callers and service share
/// two cores, in a build without optimization.
const MAX_IN_FLIGHT: u32 = 16;
const CAPACITY: u32 = MAX_IN_FLIGHT * 1_000 / 50;
const SHED_WITHIN: Duration = Duration::from_millis(20);

fn overload(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let in_flight = format!("--max-in-flight={MAX_IN_FLIGHT}");
    let server = Dyndata::on(&proxy.url(), &["--workers=1", &in_flight]);
    proxy.set(Mode::Delay(DELAY));
    let rate = |calls_per_second| Rate {
        callers: 8,
        calls_per_second,
        at_the_end: AtTheEnd::Nothing,
        ..Rate::default()
    };
    let seconds = pace.times(4, 20) as u64;
    let unloaded = Load::start(&server.addr, rate(CAPACITY / 8));
    sleep(Duration::from_secs(seconds / 2));
    let unloaded = unloaded.finish();
    let refused = endings(unloaded.iter().filter(|it| it.failed_by_itself()));
    // The values of the second load start from the same number.
    redis.must(&["FLUSHALL"]);

    let mut trial = Trial::with_rate(&server, DELAY, Losses::None, rate(3 * CAPACITY));
    sleep(Duration::from_secs(seconds));
    trial.check(
        refused.is_empty(),
        format!("refused without load: {refused:?}"),
    );
    let mut figures = String::new();
    let mut report = trial.judge_with(|operations, _| {
        let compared = compare(&unloaded, operations);
        figures = compared.figures;
        let mut failures = compared.failures;
        // The short version may run on a busy machine, so it only reports the times.
        if pace.until.is_some() {
            failures.extend(compared.late);
        }
        failures
    });
    report.notes.push(figures);
    report.limit = None;
    report
}

struct Comparison {
    figures: String,
    failures: Vec<String>,
    /// Failures to keep a time limit.
    late: Vec<String>,
}

fn compare(unloaded: &[Operation], operations: &[Operation]) -> Comparison {
    let took = |operations: &[&Operation]| {
        percentile(operations.iter().map(|it| it.took()), 99).unwrap_or_default()
    };
    let before = took(&unloaded.iter().collect::<Vec<_>>());
    let (accepted, others): (Vec<_>, Vec<_>) = operations
        .iter()
        .filter(|it| !it.is_excused())
        .partition(|operation| operation.is_ok());
    let (shed, failed): (Vec<_>, Vec<_>) = others
        .into_iter()
        .partition(|operation| operation.ending() == "OVERLOADED");
    let (accepted_p99, shed_p99) = (took(&accepted), took(&shed));
    let figures = format!(
        "p99: unloaded {:.1} ms, accepted {:.1} ms, shed {:.1} ms; {} accepted, {} shed",
        before.as_secs_f64() * 1e3,
        accepted_p99.as_secs_f64() * 1e3,
        shed_p99.as_secs_f64() * 1e3,
        accepted.len(),
        shed.len()
    );
    let unless = |holds: bool, otherwise: &str| (!holds).then(|| format!("{otherwise}: {figures}"));
    let late = [
        unless(accepted_p99 <= 3 * before, "accepted calls are slow"),
        unless(shed_p99 < SHED_WITHIN, "shed calls wait"),
    ];
    let pushed_back = shed.iter().all(
        |operation| matches!(&operation.outcome, Outcome::Refused(refusal) if refusal.pushback.is_some()),
    );
    let failures = [
        // A third of the calls can be accepted.
        unless(shed.len() > accepted.len(), "it was not overloaded"),
        unless(pushed_back, "shed without pushback"),
        unless(failed.is_empty(), "failed otherwise"),
    ];
    Comparison {
        failures: failures.into_iter().flatten().collect(),
        late: late.into_iter().flatten().collect(),
        figures,
    }
}

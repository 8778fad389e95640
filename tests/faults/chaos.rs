//! Faults in random order, until the time is up: on one Redis behind a proxy, on a master with
//! sentinels, and on a cluster. Each of the three has a history of its own.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    failover,
    proxy::{Mode, Proxy},
    report::Report,
    runner::{Case, Pace},
    standalone,
    support::{
        Dyndata, Redis,
        topology::{Cluster, Sentinels},
    },
    trial::{Losses, Trial},
    writers::Pressure,
};

pub const CASES: &[Case] = &[
    Case::last("chaos: redis and the line to it", one_redis),
    Case::last("chaos: sentinels", sentinels),
    Case::last("chaos: cluster", cluster),
];

/// Number of faults in the short version.
const SHORT_FAULTS: usize = 3;
/// Time at the end for the last fault and the checks.
const RESERVE: Duration = Duration::from_secs(15);

/// Draws faults until the time is up. The same seed draws the same faults.
struct Dice {
    random: fastrand::Rng,
    until: Option<Instant>,
    left: usize,
}

impl Dice {
    fn new(pace: &Pace, topology: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(pace.seed ^ topology),
            until: pace.until.map(|until| until - RESERVE),
            left: SHORT_FAULTS,
        }
    }

    /// Draws a number below `faults`. `None` when the time is up.
    fn next(&mut self, faults: usize) -> Option<usize> {
        let goes_on = match self.until {
            Some(until) => Instant::now() < until,
            None => self.left > 0,
        };
        self.left = self.left.saturating_sub(1);
        goes_on.then(|| self.random.usize(0..faults))
    }

    fn millis(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(100..2_500))
    }
}

/// Adds the seed and the order of the faults to a report.
fn with_order(mut report: Report, pace: &Pace, names: &[&str]) -> Report {
    report
        .notes
        .push(format!("seed {}: {}", pace.seed, names.join(", ")));
    report
}

fn one_redis(pace: &Pace) -> Report {
    const MODES: &[(&str, Mode)] = &[
        ("delay", Mode::Delay(Duration::from_millis(300))),
        ("trickle", Mode::Trickle),
        ("half-open", Mode::Silent),
        ("refuse", Mode::Refuse),
        ("reset in reply", Mode::ResetInReply),
        ("stall", Mode::Stall),
        ("reply swallowed", Mode::SwallowReply),
        ("delivered later", Mode::DeliverLate),
    ];
    let mut redis = Redis::start_durable(&[]);
    let proxy = Proxy::start(redis.port);
    let servers = [(); 2].map(|()| Dyndata::on(&proxy.url(), &[]));
    let mut trial = Trial::start(&servers[0], standalone::LIMIT, Losses::None);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    let mut dice = Dice::new(pace, 1);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(MODES.len() + standalone::FAULTS.len()) {
        let lasts = dice.millis();
        trial.begin_fault();
        if let Some((name, mode)) = MODES.get(drawn) {
            names.push(*name);
            proxy.set(*mode);
            sleep(lasts);
            proxy.set(Mode::Pass);
        } else {
            let (name, inject) = standalone::FAULTS[drawn - MODES.len()];
            names.push(name);
            inject(&mut redis);
        }
        trial.end_fault();
    }
    with_order(trial.judge(), pace, &names)
}

fn sentinels(pace: &Pace) -> Report {
    let mut store = Sentinels::start();
    let servers = [(); 2].map(|()| Dyndata::on(&store.urls(), &["--redis-mode=sentinel"]));
    let mut trial = Trial::start(&servers[0], failover::LIMIT, Losses::Failover);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    let mut dice = Dice::new(pace, 2);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(failover::SENTINEL_FAULTS.len()) {
        let (name, inject) = failover::SENTINEL_FAULTS[drawn];
        names.push(name);
        store.settled();
        trial.begin_fault();
        inject(&mut store, &mut trial);
        if pace.until.is_none() {
            // Sentinels need ten seconds or more to settle.
            break;
        }
    }
    with_order(trial.judge(), pace, &names)
}

fn cluster(pace: &Pace) -> Report {
    let mut store = Cluster::start();
    let servers = [(); 2].map(|()| Dyndata::on(&store.urls(), &["--redis-mode=cluster"]));
    let mut trial = Trial::start(&servers[0], failover::LIMIT, Losses::Failover);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    trial.add_counters([&servers[0], &servers[1]]);
    let mut dice = Dice::new(pace, 3);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(failover::CLUSTER_FAULTS.len()) {
        let (name, inject) = failover::CLUSTER_FAULTS[drawn];
        names.push(name);
        store.settled();
        trial.begin_fault();
        inject(&mut store, &mut trial);
    }
    with_order(trial.judge(), pace, &names)
}

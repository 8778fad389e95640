//! Faults in random order, for as long as there is time: one Redis behind a proxy, a master with
//! sentinels, and a cluster, each with a history of its own.

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
    support::{Dyndata, Redis},
    topology::{Cluster, Sentinels},
    trial::{Losses, Trial},
    writers::Pressure,
};

pub const CASES: &[Case] = &[
    Case::last("chaos: redis and the line to it", one_redis),
    Case::last("chaos: sentinels", sentinels),
    Case::last("chaos: cluster", cluster),
];

/// What the short version has.
const FAULTS: usize = 3;
/// Kept free at the end, for the last fault and the judge.
const RESERVE: Duration = Duration::from_secs(15);

/// Draws faults until the time is up; the same ones for the same seed.
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
            left: FAULTS,
        }
    }

    /// The number of the next fault, of so many.
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

/// What happened, for the report: the order of the faults is what a seed repeats.
fn told(mut report: Report, pace: &Pace, names: &[&str]) -> Report {
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
    let line = Proxy::start(redis.port);
    let servers = [(); 2].map(|()| Dyndata::on(&line.url(), &[]));
    let mut trial = Trial::start(&servers[0], standalone::LIMIT, Losses::None);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    let mut dice = Dice::new(pace, 1);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(MODES.len() + standalone::DEEDS.len()) {
        let lasts = dice.millis();
        trial.fault();
        if let Some((name, mode)) = MODES.get(drawn) {
            names.push(*name);
            line.set(*mode);
            sleep(lasts);
            line.set(Mode::Pass);
        } else {
            let (name, deed) = standalone::DEEDS[drawn - MODES.len()];
            names.push(name);
            deed(&mut redis);
        }
        trial.over();
    }
    told(trial.judge(), pace, &names)
}

fn sentinels(pace: &Pace) -> Report {
    let mut store = Sentinels::start();
    let servers = [(); 2].map(|()| Dyndata::on(&store.urls(), &["--redis-mode=sentinel"]));
    let mut trial = Trial::start(&servers[0], failover::LIMIT, Losses::Failover);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    let mut dice = Dice::new(pace, 2);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(failover::SENTINEL_DEEDS.len()) {
        let (name, deed) = failover::SENTINEL_DEEDS[drawn];
        names.push(name);
        store.settled();
        trial.fault();
        deed(&mut store, &mut trial);
        if pace.until.is_none() {
            // Settling takes the sentinels ten seconds and more.
            break;
        }
    }
    told(trial.judge(), pace, &names)
}

fn cluster(pace: &Pace) -> Report {
    let mut store = Cluster::start();
    let servers = [(); 2].map(|()| Dyndata::on(&store.urls(), &["--redis-mode=cluster"]));
    let mut trial = Trial::start(&servers[0], failover::LIMIT, Losses::Failover);
    trial.add_writers([&servers[0], &servers[1]], Pressure::of(pace));
    let mut dice = Dice::new(pace, 3);
    let mut names = Vec::new();
    while let Some(drawn) = dice.next(failover::CLUSTER_DEEDS.len()) {
        let (name, deed) = failover::CLUSTER_DEEDS[drawn];
        names.push(name);
        store.settled();
        trial.fault();
        deed(&mut store, &mut trial);
    }
    told(trial.judge(), pace, &names)
}

//! Errors that Redis itself replies: because of its settings, while it is busy or loading, and when
//! access is denied. Also a Redis that is not there at start, or moves to another address.

use std::{fs, thread::sleep, time::Duration};

use crate::{
    history::Operation,
    load::endings,
    report::Report,
    runner::{Case, Pace},
    standalone::LIMIT,
    support::{CANARY, Directory, Dyndata, Redis, eventually, redis_server::DURABLE},
    trial::{Fault, Losses, Trial, during, late_replicas},
};

pub const CASES: &[Case] = &[
    Case::new("redis: maxmemory reached", out_of_memory),
    Case::new("redis: MISCONF, with new connections", misconfigured),
    Case::new("redis: wrong password, then right", wrong_password),
    Case::new("redis: ACL that forbids SET", no_permission),
    Case::new("redis: LOADING at start", loading),
    Case::new("redis: busy Lua script", busy_script),
    Case::new("redis: READONLY after REPLICAOF", read_only),
    Case::new("redis: max clients", max_clients),
    Case::new("redis: absent at start", absent_at_start),
    Case::new("redis: a name that changes its address", renamed),
];

/// The duration of a fault, and the time after which every call has to show its effect.
const LASTS: Duration = Duration::from_millis(1_500);
const SETTLED: Duration = Duration::from_millis(200);

fn trial(server: &Dyndata) -> Trial {
    Trial::start(server, LIMIT, Losses::None)
}

/// Checks that reads succeed, and that all Marks fail, with these reasons only.
fn reads_go_on<'a>(
    reasons: &'a [&str],
    settled: Duration,
) -> impl FnOnce(&[Operation], &[Fault]) -> Vec<String> + 'a {
    move |operations, faults| {
        let mut failures = Vec::new();
        for fault in faults {
            failures.extend(reads_succeed(operations, fault, settled));
            failures.extend(marks_get(reasons, operations, fault, settled));
        }
        failures
    }
}

fn reads_succeed(operations: &[Operation], fault: &Fault, settled: Duration) -> Option<String> {
    let reads =
        endings(during(operations, fault, settled).filter(|operation| !operation.is_mark()));
    (!reads.keys().eq(["OK"].iter())).then(|| format!("reads ended with {reads:?}, not only OK"))
}

fn marks_get(
    reasons: &[&str],
    operations: &[Operation],
    fault: &Fault,
    settled: Duration,
) -> Option<String> {
    let marks = endings(during(operations, fault, settled).filter(|operation| operation.is_mark()));
    let expected = !marks.is_empty() && marks.keys().all(|ending| reasons.contains(ending));
    (!expected).then(|| format!("Marks ended with {marks:?}, not only {reasons:?}"))
}

fn out_of_memory(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&["--maxmemory-policy", "noeviction"]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        redis.must(&["CONFIG", "SET", "maxmemory", "1"]);
        sleep(LASTS);
        trial.begin_repair();
        redis.must(&["CONFIG", "SET", "maxmemory", "0"]);
        trial.end_fault();
    }
    trial.judge_with(reads_go_on(&["BACKEND_OUT_OF_MEMORY"], SETTLED))
}

/// MISCONF also refuses PING, so new connections are the hard part.
fn misconfigured(pace: &Pace) -> Report {
    let redis = Redis::start_with(&["--save", "3600", "1", "--enable-debug-command", "yes"]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    let in_the_way = redis.directory.path("dump.rdb");
    for _ in 0..pace.times(1, 4) {
        // Not even root can move a file over a directory, so saving fails.
        _ = fs::remove_file(&in_the_way);
        fs::create_dir(&in_the_way).expect("a directory");
        let saved = |status: &str| {
            redis.must(&["BGSAVE"]);
            eventually("BGSAVE ends", || {
                redis
                    .text(&["INFO", "persistence"])
                    .contains(&format!("rdb_last_bgsave_status:{status}"))
            });
        };
        trial.begin_fault();
        saved("err");
        sleep(LASTS / 2);
        redis.try_to(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        sleep(LASTS);
        trial.begin_repair();
        fs::remove_dir(&in_the_way).expect("removes");
        saved("ok");
        trial.end_fault();
    }
    trial.judge_with(|operations, faults| {
        let mut failures = Vec::new();
        for fault in faults {
            // From a second after the connections were closed, so that the calls use new ones.
            let settled = LASTS / 2 + Duration::from_secs(1);
            failures.extend(reads_succeed(operations, fault, settled));
            let reasons = ["BACKEND_MISCONFIGURED"];
            failures.extend(marks_get(&reasons, operations, fault, settled));
        }
        failures
    })
}

fn wrong_password(pace: &Pace) -> Report {
    let first = format!("first-{CANARY}");
    let arguments = [DURABLE, &["--requirepass", &first]].concat();
    let mut redis = Redis::prepare(&arguments);
    redis.use_password(&first);
    redis.run();
    let directory = Directory::new();
    let file = directory.write("password", &(first + "\n"));
    let from_file = format!("--redis-password-file={file}");
    let server = Dyndata::on(&redis.url(), &[&from_file]);
    let mut trial = trial(&server);
    trial.expect_late_expiry(late_replicas());
    for round in 0..pace.times(1, 4) {
        let password = format!("{round}-{CANARY}");
        trial.begin_fault();
        // Open connections keep their rights. New ones need the new password.
        redis.must(&["CONFIG", "SET", "requirepass", &password]);
        redis.use_password(&password);
        redis.try_to(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        sleep(LASTS);
        trial.begin_repair();
        directory.write("password", &format!("{password}\n"));
        trial.end_fault();
    }
    trial.judge_with(|operations, faults| {
        let mut failures = Vec::new();
        for fault in faults {
            let reasons = ["BACKEND_UNAVAILABLE", "BACKEND_AUTH"];
            failures.extend(marks_get(&reasons, operations, fault, SETTLED));
        }
        failures
    })
}

fn no_permission(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        redis.must(&["ACL", "SETUSER", "default", "-set"]);
        sleep(LASTS);
        trial.begin_repair();
        redis.must(&["ACL", "SETUSER", "default", "+set"]);
        trial.end_fault();
    }
    trial.judge_with(reads_go_on(&["BACKEND_AUTH"], SETTLED))
}

/// It answers LOADING, to PING as well, until its data is there.
fn loading(pace: &Pace) -> Report {
    // Redis 6 answers after every two megabytes only, so that there has to be more of them.
    let mut redis = Redis::start_durable(&["--rdbcompression", "no"]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    redis.must(&["DEBUG", "POPULATE", "2000", "filler", "5000"]);
    let mut seen = 0;
    let rounds = pace.times(1, 3);
    for _ in 0..rounds {
        redis.must(&["BGREWRITEAOF"]);
        eventually("the file is rewritten", || {
            let info = redis.text(&["INFO", "persistence"]);
            info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
        });
        trial.begin_fault();
        redis.kill();
        // A millisecond for each key.
        redis.spawn(&[
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        ]);
        eventually("redis-server has loaded", || {
            let answer = redis.command(&["PING"]);
            seen += usize::from(answer.as_ref().is_err_and(|error| {
                error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::BusyLoading)
            }));
            answer.is_ok()
        });
        trial.end_fault();
        redis.must(&["CONFIG", "SET", "key-load-delay", "0"]);
    }
    trial.check(seen >= rounds, "redis never said LOADING");
    trial.judge()
}

fn busy_script(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&["--lua-time-limit", "100"]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        std::thread::scope(|scope| {
            scope.spawn(|| redis.try_to(&["EVAL", "while true do end", "0"]));
            sleep(LASTS);
            trial.begin_repair();
            redis.must(&["SCRIPT", "KILL"]);
        });
        trial.end_fault();
    }
    trial.judge_with(|operations, faults| {
        let busy = faults
            .iter()
            .all(|fault| endings(during(operations, fault, SETTLED)).contains_key("BACKEND_BUSY"));
        if busy {
            Vec::new()
        } else {
            vec!["no call got BACKEND_BUSY".to_owned()]
        }
    })
}

fn read_only(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    for _ in 0..pace.times(1, 4) {
        trial.begin_fault();
        // Its master does not exist, so it keeps its data.
        redis.must(&["REPLICAOF", "127.0.0.1", "1"]);
        sleep(LASTS);
        trial.begin_repair();
        redis.must(&["REPLICAOF", "NO", "ONE"]);
        trial.end_fault();
    }
    trial.judge_with(|operations, faults| {
        let mut failures = Vec::new();
        for fault in faults {
            let reasons = ["BACKEND_READONLY", "BACKEND_UNAVAILABLE"];
            failures.extend(marks_get(&reasons, operations, fault, SETTLED));
            let told = endings(during(operations, fault, Duration::ZERO));
            if !told.contains_key("BACKEND_READONLY") {
                failures.push(format!("no call got BACKEND_READONLY: {told:?}"));
            }
        }
        failures
    })
}

fn max_clients(pace: &Pace) -> Report {
    let redis = Redis::start_durable(&[]);
    let server = Dyndata::on(&redis.url(), &[]);
    let mut trial = trial(&server);
    for _ in 0..pace.times(1, 4) {
        let mut ours = redis.connect();
        let mut command = |words: &[&str]| -> redis::Value {
            redis::cmd(words[0])
                .arg(&words[1..])
                .query(&mut ours)
                .expect("answers")
        };
        trial.begin_fault();
        // The test has the only connection.
        command(&["CONFIG", "SET", "maxclients", "1"]);
        command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        sleep(LASTS);
        trial.begin_repair();
        command(&["CONFIG", "SET", "maxclients", "1000"]);
        trial.end_fault();
    }
    trial.judge_with(|operations, faults| {
        let reasons = ["BACKEND_UNAVAILABLE", "BACKEND_BUSY"];
        faults
            .iter()
            .filter_map(|fault| marks_get(&reasons, operations, fault, SETTLED))
            .collect()
    })
}

fn absent_at_start(pace: &Pace) -> Report {
    let mut reports = Vec::new();
    for _ in 0..pace.times(1, 3) {
        let mut redis = Redis::prepare(DURABLE);
        let url = format!("--redis-url={}", redis.url());
        let server = Dyndata::start(&[&url]);
        let mut trial = Trial::start_unready(&server, LIMIT, Losses::None);
        trial.begin_fault();
        sleep(Duration::from_secs(2));
        trial.check(!server.is_ready(), "ready without a Redis");
        trial.begin_repair();
        redis.run();
        trial.end_fault();
        trial.check(server.is_ready(), "not ready with a Redis");
        reports.push(trial.judge_with(|operations, faults| {
            let reasons = ["BACKEND_UNAVAILABLE"];
            faults
                .iter()
                .filter_map(|fault| marks_get(&reasons, operations, fault, SETTLED))
                .collect()
        }));
    }
    Report::of_all(reports)
}

/// The service has its own hosts file, in which a name moves from one Redis to another.
fn renamed(pace: &Pace) -> Report {
    let directory = Directory::new();
    let hosts = directory.path("hosts");
    let point_to = |address: &str| {
        fs::write(&hosts, format!("{address} redis.moves.test\n")).expect("writes");
    };
    point_to("127.0.0.1");
    // Both use the same port, on two addresses. The second has the data of the first.
    let mut first = Redis::prepare(DURABLE);
    first.run();
    let mut second = Redis::prepare(DURABLE);
    second.host = "127.0.0.2";
    second.port = first.port;
    second.run();
    let url = format!("--redis-url=redis://redis.moves.test:{}", first.port);
    let server = match Dyndata::start_with_file(&hosts, "/etc/hosts", &[&url]) {
        Ok(server) => server,
        Err(why) => return Report::skipped(why),
    };
    server.ready();
    let mut trial = trial(&server);
    trial.expect_late_expiry(late_replicas());
    for round in 0..pace.times(1, 4) {
        let (from, to) = if round % 2 == 0 {
            (&mut first, &mut second)
        } else {
            (&mut second, &mut first)
        };
        to.must(&["REPLICAOF", from.host, &from.port.to_string()]);
        eventually("the data is there", || {
            to.text(&["INFO", "replication"])
                .contains("master_link_status:up")
        });
        trial.begin_fault();
        // A planned move: no writes while the rest is copied.
        from.must(&["CLIENT", "PAUSE", "60000", "WRITE"]);
        eventually("the rest of the data is there", || {
            let offset = |redis: &Redis, name: &str| {
                let info = redis.text(&["INFO", "replication"]);
                info.lines()
                    .find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok())
            };
            let want = offset(from, "master_repl_offset:");
            want.is_some() && offset(to, "slave_repl_offset:") >= want
        });
        from.kill();
        to.must(&["REPLICAOF", "NO", "ONE"]);
        point_to(to.host);
        trial.end_fault();
        from.run();
    }
    trial.judge()
}

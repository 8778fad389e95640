//! Metrics of the process, under the names that Prometheus's own clients use. Without `/proc` there
//! are none.
//!
//! Source: <https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics> and
//! proc(5).

use std::fs;

use super::reading::Reading;

/// The unit of time in `/proc`, which is `sysconf(_SC_CLK_TCK)` on Linux.
const TICKS_PER_SECOND: f64 = 100.0;
/// The size of a memory page on the platforms that this runs on.
const PAGE_BYTES: i64 = 4096;

/// Positions of fields in `/proc/self/stat`, counted from the one after the command's name.
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;
const START_TICKS: usize = 19;
const RESIDENT_PAGES: usize = 21;

/// The metrics of this process. Each scrape reads them anew, except the start time.
pub(crate) fn readings() -> Vec<Reading> {
    let Some(start) = start_time() else {
        return Vec::new();
    };
    vec![
        Reading::seconds(
            "process_cpu_seconds",
            "CPU time that the process has used, in seconds",
            || {
                let ticks = stat(USER_TICKS).zip(stat(SYSTEM_TICKS));
                ticks.map_or(0.0, |(user, system)| {
                    (user + system) as f64 / TICKS_PER_SECOND
                })
            },
        ),
        Reading::gauge(
            "process_resident_memory_bytes",
            "Resident memory, in bytes",
            || stat(RESIDENT_PAGES).map_or(0, |pages| pages * PAGE_BYTES),
        ),
        Reading::gauge(
            "process_open_fds",
            "Number of open file descriptors",
            || {
                fs::read_dir("/proc/self/fd").map_or(0, |files| {
                    // Without the one that reads the directory.
                    i64::try_from(files.count()).unwrap_or(i64::MAX) - 1
                })
            },
        ),
        Reading::gauge("process_max_fds", "Limit of open file descriptors", || {
            let limit = rlimit::Resource::NOFILE.get_soft();
            limit.map_or(0, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
        }),
        Reading::gauge(
            "process_start_time_seconds",
            "Start time of the process, in seconds since 1970",
            move || start,
        ),
    ]
}

/// A field of `/proc/self/stat`. The command's name, which is in parentheses, may have spaces.
fn stat(place: usize) -> Option<i64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(place)?.parse().ok()
}

fn start_time() -> Option<i64> {
    let stat_of_all = fs::read_to_string("/proc/stat").ok()?;
    let boot = stat_of_all
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let since_boot = stat(START_TICKS)? as f64 / TICKS_PER_SECOND;
    Some(boot.trim().parse::<i64>().ok()? + since_boot as i64)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_fields_are_the_right_ones() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after");
        let now = i64::try_from(now.as_secs()).expect("fits");
        let start = start_time().expect("Linux");
        assert!((now - 3600..=now + 1).contains(&start), "{start} {now}");
        let mebibytes = stat(RESIDENT_PAGES).expect("Linux") * PAGE_BYTES / (1 << 20);
        assert!((1..4096).contains(&mebibytes), "{mebibytes}");
        assert!(stat(USER_TICKS).expect("Linux") >= 0);
    }
}

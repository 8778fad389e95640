//! The tables of a run, in Markdown: all of them for the terminal, some for `docs/performance.md`.

use std::fmt::Display;

use anyhow::{Context as _, Result};

use crate::{
    measure::MEBIBYTE,
    operation::Operation,
    plan::{BATCH_GROWTH, CONNECTION_GROWTH, GROWTH_SUBJECTS, TARGET_SHAPE},
    results::{CellRow, Generator, Latency, Lost, Presence, Purpose, Row, Spread, Watch, cpu},
    subjects::Kind,
    targets::Target,
};

/// Prints everything, the targets last.
pub fn print(rows: &[Row]) {
    for row in rows {
        if let Row::Machine(machine) = row {
            println!(
                "\n{} cores of {}, Linux {}, Redis {}, {}",
                machine.cores, machine.processor, machine.kernel, machine.redis, machine.h2load
            );
        }
    }
    println!(
        "Medians of the rounds, [min-max]. Servers, Redis and the generator share the cores.\n\
         webdis gets HTTP/1.1 requests, with one connection for each stream.\n"
    );
    for table in comparisons(rows) {
        println!("{table}");
    }
    for (_, table) in page_tables(rows).into_iter().rev() {
        println!("{table}");
    }
    print!("{}", lost(rows));
}

/// Replaces the tables of a page. Each table stands between the lines `<!-- bench NAME -->` and
/// `<!-- bench end -->`.
pub fn update_page(page: &str, rows: &[Row]) -> Result<String> {
    let mut page = page.to_owned();
    for (name, table) in page_tables(rows) {
        let start = format!("<!-- bench {name} -->\n");
        let from = page.find(&start).with_context(|| format!("no {start}"))? + start.len();
        let length = page[from..].find("<!-- bench end -->");
        let length = length.with_context(|| format!("no end after {start}"))?;
        page.replace_range(from..from + length, &table);
    }
    Ok(page)
}

fn page_tables(rows: &[Row]) -> Vec<(&'static str, String)> {
    let tables = [
        ("targets", targets(rows)),
        ("latency", latency(rows)),
        ("calls", calls(rows)),
        ("watch", watch(rows)),
        ("presence", presence(rows)),
        ("growth", growth(rows)),
    ];
    tables
        .into_iter()
        .filter(|(_, table)| !table.is_empty())
        .collect()
}

/// The rows without figures, with the reasons.
fn lost(rows: &[Row]) -> String {
    let line = |lost: &Lost| {
        // A reason can contain the output of a program.
        let reason = lost.reason.replace('\n', " ");
        vec![lost.subject.name().to_owned(), lost.row.clone(), reason]
    };
    let lines = rows.iter().filter_map(|row| match row {
        Row::Lost(lost) => Some(line(lost)),
        _ => None,
    });
    table(&["lost", "row", "reason"], lines)
}

/// CPU of every call, of dyndata and of Redis.
fn calls(rows: &[Row]) -> String {
    let line = |cell: &CellRow| {
        vec![
            cell.operation.clone(),
            spread(Some(cell.server_us_per_call)),
            format!("{:.2}", cell.redis_us_per_call),
            thousands(cell.calls_per_second),
        ]
    };
    let shape = TARGET_SHAPE.to_string();
    let list = Operation::List.to_string();
    let is_shown = |cell: &CellRow| {
        cell.subject == Kind::Dyndata
            && cell.purpose == Purpose::Comparison
            && cell.generator == Generator::Own
            && (cell.shape == shape || cell.operation == list)
    };
    let lines = rows.iter().filter_map(|row| match row {
        Row::Cell(cell) if is_shown(cell) => Some(line(cell)),
        _ => None,
    });
    let headings = [
        "10x20 (List 10x1), own generator",
        "CPU per call, us",
        "of Redis",
        "calls/s",
    ];
    table(&headings, lines)
}

/// What Watch costs, and how late its events are.
fn watch(rows: &[Row]) -> String {
    // There are no events without watchers.
    let measured =
        |figure: Option<f64>, text: fn(f64) -> String| figure.map_or_else(String::new, text);
    let line = |found: &Watch| {
        vec![
            found.processes.to_string(),
            thousands(found.events_per_second),
            measured(found.server_us_per_event, |us| format!("{us:.2}")),
            format!("{:.2}", found.redis_us_per_mark),
            format!("{:.1} %", found.redis_cpu_share * 100.0),
            measured(found.change_p50_us, thousands),
            measured(found.change_p99_us, thousands),
            measured(found.expiry_p50_us, thousands),
            measured(found.expiry_p99_us, thousands),
        ]
    };
    let headings = [
        "processes that watch",
        "events/s",
        "CPU per event, us",
        "of Redis per Mark",
        "of Redis, of one core",
        "Mark to event, p50, us",
        "p99",
        "expiry to event, p50, us",
        "p99",
    ];
    let lines = rows.iter().filter_map(|row| match row {
        Row::Watch(found) => Some(line(found)),
        _ => None,
    });
    table(&headings, lines)
}

/// How long Count and List of many ids take.
fn presence(rows: &[Row]) -> String {
    let line = |found: &Presence| {
        vec![
            thousands(found.ids as f64),
            thousands(found.marks_per_second as f64),
            thousands(found.count_p50_us),
            thousands(found.count_p99_us),
            thousands(found.ping_p50_us),
            thousands(found.ping_p99_us),
            format!("{:.2}", found.list_seconds),
            thousands(found.page_p50_us),
            thousands(found.page_p99_us),
        ]
    };
    let headings = [
        "ids",
        "Marks/s",
        "Count, p50, us",
        "p99",
        "PING, p50, us",
        "p99",
        "List, s",
        "a page of it, p50, us",
        "p99",
    ];
    let lines = rows.iter().filter_map(|row| match row {
        Row::Presence(found) => Some(line(found)),
        _ => None,
    });
    table(&headings, lines)
}

fn targets(rows: &[Row]) -> String {
    let limit = |target: &Target, limit: Option<f64>| {
        let words = if target.at_least { "at least " } else { "" };
        limit.map_or_else(String::new, |limit| format!("{words}{limit}"))
    };
    let line = |target: &Target| {
        vec![
            target.name.clone(),
            limit(target, target.must),
            limit(target, target.aim),
            spread(target.reached),
            spread(target.noise),
            spread(target.own),
            target.verdict().to_owned(),
        ]
    };
    let headings = [
        "",
        "must",
        "aim",
        "reached",
        "A/A",
        "by our own generator",
        "meets",
    ];
    let targets = rows.iter().filter_map(|row| match row {
        Row::Target(target) => Some(line(target)),
        _ => None,
    });
    table(&headings, targets)
}

/// One table for each kind of call, shape and generator, with the subjects as its rows.
fn comparisons(rows: &[Row]) -> Vec<String> {
    let cells: Vec<&CellRow> = rows
        .iter()
        .filter_map(|row| match row {
            Row::Cell(cell) if cell.purpose == Purpose::Comparison => Some(cell),
            _ => None,
        })
        .collect();
    let groups = cells.chunk_by(|one, other| {
        (&one.operation, &one.shape, one.generator)
            == (&other.operation, &other.shape, other.generator)
    });
    let decimals = |value: Option<f64>, decimals: usize| {
        value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
    };
    let line = |cell: &&CellRow| {
        vec![
            cell.subject.name().to_owned(),
            spread(Some(cell.server_us_per_call)),
            spread(cell.ratio),
            decimals(Some(cell.calls_per_second), 0),
            decimals(Some(cell.redis_us_per_call), 2),
            decimals(cell.p50_us, 0),
            decimals(cell.p99_us, 0),
            cell.refused.to_string(),
        ]
    };
    let comparison = |group: &[&CellRow]| {
        let generator = match group[0].generator {
            Generator::Own => "own generator",
            Generator::H2load => "h2load",
        };
        let title = format!("{} {}, {generator}", group[0].operation, group[0].shape);
        let headings = [
            title.as_str(),
            "server CPU per call, us",
            "dyndata / this",
            "calls/s",
            "Redis CPU, us",
            "p50, us",
            "p99, us",
            "refused",
        ];
        table(&headings, group.iter().map(line))
    };
    groups.map(comparison).collect()
}

fn latency(rows: &[Row]) -> String {
    let line = |found: &Latency| {
        let held = match (found.refused, found.unsent) {
            (0, 0) => "",
            _ => ", not held",
        };
        let mut line = vec![
            format!("{}, {} %", found.subject.name(), found.percent_of_capacity),
            format!("{}{held}", thousands(found.calls_per_second)),
        ];
        let times = [
            found.p50_us,
            found.p99_us,
            found.p999_us,
            found.max_us,
            found.sent_late_p50_us,
            found.sent_late_p99_us,
        ];
        line.extend(times.map(thousands));
        line
    };
    let headings = [
        "",
        "rate, calls/s",
        "p50, us",
        "p99",
        "p99.9",
        "max",
        "sent late, p50",
        "p99",
    ];
    let found = rows.iter().filter_map(|row| match row {
        Row::Latency(found) => Some(line(found)),
        _ => None,
    });
    table(&headings, found)
}

fn growth(rows: &[Row]) -> String {
    let [service, peer] = GROWTH_SUBJECTS.map(Kind::name);
    let grown = |label: &dyn Display, purpose, operation, shape| {
        let [service, peer] =
            GROWTH_SUBJECTS.map(|kind| cpu(rows, purpose, operation, shape, kind));
        service.is_some().then(|| {
            let figures = [spread(service), spread(peer)];
            [vec![label.to_string()], figures.to_vec()].concat()
        })
    };
    let connections = table(
        &["CPU per Get, us, by connections x streams", service, peer],
        CONNECTION_GROWTH
            .iter()
            .filter_map(|shape| grown(shape, Purpose::Connections, Operation::Get, *shape)),
    );
    let batches = table(
        &["CPU per BatchGet, us, 10x20, by ids", service, peer],
        BATCH_GROWTH.iter().filter_map(|size| {
            grown(
                size,
                Purpose::Batch,
                Operation::BatchGet(*size),
                TARGET_SHAPE,
            )
        }),
    );
    let workers = table(
        &["CPU per Get, us, 10x20, by `--workers`", "", "calls/s"],
        rows.iter().filter_map(|row| match row {
            Row::Workers(found) => Some(vec![
                found.workers.to_string(),
                spread(Some(found.server_us_per_call)),
                thousands(found.calls_per_second),
            ]),
            _ => None,
        }),
    );
    let memory = table(
        &[
            "memory with entries in the embedded store",
            "MiB",
            "bytes an entry",
        ],
        rows.iter().filter_map(|row| match row {
            Row::Entries(found) => Some(vec![
                thousands(found.entries as f64),
                format!("{:.1}", found.resident_bytes as f64 / MEBIBYTE),
                format!("{:.0}", found.bytes_per_entry),
            ]),
            _ => None,
        }),
    );
    let tables = [connections, batches, workers, memory];
    tables.join("\n").trim().to_owned() + "\n"
}

/// A Markdown table with columns of equal width. Empty without lines.
fn table(headings: &[&str], lines: impl Iterator<Item = Vec<String>>) -> String {
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    let lines: Vec<Vec<String>> = lines.collect();
    if lines.is_empty() {
        return String::new();
    }
    let all = || [&headings].into_iter().chain(&lines);
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| all().map(|line| line[column].len()).max().unwrap_or(0))
        .collect();
    let format = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = format(&headings) + &format(&rule);
    text.extend(lines.iter().map(format));
    text
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |Spread { median, min, max }| {
        let decimals = match median {
            ..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        format!("{median:.decimals$} [{min:.decimals$}-{max:.decimals$}]")
    })
}

/// A whole number with commas.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

//! The tables on the terminal, and `results.json`.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::{
    bars::{Bar, noise},
    keys::Operation,
    load::Shape,
    measure::MEBIBYTE,
    plan::{BATCH_GROWTH, CONNECTION_GROWTH, GROWTH_SUBJECTS},
    results::{Cell, Generator, Purpose, Results, Select, Spread},
    subjects::Kind,
};

/// Prints everything that was found, the bars last.
pub fn print(results: &Results, bars: &[Bar]) {
    let mut text = String::new();
    // Writing to a String cannot fail.
    _ = write(&mut text, results, bars);
    print!("{text}");
}

/// Every measurement and every bar.
pub fn json(results: &Results, bars: &[Bar]) -> Result<String> {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(flatten)]
        results: &'a Results,
        bars: &'a [Bar],
    }
    Ok(serde_json::to_string_pretty(&Document { results, bars })? + "\n")
}

fn write(out: &mut String, results: &Results, bars: &[Bar]) -> std::fmt::Result {
    let machine = &results.machine;
    writeln!(
        out,
        "\n{} cores of {}, Linux {}, Redis {}, {}",
        machine.cores, machine.processor, machine.kernel, machine.redis, machine.h2load
    )?;
    writeln!(
        out,
        "Medians of the rounds, [min-max]. Servers, Redis and the generator share the cores.\n\
         webdis is asked over HTTP/1.1, with a connection for every stream."
    )?;
    for (operation, shape, generator) in compared(results) {
        write_comparison(out, results, operation, shape, generator)?;
    }
    write_growth(out, results)?;
    write_latency(out, results)?;
    write_bars(out, results, bars)
}

/// What was compared, in the order of the run.
fn compared(results: &Results) -> Vec<(Operation, Shape, Generator)> {
    let mut compared = Vec::new();
    for cell in &results.cells {
        let key = (cell.operation, cell.shape, cell.generator);
        if cell.purpose == Purpose::Comparison && !compared.contains(&key) {
            compared.push(key);
        }
    }
    compared
}

fn write_comparison(
    out: &mut String,
    results: &Results,
    operation: Operation,
    shape: Shape,
    generator: Generator,
) -> std::fmt::Result {
    let by = match generator {
        Generator::Own => "own generator",
        Generator::H2load => "h2load",
    };
    writeln!(
        out,
        "\n{:36} {:>24} {:>20} {:>9} {:>9} {:>9} {:>9}",
        format!("{operation} {shape}, {by}"),
        "server us CPU per call",
        "dyndata / this",
        "calls/s",
        "Redis us",
        "p50 us",
        "p99 us"
    )?;
    for kind in Kind::ALL {
        let select = Select {
            purpose: Purpose::Comparison,
            subject: kind,
            operation,
            shape,
            generator,
        };
        let Some(cpu) = results.spread(select, |cell| cell.server_us_per_call) else {
            continue;
        };
        let ratio = results.ratio(select.of(Kind::Dyndata), select, |cell| {
            cell.server_us_per_call
        });
        let median = |value: fn(&Cell) -> Option<f64>, decimals: usize| {
            let spread = Spread::of(results.select(select).filter_map(value));
            spread.map_or_else(String::new, |spread| {
                format!("{:.decimals$}", spread.median)
            })
        };
        writeln!(
            out,
            "  {:34} {:>24} {:>20} {:>9} {:>9} {:>9} {:>9}",
            kind.name(),
            format_spread(Some(cpu)),
            format_spread(ratio.filter(|_| kind != Kind::Dyndata)),
            median(|cell| Some(cell.calls_per_second), 0),
            median(|cell| Some(cell.redis_us_per_call), 2),
            median(|cell| cell.p50_us, 0),
            median(|cell| cell.p99_us, 0),
        )?;
        let refused: u64 = results.select(select).map(|cell| cell.refused).sum();
        if refused > 0 {
            writeln!(
                out,
                "    ({refused} more calls were refused: too much at a time)"
            )?;
        }
    }
    Ok(())
}

fn write_growth(out: &mut String, results: &Results) -> std::fmt::Result {
    let grown = |purpose, operation, shape| {
        let select = Select {
            purpose,
            subject: Kind::Dyndata,
            operation,
            shape,
            generator: Generator::Own,
        };
        GROWTH_SUBJECTS.map(|kind| results.spread(select.of(kind), |cell| cell.server_us_per_call))
    };
    if results.workers.is_empty() {
        return Ok(());
    }
    let heading = |what: &str| {
        let [service, peer] = GROWTH_SUBJECTS.map(Kind::name);
        format!("\n{what:36} {service:>24} {peer:>24}")
    };
    writeln!(out, "{}", heading("us CPU per Get by connections"))?;
    for shape in CONNECTION_GROWTH {
        let [service, peer] = grown(Purpose::Connections, Operation::Get, shape).map(format_spread);
        writeln!(out, "  {shape:34} {service:>24} {peer:>24}")?;
    }
    writeln!(out, "{}", heading("us CPU per BatchGet by ids, 10x20"))?;
    for size in BATCH_GROWTH {
        let operation = Operation::BatchGet(size);
        let [service, peer] =
            grown(Purpose::Batch, operation, crate::plan::BAR_SHAPE).map(format_spread);
        writeln!(out, "  {size:<34} {service:>24} {peer:>24}")?;
    }
    writeln!(
        out,
        "\n{:36} {:>24} {:>24}",
        "Get 10x20 by --workers", "us CPU per call", "calls/s"
    )?;
    for workers in [1, 2] {
        let rounds = results
            .workers
            .iter()
            .filter(|found| found.workers == workers);
        let cpu = Spread::of(rounds.clone().map(|found| found.server_us_per_call));
        let rate = Spread::of(rounds.map(|found| found.calls_per_second));
        let rate = rate.map_or_else(String::new, |rate| format!("{:.0}", rate.median));
        writeln!(out, "  {workers:<34} {:>24} {rate:>24}", format_spread(cpu))?;
    }
    for found in &results.entries {
        writeln!(
            out,
            "\nresident with {} entries in the embedded store: {:.1} MiB, {:.0} bytes an entry",
            found.entries,
            found.resident_bytes as f64 / MEBIBYTE,
            found.bytes_per_entry
        )?;
    }
    Ok(())
}

fn write_latency(out: &mut String, results: &Results) -> std::fmt::Result {
    if results.latency.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:36} {:>9} {:>9} {:>9} {:>9} {:>9} {:>20}",
        "Gets at a fixed rate, us", "calls/s", "p50", "p99", "p99.9", "max", "sent late p50, p99"
    )?;
    for found in &results.latency {
        writeln!(
            out,
            "  {:34} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>9.0} {:>20}",
            format!(
                "{}, {} % of its capacity",
                found.subject.name(),
                found.percent_of_capacity
            ),
            found.calls_per_second,
            found.p50_us,
            found.p99_us,
            found.p999_us,
            found.max_us,
            format!(
                "{:.0}, {:.0}",
                found.sent_late_p50_us, found.sent_late_p99_us
            )
        )?;
        if found.refused > 0 || found.unsent > 0 {
            writeln!(
                out,
                "    (the rate was not held: {} calls refused, {} not sent because 50,000 waited)",
                found.refused, found.unsent
            )?;
        }
    }
    writeln!(
        out,
        "  Latency counts from when a call should have been sent, the generator's own lateness included."
    )
}

fn write_bars(out: &mut String, results: &Results, bars: &[Bar]) -> std::fmt::Result {
    writeln!(
        out,
        "\n{:52} {:>7} {:>7} {:>20} {:>20}  verdict",
        "bar (CPU ratios at 10x20)", "must", "aim", "reached", "by own generator"
    )?;
    for bar in bars {
        let sign = if bar.at_least { ">=" } else { "<=" };
        let limit = |limit: f64| format!("{sign}{limit}");
        writeln!(
            out,
            "  {:50} {:>7} {:>7} {:>20} {:>20}  {}",
            bar.name,
            limit(bar.must),
            bar.aim.map_or_else(String::new, limit),
            format_spread(bar.figure),
            format_spread(bar.own),
            bar.verdict
        )?;
    }
    writeln!(
        out,
        "  {:50} {:>7} {:>7} {:>20} {:>20}  the noise",
        "A/A: dyndata / a second process of it, Get",
        "",
        "",
        format_spread(noise(results, Generator::H2load)),
        format_spread(noise(results, Generator::Own)),
    )
}

fn format_spread(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |Spread { median, min, max }| {
        let decimals = match median {
            ..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        format!("{median:.decimals$} [{min:.decimals$}-{max:.decimals$}]")
    })
}

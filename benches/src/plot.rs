//! The plot of a full run, as SVG. Greys and colours that can be read on white and on black.

use std::fmt::{Result as Written, Write as _};

use crate::{
    operation::Operation,
    plan::{BATCH_GROWTH, CONNECTION_GROWTH, GROWTH_SUBJECTS, TARGET_SHAPE},
    results::{Purpose, Row, Spread, cpu},
    subjects::Kind,
};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 620.0;
const GREY: &str = "#808080";
const SERVICE: &str = "#1f83d6";
const PEER: &str = "#d9822b";

/// CPU per Get by subject, and how it grows with connections and with the size of a batch.
pub fn svg(rows: &[Row]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    _ = write(&mut out, rows);
    out
}

fn write(out: &mut String, rows: &[Row]) -> Written {
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="{GREY}">"#
    )?;
    let cores = rows.iter().find_map(|row| match row {
        Row::Machine(machine) => Some(machine.cores),
        _ => None,
    });
    let cores = cores.unwrap_or_default();
    text(
        out,
        (10.0, 20.0),
        "start",
        &format!(
            "Server CPU per Get, microseconds ({TARGET_SHAPE}, {cores} cores, less is better)"
        ),
    )?;
    write_bars(out, rows)?;
    let growth = |purpose, operation, shape, kind| -> Option<f64> {
        let Spread { median, .. } = cpu(rows, purpose, operation, shape, kind)?;
        Some(median)
    };
    let connections = GROWTH_SUBJECTS.map(|kind| {
        let point = |shape: crate::load::Shape| {
            let us = growth(Purpose::Connections, Operation::Get, shape, kind)?;
            Some((shape.connections as f64, us))
        };
        CONNECTION_GROWTH.into_iter().filter_map(point).collect()
    });
    let title = "CPU per Get by connections, microseconds";
    write_lines(out, (10.0, 340.0), title, &connections)?;
    let batches = GROWTH_SUBJECTS.map(|kind| {
        let point = |size: usize| {
            let operation = Operation::BatchGet(size);
            let us = growth(Purpose::Batch, operation, TARGET_SHAPE, kind)?;
            Some((size as f64, us / size as f64))
        };
        BATCH_GROWTH.into_iter().filter_map(point).collect()
    });
    let title = "CPU per id by ids in a BatchGet, microseconds";
    write_lines(out, (440.0, 340.0), title, &batches)?;
    writeln!(out, "</svg>")
}

/// One horizontal bar for each subject, with the fastest and slowest round as a line.
fn write_bars(out: &mut String, rows: &[Row]) -> Written {
    const LEFT: f64 = 170.0;
    const STEP: f64 = 38.0;
    let found: Vec<_> = Kind::ALL
        .into_iter()
        .filter(|kind| *kind != Kind::Again)
        .filter_map(|kind| {
            let found = cpu(
                rows,
                Purpose::Comparison,
                Operation::Get,
                TARGET_SHAPE,
                kind,
            )?;
            Some((kind, found))
        })
        .collect();
    // One subject that is far slower would make the others' bars unreadable: its own bar is cut.
    let mut most: Vec<f64> = found.iter().map(|(_, cpu)| cpu.max).collect();
    most.sort_by(f64::total_cmp);
    let end = match most[..] {
        [.., second, first] if first > 3.0 * second => second * 1.3,
        [.., first] => first,
        [] => return Ok(()),
    };
    let scale = (WIDTH - LEFT - 110.0) / end;
    for (row, (kind, cpu)) in found.into_iter().enumerate() {
        let y = 40.0 + STEP * row as f64;
        let middle = y + 16.0;
        let colour = if kind == Kind::Dyndata { SERVICE } else { PEER };
        text(out, (LEFT - 8.0, middle), "end", kind.name())?;
        let [width, min, max] = [cpu.median, cpu.min, cpu.max].map(|us| us.min(end) * scale);
        let cut = if cpu.median > end { " (cut)" } else { "" };
        writeln!(
            out,
            r#"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="24" fill="{colour}"/>"#
        )?;
        let (from, to, y) = (LEFT + min, LEFT + max, y + 12.0);
        line(out, (from, y), (to, y), GREY, 2.0)?;
        text(
            out,
            (to + 6.0, middle),
            "start",
            &format!("{:.1}{cut}", cpu.median),
        )?;
    }
    Ok(())
}

/// Lines of the service and one peer over a logarithmic axis, from zero.
fn write_lines(
    out: &mut String,
    (left, top): (f64, f64),
    title: &str,
    lines: &[Vec<(f64, f64)>; 2],
) -> Written {
    const PLOT_WIDTH: f64 = 340.0;
    const PLOT_HEIGHT: f64 = 190.0;
    let most = lines.iter().flatten().map(|&(_, y)| y).fold(0.0, f64::max) * 1.1;
    let last = lines.iter().flatten().map(|&(x, _)| x).fold(1.0, f64::max);
    let (left, bottom) = (left + 40.0, top + 20.0 + PLOT_HEIGHT);
    let x = |value: f64| left + PLOT_WIDTH * value.ln() / last.ln().max(1.0);
    let y = |value: f64| bottom - PLOT_HEIGHT * value / most;
    text(out, (left - 40.0, top), "start", title)?;
    for part in 0..=4 {
        let value = most * f64::from(part) / 4.0;
        line(
            out,
            (left, y(value)),
            (left + PLOT_WIDTH, y(value)),
            GREY,
            0.4,
        )?;
        let decimals = if most < 4.0 { 2 } else { 0 };
        let label = format!("{value:.decimals$}");
        text(out, (left - 6.0, y(value) + 4.0), "end", &label)?;
    }
    for &(value, _) in &lines[0] {
        text(out, (x(value), bottom + 18.0), "middle", &value.to_string())?;
    }
    let legend = [(SERVICE, 0.0), (PEER, 90.0)];
    for ((points, kind), (colour, offset)) in lines.iter().zip(GROWTH_SUBJECTS).zip(legend) {
        let path: Vec<String> = points
            .iter()
            .map(|&(across, up)| format!("{:.1},{:.1}", x(across), y(up)))
            .collect();
        writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2.5"/>"#,
            path.join(" ")
        )?;
        let at = (left + offset, bottom + 44.0);
        line(
            out,
            (at.0, at.1 - 4.0),
            (at.0 + 14.0, at.1 - 4.0),
            colour,
            2.5,
        )?;
        text(out, (at.0 + 20.0, at.1), "start", kind.name())?;
    }
    Ok(())
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) -> Written {
    writeln!(
        out,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
    )
}

fn line(
    out: &mut String,
    (x1, y1): (f64, f64),
    (x2, y2): (f64, f64),
    colour: &str,
    width: f64,
) -> Written {
    writeln!(
        out,
        r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
    )
}

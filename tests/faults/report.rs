//! The report of a case, and the table of all reports.

use std::{fmt::Write as _, time::Duration};

use crate::{checker::Findings, writers::Summary};

/// The report of one case.
#[derive(Debug, Default)]
pub struct Report {
    pub findings: Findings,
    /// The result of the load with several writers for each id.
    pub written: Option<Summary>,
    /// The case has failed if there is any.
    pub failures: Vec<String>,
    /// Figures for the reader.
    pub notes: Vec<String>,
    pub recovery: Option<Duration>,
    pub limit: Option<Duration>,
    pub skipped: Option<String>,
    /// The last lines of the logs, if the case has failed.
    pub logs: Vec<String>,
}

/// Number of findings of one kind that are printed.
const SHOWN: usize = 5;

impl Report {
    pub fn new(findings: Findings, failures: Vec<String>) -> Self {
        let mut report = Self {
            failures,
            ..Self::default()
        };
        for (kind, found) in [
            ("wrong value", &findings.wrong_values),
            ("false absence", &findings.false_absences),
            ("lost mark", &findings.lost),
            ("contract", &findings.contract),
        ] {
            for finding in found.iter().take(SHOWN) {
                report.failures.push(format!("{kind}: {finding}"));
            }
            if found.len() > SHOWN {
                let more = found.len() - SHOWN;
                report.failures.push(format!("{kind}: and {more} more"));
            }
        }
        if findings.lost_in_failover > 0 {
            let lost = findings.lost_in_failover;
            report
                .notes
                .push(format!("{lost} acknowledged marks lost in failover"));
        }
        report.findings = findings;
        report
    }

    /// The report of a case without a history.
    pub fn of(failures: Vec<String>) -> Self {
        Self {
            failures,
            ..Self::default()
        }
    }

    /// Combines the reports of several runs into one.
    pub fn of_all(reports: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for report in reports {
            let Self {
                findings,
                written,
                failures,
                notes,
                recovery,
                limit,
                skipped,
                logs,
            } = report;
            all.findings.add(findings);
            all.written = all.written.or(written);
            all.failures.extend(failures);
            all.notes.extend(notes);
            all.recovery = all.recovery.max(recovery);
            all.limit = all.limit.max(limit);
            all.skipped = all.skipped.or(skipped);
            all.logs.extend(logs);
        }
        all
    }

    /// The report of a case that cannot run on this machine.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            skipped: Some(why.into()),
            ..Self::default()
        }
    }

    pub fn limit_recovery(&mut self, took: Option<Duration>, limit: Duration) {
        if let Some(took) = took
            && took > limit
        {
            self.failures.push(format!(
                "recovered in {} ms, over the limit of {} ms",
                took.as_millis(),
                limit.as_millis()
            ));
        }
        self.recovery = took;
        self.limit = Some(limit);
    }

    pub fn limit_overrun(&mut self, limit: Duration) {
        let longest = self.findings.longest_overrun;
        if longest > limit {
            self.failures.push(format!(
                "a call ended {} ms after its deadline",
                longest.as_millis()
            ));
        }
    }

    pub fn verdict(&self) -> &'static str {
        if self.skipped.is_some() {
            "SKIPPED"
        } else if self.failures.is_empty() {
            "ok"
        } else {
            "FAILED"
        }
    }

    /// The lines below the row: failures and figures.
    pub fn details(&self) -> String {
        let mut text = String::new();
        for (mark, lines) in [("!", &self.failures), ("-", &self.notes)] {
            for line in lines {
                // Writing to a String cannot fail.
                _ = writeln!(text, "    {mark} {line}");
            }
        }
        for log in &self.logs {
            _ = writeln!(text, "    log:\n      {log}");
        }
        if let Some(why) = &self.skipped {
            _ = writeln!(text, "    SKIPPED: {why}");
        }
        text
    }

    fn row(&self, name: &str) -> String {
        let millis = |time: Option<Duration>| {
            time.map_or_else(|| "-".to_owned(), |time| time.as_millis().to_string())
        };
        let Findings {
            calls,
            wrong_values,
            false_absences,
            lost,
            lost_in_failover,
            longest_overrun,
            ..
        } = &self.findings;
        let lost = match lost_in_failover {
            0 => lost.len().to_string(),
            excused => format!("{} ({excused})", lost.len()),
        };
        format!(
            "| {name:<44} | {calls:>6} | {:>5} | {:>7} | {lost:>7} | {:>7} | {:>7} | {:>5} | {:<7} |\n",
            wrong_values.len(),
            false_absences.len(),
            longest_overrun.as_millis(),
            millis(self.recovery),
            millis(self.limit),
            self.verdict(),
        )
    }
}

/// The table of all reports.
pub fn table<'a>(reports: impl Iterator<Item = (&'a str, &'a Report)>) -> String {
    let mut text = format!(
        "| {:<44} | {:>6} | {:>5} | {:>7} | {:>7} | {:>7} | {:>7} | {:>5} | {:<7} |\n",
        "fault", "calls", "wrong", "false", "lost", "overrun", "recover", "limit", "verdict"
    );
    _ = writeln!(
        text,
        "| {:<44} | {:>6} | {:>5} | {:>7} | {:>7} | {:>7} | {:>7} | {:>5} | {:<7} |",
        "", "", "value", "absence", "marks", "ms", "ms", "ms", ""
    );
    let mut several = String::new();
    let mut summaries = Vec::new();
    for (name, report) in reports {
        text.push_str(&report.row(name));
        if let Some(written) = &report.written {
            several.push_str(&written.row(name));
            summaries.push(written);
        }
    }
    if !several.is_empty() {
        text.push_str(Summary::TITLE);
        text.push_str(&several);
        let total = Summary::total(summaries.into_iter());
        text.push_str(&total.row("all without a failover"));
    }
    text
}

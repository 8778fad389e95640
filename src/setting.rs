//! What all settings share: the error of one setting, the usual checks, and the summary.
//!
//! The settings themselves stand beside what they set, each group in a file `settings.rs`.

use std::{
    fmt::{self, Write as _},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use thiserror::Error;

/// Why the value of a setting is refused.
#[derive(Debug, Error)]
#[error("--{setting}: {reason}")]
pub struct SettingError {
    setting: &'static str,
    reason: String,
}

impl SettingError {
    pub(crate) fn new(setting: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            setting,
            reason: reason.to_string(),
        }
    }
}

/// Refuses the setting unless `holds`.
pub(crate) fn check(setting: &'static str, holds: bool, reason: &str) -> Result<(), SettingError> {
    if holds {
        return Ok(());
    }
    Err(SettingError::new(setting, reason))
}

/// Refuses a number outside `range`.
pub(crate) fn within<T: PartialOrd + fmt::Display>(
    setting: &'static str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), SettingError> {
    let reason = format!("must be from {} to {}", range.start(), range.end());
    check(setting, range.contains(&value), &reason)
}

/// Refuses a duration outside `range`.
pub(crate) fn duration_within(
    setting: &'static str,
    value: Duration,
    range: RangeInclusive<Duration>,
) -> Result<(), SettingError> {
    let (min, max) = (readable(*range.start()), readable(*range.end()));
    let reason = format!("must be from {min} to {max}");
    check(setting, range.contains(&value), &reason)
}

/// A duration as the settings accept it. humantime's months have 30.44 days, and it would print a
/// year of 365 days as `11months 30days 3h 50m 24s`. This function prints more than a month in days.
pub(crate) fn readable(duration: Duration) -> String {
    const DAY: u64 = 86_400;
    let days = duration.as_secs() / DAY;
    if days <= 30 {
        return humantime::format_duration(duration).to_string();
    }
    let rest = duration - Duration::from_secs(days * DAY);
    if rest.is_zero() {
        return format!("{days}days");
    }
    format!("{days}days {}", humantime::format_duration(rest))
}

/// The settings in force, one `name = value` a line.
#[derive(Default)]
pub(crate) struct Summary(String);

impl Summary {
    pub(crate) fn add(&mut self, name: &str, value: impl fmt::Display) {
        // Writing to a String cannot fail.
        _ = writeln!(self.0, "{name} = {value}");
    }

    pub(crate) fn add_duration(&mut self, name: &str, value: Duration) {
        self.add(name, readable(value));
    }

    pub(crate) fn add_file(&mut self, name: &str, value: Option<&PathBuf>) {
        if let Some(file) = value {
            self.add(name, file.display());
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_duration_is_printed_in_days_and_can_be_read_again() {
        for (seconds, text) in [
            (90, "1m 30s"),
            (86_400, "1day"),
            (3_000_000, "34days 17h 20m"),
        ] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(readable(duration), text);
            assert_eq!(humantime::parse_duration(text), Ok(duration));
        }
    }
}

//! `dyndata watch`: prints a snapshot, and then each change. After a lost connection it connects
//! again, and prints a new snapshot.

use std::{
    collections::HashSet,
    convert::Infallible,
    mem,
    time::{Duration, Instant},
};

use clap::Args;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{
    error::CliError,
    render::{Output, entry_line, json_line, print_lines},
    target::Target,
};
use crate::proto::{Entry, WatchRequest, WatchResponse, watch_response::Kind};

/// The arguments of `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// The ids to watch
    #[arg(required_unless_present = "all")]
    ids: Vec<String>,
    /// Watch all ids of an indexed namespace
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    target: Box<Target>,
}

impl Watch {
    /// Runs until the server answers with an error that waiting does not help against. Ctrl-C ends
    /// the process.
    pub(super) async fn run(self) -> Result<(), CliError> {
        let Self { ids, all, target } = self;
        let request = WatchRequest {
            namespace: target.namespace.clone(),
            ids,
            all,
        };
        let mut report = Report::new(target.output);
        let mut backoff = Backoff::default();
        loop {
            let start = Instant::now();
            let Err(error) = follow(&target, &request, &mut report).await;
            // The first attempt fails at once, like every other command.
            if !report.has_snapshot || !may_pass(&error) {
                return Err(error);
            }
            if mem::take(&mut report.is_followed) {
                eprintln!("the watch has ended: {error}; connecting again");
            }
            tokio::time::sleep(backoff.next(start.elapsed())).await;
        }
    }
}

/// Prints what one stream has. Returns why the stream ended.
async fn follow(
    target: &Target,
    request: &WatchRequest,
    report: &mut Report,
) -> Result<Infallible, CliError> {
    let mut client = target.client().await?;
    let request = target.request_without_deadline(request.clone())?;
    let mut stream = client.watch(request).await?.into_inner();
    report.begin_stream();
    while let Some(message) = stream.message().await? {
        if report.begins_new_snapshot(&message) {
            eprintln!("a new snapshot follows");
        }
        print_lines(&report.lines(&message)?)?;
    }
    Err(Status::unavailable("the server has closed the stream").into())
}

/// Whether a new attempt may succeed, because the error is about the connection or the load.
fn may_pass(error: &CliError) -> bool {
    match error {
        CliError::Connect { .. } => true,
        CliError::Call(status) => {
            // A status with a cause was made by the client, because the connection broke.
            status.code() == Code::Unavailable
                || std::error::Error::source(&**status).is_some()
                || status.get_details_retry_info().is_some()
        }
        _ => false,
    }
}

/// The waits between attempts. They double up to a limit. A watch that has lasted longer than that
/// limit starts them anew.
#[derive(Debug, Default)]
struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The time to wait after a watch that lasted for `lasted`.
    fn next(&mut self, lasted: Duration) -> Duration {
        if lasted > MAX_WAIT {
            self.attempts = 0;
        }
        let wait = MIN_WAIT.saturating_mul(1 << self.attempts.min(16));
        self.attempts += 1;
        wait.min(MAX_WAIT)
    }
}

/// Makes lines of the messages of a watch.
///
/// The text has a line for each entry. After a new snapshot it also has a line for each id that was
/// marked before and is not in the snapshot. So the last line of an id is its state.
#[derive(Debug)]
struct Report {
    output: Output,
    /// The ids whose last line has a value.
    marked: HashSet<String>,
    /// The ids with a value in the snapshot that is being received.
    snapshot: HashSet<String>,
    /// Whether a part of the snapshot has come, and its last part has not.
    in_snapshot: bool,
    /// Whether any snapshot has begun.
    has_snapshot: bool,
    /// Whether a message has come since the last lost connection was reported.
    is_followed: bool,
}

impl Report {
    fn new(output: Output) -> Self {
        Self {
            output,
            marked: HashSet::new(),
            snapshot: HashSet::new(),
            in_snapshot: false,
            has_snapshot: false,
            is_followed: false,
        }
    }

    /// Forgets the part of a snapshot that the stream before has left.
    fn begin_stream(&mut self) {
        self.in_snapshot = false;
        self.marked.extend(self.snapshot.drain());
    }

    /// Whether this message begins a snapshot that is not the first.
    fn begins_new_snapshot(&self, message: &WatchResponse) -> bool {
        is_snapshot(message.kind()) && !self.in_snapshot && self.has_snapshot
    }

    /// The lines for one message. JSON has one line for each message.
    fn lines(&mut self, message: &WatchResponse) -> Result<Vec<String>, CliError> {
        self.is_followed = true;
        let kind = message.kind();
        if is_snapshot(kind) {
            self.has_snapshot = true;
            self.in_snapshot = kind == Kind::Snapshot;
        }
        match self.output {
            Output::Json => Ok(vec![json_line("WatchResponse", message)?]),
            Output::Text => Ok(self.text(message)),
        }
    }

    fn text(&mut self, message: &WatchResponse) -> Vec<String> {
        let kind = message.kind();
        for entry in &message.entries {
            match (&entry.value, kind) {
                (None, _) => {
                    self.marked.remove(&entry.id);
                    self.snapshot.remove(&entry.id);
                }
                (Some(_), Kind::Changes) => {
                    self.marked.insert(entry.id.clone());
                }
                (Some(_), _) => {
                    self.snapshot.insert(entry.id.clone());
                }
            }
        }
        let mut lines: Vec<String> = message.entries.iter().map(entry_line).collect();
        if kind == Kind::SnapshotEnd {
            let snapshot = mem::take(&mut self.snapshot);
            let before = mem::replace(&mut self.marked, snapshot);
            let mut gone: Vec<&String> = before.difference(&self.marked).collect();
            gone.sort_unstable();
            lines.extend(gone.into_iter().map(|id| {
                entry_line(&Entry {
                    id: id.clone(),
                    ..Entry::default()
                })
            }));
        }
        lines
    }
}

fn is_snapshot(kind: Kind) -> bool {
    matches!(kind, Kind::Snapshot | Kind::SnapshotEnd)
}

/// The wait before the second attempt.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::proto::entry::Value;

    fn message(kind: Kind, entries: &[(&str, Option<&str>)]) -> WatchResponse {
        let entries = entries.iter().map(|(id, value)| Entry {
            id: (*id).to_owned(),
            value: value.map(|text| Value::StringValue(text.to_owned())),
            expire_time: None,
        });
        WatchResponse {
            kind: kind.into(),
            entries: entries.collect(),
        }
    }

    fn lines(report: &mut Report, kind: Kind, entries: &[(&str, Option<&str>)]) -> Vec<String> {
        report.lines(&message(kind, entries)).expect("lines")
    }

    #[test]
    fn text_has_a_line_for_each_entry_and_none_for_alive() {
        let mut report = Report::new(Output::Text);
        for (kind, entries, expected) in [
            (Kind::Snapshot, &[("a", Some("1"))][..], &["a\t1"][..]),
            (
                Kind::SnapshotEnd,
                &[("b", None), ("c", Some("x"))],
                &["b\t(not marked)", "c\tx"],
            ),
            (Kind::Alive, &[], &[]),
            (
                Kind::Changes,
                &[("b", Some("2")), ("a", None)],
                &["b\t2", "a\t(not marked)"],
            ),
        ] {
            assert_eq!(lines(&mut report, kind, entries), expected);
        }
    }

    #[test]
    fn a_value_cannot_make_a_second_line() {
        let mut report = Report::new(Output::Text);
        let entries = [("a", Some("one\ntwo\tthree\u{1b}[2J"))];
        assert_eq!(
            lines(&mut report, Kind::Changes, &entries),
            ["a\tone\\ntwo\\tthree\\u{1b}[2J"]
        );
    }

    #[test]
    fn after_a_new_snapshot_the_last_line_of_each_id_is_its_state() {
        let mut report = Report::new(Output::Text);
        let first = [("a", Some("1")), ("b", Some("1")), ("c", Some("1"))];
        lines(&mut report, Kind::SnapshotEnd, &first);
        lines(&mut report, Kind::Changes, &[("d", Some("1")), ("c", None)]);
        // The connection breaks within a snapshot.
        report.begin_stream();
        lines(&mut report, Kind::Snapshot, &[("e", Some("1"))]);
        report.begin_stream();
        assert!(lines(&mut report, Kind::Snapshot, &[]).is_empty());
        assert_eq!(
            lines(&mut report, Kind::SnapshotEnd, &[("b", Some("2"))]),
            [
                "b\t2",
                "a\t(not marked)",
                "d\t(not marked)",
                "e\t(not marked)"
            ]
        );
        // What the snapshot says itself is said once.
        let absent = [("b", None)];
        assert_eq!(
            lines(&mut report, Kind::SnapshotEnd, &absent),
            ["b\t(not marked)"]
        );
        assert!(lines(&mut report, Kind::SnapshotEnd, &[]).is_empty());
    }

    #[test]
    fn only_a_snapshot_after_the_first_is_new() {
        let mut report = Report::new(Output::Json);
        for (begins_stream, kind, is_new) in [
            (true, Kind::Snapshot, false),
            (false, Kind::Snapshot, false),
            (false, Kind::SnapshotEnd, false),
            (false, Kind::Alive, false),
            (false, Kind::Changes, false),
            // The server has missed something.
            (false, Kind::Snapshot, true),
            (false, Kind::SnapshotEnd, false),
            (false, Kind::SnapshotEnd, true),
            (true, Kind::Snapshot, true),
            // The connection breaks within a snapshot.
            (true, Kind::SnapshotEnd, true),
        ] {
            if begins_stream {
                report.begin_stream();
            }
            let message = message(kind, &[]);
            assert_eq!(report.begins_new_snapshot(&message), is_new, "{kind:?}");
            report.lines(&message).expect("lines");
        }
    }

    #[test]
    fn json_has_one_line_for_each_message() {
        let mut report = Report::new(Output::Json);
        assert_eq!(
            lines(&mut report, Kind::Alive, &[]),
            [r#"{"kind":"KIND_ALIVE"}"#]
        );
        let entries = [("a", Some("1\n")), ("b", None)];
        assert_eq!(
            lines(&mut report, Kind::Changes, &entries),
            [r#"{"kind":"KIND_CHANGES","entries":[{"id":"a","stringValue":"1\n"},{"id":"b"}]}"#]
        );
    }

    #[test]
    fn only_errors_that_may_pass_are_followed_by_a_new_attempt() {
        let retry = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let reason = |reason| ErrorDetails::with_error_info(reason, "dyndata", []);
        for (code, details, expected) in [
            (Code::Unavailable, reason("SHUTTING_DOWN"), true),
            (Code::ResourceExhausted, retry, true),
            (Code::ResourceExhausted, reason("REPLY_TOO_LARGE"), false),
            (Code::PermissionDenied, reason("PERMISSION_DENIED"), false),
            (Code::FailedPrecondition, reason("NOT_INDEXED"), false),
            (Code::Internal, reason("INTERNAL"), false),
        ] {
            let status = Status::with_error_details(code, "no", details);
            assert_eq!(may_pass(&status.into()), expected, "{code:?}");
        }
        let broken = Status::from_error(std::io::Error::other("the socket is gone").into());
        assert!(may_pass(&broken.into()));
        assert!(!may_pass(&CliError::Usage("wrong".to_owned())));
    }

    #[test]
    fn waits_grow_up_to_a_limit_and_start_anew_after_a_long_watch() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next(MIN_WAIT)).collect();
        assert_eq!(waits[..3], [1, 2, 4].map(|factor| factor * MIN_WAIT));
        assert_eq!(waits[7], MAX_WAIT);
        for _ in 0..100 {
            assert_eq!(backoff.next(Duration::ZERO), MAX_WAIT);
        }
        assert_eq!(backoff.next(2 * MAX_WAIT), MIN_WAIT);
    }
}

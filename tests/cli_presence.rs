//! `dyndata count`, `list` and `watch` on the command line.

mod support;

use std::{
    io::{BufRead as _, BufReader, Read},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use support::{Dyndata, PATIENCE, TestServer, eventually, redis_server::signal};

const INDEXED: &str = "--indexed-namespaces=online";

fn dyndata(addr: &str, arguments: &[&str]) -> Command {
    // A shell starts what runs in its background without SIGINT, and `env` gives it back.
    let mut command = Command::new("env");
    command
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_dyndata")])
        .env_remove("REDIS_URL")
        .env("DYNDATA_ADDR", format!("http://{addr}"))
        .env("DYNDATA_NAMESPACE", "online")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end. Returns exit code, standard output and standard error.
fn call(addr: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = dyndata(addr, arguments).output().expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs a command that succeeds, and returns what it prints.
#[track_caller]
fn succeed(addr: &str, arguments: &[&str]) -> String {
    let (code, out, err) = call(addr, arguments);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}: {out}");
    out
}

/// A running `dyndata watch`, killed at the end of the test.
struct Watching {
    process: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Watching {
    fn start(addr: &str, arguments: &[&str]) -> Self {
        let mut process = dyndata(addr, &[&["watch"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        let out = lines(process.stdout.take().expect("piped"));
        let err = lines(process.stderr.take().expect("piped"));
        Self { process, out, err }
    }

    /// The next line of standard output.
    #[track_caller]
    fn line(&self) -> String {
        self.out.recv_timeout(PATIENCE).expect("a line")
    }

    #[track_caller]
    fn expect(&self, lines: &[&str]) {
        for line in lines {
            assert_eq!(self.line(), *line);
        }
    }

    /// The next line of standard error.
    #[track_caller]
    fn error(&self) -> String {
        self.err.recv_timeout(PATIENCE).expect("a line")
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.process.try_wait().expect("waits");
            status.is_some()
        });
        status.expect("a status")
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn count_prints_how_many_ids_are_marked() {
    let server = TestServer::start(&[INDEXED]);
    assert_eq!(succeed(&server.addr, &["count"]), "0\n");
    succeed(&server.addr, &["batch-mark", "a=1", "b=2", "c=3"]);
    assert_eq!(succeed(&server.addr, &["count"]), "3\n");
    assert_eq!(
        succeed(&server.addr, &["count", "--output", "json"]),
        "{\n  \"count\": \"3\"\n}\n"
    );
}

#[test]
fn list_prints_each_id_of_all_pages() {
    let server = TestServer::start(&[INDEXED]);
    assert_eq!(succeed(&server.addr, &["list"]), "");
    let ids: Vec<String> = (0..250).map(|number| format!("id {number:03}")).collect();
    let marks: Vec<String> = ids.iter().map(|id| format!("{id}=1")).collect();
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    succeed(&server.addr, &[&["batch-mark"], &marks[..]].concat());
    for page_size in ["1", "7", "1000"] {
        let list = ["list", "--page-size", page_size];
        let out = succeed(&server.addr, &list);
        let mut found: Vec<&str> = out
            .lines()
            .map(|line| line.split_once("\texpires 20").expect("an expiry").0)
            .collect();
        found.sort_unstable();
        assert_eq!(found, ids, "{page_size}");

        let out = succeed(&server.addr, &[&list[..], &["--output", "json"]].concat());
        let mut found: Vec<String> = out
            .lines()
            .map(|line| {
                let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert!(entry["expireTime"].is_string(), "{line}");
                entry["id"].as_str().expect("an id").to_owned()
            })
            .collect();
        found.sort_unstable();
        assert_eq!(found, ids, "{page_size}");
    }
}

#[test]
fn a_namespace_without_an_index_is_an_error() {
    let server = TestServer::start(&[]);
    for arguments in [&["count"][..], &["list"], &["watch", "--all"]] {
        let (code, out, err) = call(&server.addr, arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(err.ends_with("(NOT_INDEXED)\n"), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn watch_takes_ids_or_all_and_not_both() {
    for arguments in [&["watch"][..], &["watch", "a", "--all"]] {
        assert_eq!(call("127.0.0.1:1", arguments).0, Some(64), "{arguments:?}");
    }
}

#[test]
fn watch_prints_the_snapshot_and_then_each_change() {
    let server = TestServer::start(&[]);
    succeed(&server.addr, &["mark", "a", "one\ntwo"]);
    let watching = Watching::start(&server.addr, &["a", "b"]);
    let mut snapshot = [watching.line(), watching.line()];
    snapshot.sort_unstable();
    assert_eq!(snapshot, ["a\tone\\ntwo", "b\t(not marked)"]);
    succeed(&server.addr, &["mark", "b", "2", "--ttl", "1500ms"]);
    watching.expect(&["b\t2", "b\t(not marked)"]);
    // Another id, and the same value again, are no changes.
    succeed(&server.addr, &["mark", "c", "3"]);
    succeed(&server.addr, &["mark", "a", "one\ntwo"]);
    succeed(&server.addr, &["unmark", "a"]);
    watching.expect(&["a\t(not marked)"]);
    assert!(watching.err.try_recv().is_err());
}

#[test]
fn watch_all_prints_every_id_that_comes_and_goes() {
    let server = TestServer::start(&[INDEXED]);
    succeed(&server.addr, &["mark", "a", "1"]);
    let watching = Watching::start(&server.addr, &["--all"]);
    watching.expect(&["a\t1"]);
    succeed(&server.addr, &["mark", "b", "2"]);
    watching.expect(&["b\t2"]);
    succeed(&server.addr, &["unmark", "a"]);
    watching.expect(&["a\t(not marked)"]);
}

#[test]
fn watch_prints_messages_as_json_lines() {
    let server = TestServer::start(&[]);
    let watching = Watching::start(&server.addr, &["a", "--output", "json"]);
    watching.expect(&[r#"{"kind":"KIND_SNAPSHOT_END","entries":[{"id":"a"}]}"#]);
    succeed(&server.addr, &["mark", "a", "1"]);
    watching.expect(&[r#"{"kind":"KIND_CHANGES","entries":[{"id":"a","intValue":"1"}]}"#]);
    // It comes every ten seconds.
    let alive = watching.out.recv_timeout(2 * PATIENCE).expect("a line");
    assert_eq!(alive, r#"{"kind":"KIND_ALIVE"}"#);
}

#[tokio::test]
async fn watch_connects_again_and_says_that_a_new_snapshot_follows() {
    // A port that nobody else takes between the two servers.
    let addr = format!("127.0.0.1:{}", support::free_port());
    let listen = format!("--listen={addr}");
    let server = TestServer::start(&[&listen]);
    succeed(&addr, &["mark", "a", "1"]);
    let mut watching = Watching::start(&addr, &["a"]);
    watching.expect(&["a\t1"]);
    server.stop().await;
    let error = watching.error();
    assert!(error.starts_with("the watch has ended: "), "{error}");
    assert!(error.ends_with("; connecting again"), "{error}");
    // The embedded store starts empty.
    let server = TestServer::start(&[&listen]);
    assert_eq!(watching.error(), "a new snapshot follows");
    watching.expect(&["a\t(not marked)"]);
    succeed(&addr, &["mark", "a", "2"]);
    watching.expect(&["a\t2"]);

    // Ctrl-C.
    let pid = watching.process.id().to_string();
    let kill = Command::new("kill").args(["-INT", &pid]).status();
    assert!(kill.expect("kill runs").success());
    assert_eq!(watching.end().signal(), Some(2));
    server.stop().await;
}

/// The server stands still, so that nothing closes the connection.
#[test]
fn watch_connects_again_when_the_server_is_silent() {
    let server = Dyndata::start(&[]);
    succeed(&server.addr, &["mark", "a", "1", "--ttl", "1h"]);
    let watching = Watching::start(&server.addr, &["a"]);
    watching.expect(&["a\t1"]);
    signal(server.pid(), "STOP");
    let error = watching.err.recv_timeout(Duration::from_secs(35));
    let error = error.expect("a line within half a minute");
    assert!(error.starts_with("the watch has ended: "), "{error}");
    assert!(error.ends_with("; connecting again"), "{error}");
    signal(server.pid(), "CONT");
    assert_eq!(watching.error(), "a new snapshot follows");
    watching.expect(&["a\t1"]);
    succeed(&server.addr, &["mark", "a", "2"]);
    watching.expect(&["a\t2"]);
}

#[test]
fn watch_fails_at_once_if_the_first_connection_fails() {
    let port = support::free_port();
    let (code, out, err) = call(&format!("127.0.0.1:{port}"), &["watch", "a"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("error: cannot reach "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

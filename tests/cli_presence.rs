//! `dyndata count`, `list` and `watch` on the command line.

mod support;

use std::process::{Command, Stdio};

fn dyndata(addr: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dyndata"));
    command
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

#[test]
fn watch_takes_ids_or_all_and_not_both() {
    for arguments in [&["watch"][..], &["watch", "a", "--all"]] {
        assert_eq!(call("127.0.0.1:1", arguments).0, Some(64), "{arguments:?}");
    }
}

#[test]
fn watch_fails_at_once_if_the_first_connection_fails() {
    let port = support::free_port();
    let (code, out, err) = call(&format!("127.0.0.1:{port}"), &["watch", "a"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("error: cannot reach "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

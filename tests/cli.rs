//! The binary on the command line: client commands, exit codes, signals, `config check`.

mod support;

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    process::{Child, Command, Output, Stdio},
    time::Instant,
};

use support::{
    Directory, PATIENCE, Redis, TestServer,
    certificates::{Authority, Validity},
    eventually,
};

fn dyndata() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dyndata"));
    command.env_remove("REDIS_URL");
    command
}

fn run(arguments: &[&str]) -> Output {
    dyndata().args(arguments).output().expect("runs")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// Runs a client command against a server. Returns exit code, standard output and standard error.
fn call(server: &TestServer, arguments: &[&str]) -> (i32, String, String) {
    call_from(server, arguments, Stdio::null())
}

/// As [`call`], with this on standard input.
fn call_with_input(server: &TestServer, arguments: &[&str], input: &str) -> (i32, String, String) {
    let files = Directory::new();
    let file = std::fs::File::open(files.write("input", input)).expect("the input");
    call_from(server, arguments, file.into())
}

fn call_from(server: &TestServer, arguments: &[&str], input: Stdio) -> (i32, String, String) {
    let url = format!("http://{}", server.addr);
    let output = dyndata()
        .args(arguments)
        .env("DYNDATA_ADDR", url)
        .stdin(input)
        .output()
        .expect("runs");
    let code = output.status.code().expect("an exit code");
    (code, stdout(&output).to_owned(), stderr(&output).to_owned())
}

#[test]
fn mark_get_and_batch_get_work_from_the_command_line() {
    let server = TestServer::start(&[]);
    let (code, out, _) = call(&server, &["mark", "42", "100"]);
    assert_eq!(code, 0);
    assert!(out.starts_with("expires 20"), "{out}");
    assert_eq!(
        call(&server, &["get", "42"]),
        (0, "100\n".to_owned(), String::new())
    );
    assert_eq!(call(&server, &["get", "43"]).1, "(not marked)\n");
    assert_eq!(
        call(&server, &["batch-get", "43", "42"]).1,
        "43\t(not marked)\n42\t100\n"
    );
    assert_eq!(
        call(&server, &["health"]),
        (0, "SERVING\n".to_owned(), String::new())
    );
}

#[test]
fn values_have_the_type_that_they_look_like_or_are_said_to_have() {
    let server = TestServer::start(&[]);
    for (arguments, json) in [
        (&["-5"][..], r#""intValue": "-5""#),
        (&["007"], r#""stringValue": "007""#),
        (&["5", "--type", "string"], r#""stringValue": "5""#),
        (&["5", "--type", "bytes"], r#""bytesValue": "NQ==""#),
        (&["hello"], r#""stringValue": "hello""#),
        (&["--", "-x"], r#""stringValue": "-x""#),
    ] {
        let mut mark = vec!["mark", "id"];
        mark.extend(arguments);
        assert_eq!(call(&server, &mark).0, 0, "{arguments:?}");
        let (_, out, _) = call(&server, &["get", "id", "--output", "json"]);
        assert!(out.contains(json), "{arguments:?}: {out}");
    }
}

#[test]
fn bytes_are_taken_as_they_are() {
    let server = TestServer::start(&[]);
    let output = dyndata()
        .args(["mark", "id"])
        .arg(OsStr::from_bytes(b"\xff\x01"))
        .args([
            "--type",
            "bytes",
            "--addr",
            &format!("http://{}", server.addr),
        ])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(call(&server, &["get", "id"]).1, "\\xff\\x01\n");
}

#[test]
fn json_is_the_protobuf_mapping() {
    let server = TestServer::start(&[]);
    assert_eq!(call(&server, &["mark", "42", "100"]).0, 0);
    let entry = "{\n  \"entry\": {\n    \"id\": \"42\",\n    \"intValue\": \"100\"\n  }\n}\n";
    assert_eq!(call(&server, &["get", "42", "--output", "json"]).1, entry);
    let absent = "{\n  \"entry\": {\n    \"id\": \"43\"\n  }\n}\n";
    assert_eq!(
        call(&server, &["get", "43", "--output", "json"]),
        (0, absent.to_owned(), String::new())
    );
    let (_, out, _) = call(&server, &["get", "42", "--expire-time", "--output", "json"]);
    assert!(out.contains("\"expireTime\": \"20"), "{out}");
}

#[test]
fn unmark_removes_a_value_or_only_an_equal_one() {
    let server = TestServer::start(&[]);
    assert_eq!(call(&server, &["mark", "42", "100"]).0, 0);
    for (arguments, text) in [
        (&["unmark", "42", "--if-equal", "-100"][..], "not removed\n"),
        // The string "100" is not the number.
        (
            &["unmark", "42", "--if-equal", "100", "--type", "string"],
            "not removed\n",
        ),
        (&["unmark", "42", "--if-equal", "100"], "removed\n"),
        (&["unmark", "42"], "not removed\n"),
        (&["unmark", "42", "--output", "json"], "{}\n"),
    ] {
        let answer = call(&server, arguments);
        assert_eq!(answer, (0, text.to_owned(), String::new()), "{arguments:?}");
    }
    assert_eq!(call(&server, &["mark", "42", "100"]).0, 0);
    let (_, out, _) = call(&server, &["unmark", "42", "--output", "json"]);
    assert_eq!(out, "{\n  \"removed\": true\n}\n");
    assert_eq!(call(&server, &["get", "42"]).1, "(not marked)\n");
}

#[test]
fn batch_unmark_says_how_many_it_removed() {
    let server = TestServer::start(&[]);
    let items = ["batch-mark", "a=1", "b=2", "c=3"];
    for (output, text) in [
        ("text", "removed 2\n"),
        ("json", "{\n  \"removedCount\": 2\n}\n"),
    ] {
        assert_eq!(call(&server, &items).0, 0);
        let unmark = ["batch-unmark", "a", "absent", "c", "a", "--output", output];
        let answer = call(&server, &unmark);
        assert_eq!(answer, (0, text.to_owned(), String::new()), "{output}");
        let (_, left, _) = call(&server, &["batch-get", "a", "b", "c"]);
        assert_eq!(left, "a\t(not marked)\nb\t2\nc\t(not marked)\n");
    }
}

#[test]
fn batch_mark_takes_items_as_arguments() {
    let server = TestServer::start(&[]);
    let marks = ["batch-mark", "a=1", "b=two=2", "c=", "d=-4", "a=5"];
    let (code, out, err) = call(&server, &marks);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "marked 5, in 1 call\n");
    let (_, out, _) = call(&server, &["batch-get", "a", "b", "c", "d"]);
    assert_eq!(out, "a\t5\nb\ttwo=2\nc\t\nd\t-4\n");

    let typed = ["batch-mark", "a=5", "--type", "string", "--ttl", "1h"];
    assert_eq!(
        call(&server, &[&typed[..], &["--output", "json"]].concat()),
        (0, "{}\n".to_owned(), String::new())
    );
    let (_, out, _) = call(&server, &["get", "a", "--output", "json"]);
    assert!(out.contains(r#""stringValue": "5""#), "{out}");

    let small = ["batch-mark", "a=1", "b=2", "c=3", "--batch-size", "2"];
    assert_eq!(call(&server, &small).1, "marked 3, in 2 calls\n");
}

#[test]
fn batch_mark_reads_a_json_object_a_line_from_standard_input() {
    let server = TestServer::start(&[]);
    let mut lines = String::new();
    for number in 1..=1000 {
        lines += &format!("{{\"id\":\"id {number}\",\"intValue\":\"{number}\"}}\n");
        // Blank lines do not count as items.
        lines += if number % 100 == 0 { " \n" } else { "" };
    }
    lines += r#"{"id":"bytes","bytesValue":"AAE=","ttl":"1000.5s"}"#;
    let (code, out, err) = call_with_input(&server, &["batch-mark"], &lines);
    // No progress bar, because standard error is no terminal.
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "marked 1001, in 3 calls\n");
    let (_, out, _) = call(&server, &["batch-get", "id 1", "id 1000", "bytes"]);
    assert_eq!(out, "id 1\t1\nid 1000\t1000\nbytes\t\\x00\\x01\n");

    let batches_of_7 = ["batch-mark", "--batch-size", "7", "--output", "json"];
    let answer = call_with_input(&server, &batches_of_7, &lines);
    assert_eq!(answer, (0, "{}\n".to_owned(), String::new()));
    let answer = call_with_input(&server, &["batch-mark"], "");
    assert_eq!(answer.1, "marked 0, in 0 calls\n");
}

#[test]
fn an_item_on_standard_input_has_its_own_time_to_live_or_that_of_the_option() {
    let server = TestServer::start(&[]);
    let lines = r#"{"id":"own","intValue":"1","ttl":"3600s"}
        {"id":"option","intValue":"1"}"#;
    let mark = ["batch-mark", "--ttl", "2h"];
    assert_eq!(call_with_input(&server, &mark, lines).0, 0);
    let mut expires = Vec::new();
    for id in ["own", "option"] {
        let get = ["get", id, "--expire-time", "--output", "json"];
        let reply: serde_json::Value = serde_json::from_str(&call(&server, &get).1).expect("JSON");
        let time = reply["entry"]["expireTime"].as_str().expect("a time");
        expires.push(humantime::parse_rfc3339(time).expect("a time"));
    }
    let apart = expires[1].duration_since(expires[0]).expect("later");
    assert!((3500..3700).contains(&apart.as_secs()), "{apart:?}");
}

#[test]
fn a_bad_line_on_standard_input_is_named_by_its_number_and_what_is_wrong() {
    let server = TestServer::start(&[]);
    let good = r#"{"id":"42","intValue":"1"}"#;
    for (bad, what) in [
        ("42=1", "expected a map"),
        (r#"{"id":"42","intValue":"one"}"#, "invalid"),
        (
            r#"{"id":"42","value":"1"}"#,
            "unrecognized field name 'value'",
        ),
        (
            r#"{"id":"42","intValue":"1"} and more"#,
            "trailing characters at column 28",
        ),
        (r#"{"id":"42","intValue":"1""#, "EOF while parsing"),
    ] {
        let lines = format!("{good}\n\n{bad}\n{good}\n");
        let (code, out, err) = call_with_input(&server, &["batch-mark"], &lines);
        assert_eq!((code, out.as_str()), (64, ""), "{bad}: {err}");
        assert!(err.starts_with("error: line 3: "), "{bad}: {err}");
        assert!(err.contains(what), "{bad}: {err}");
        assert!(err.ends_with(" (nothing was marked)\n"), "{bad}: {err}");
        assert!(!err.contains("line 1"), "{bad}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    // Nothing of the call with the bad line is sent.
    assert_eq!(call(&server, &["get", "42"]).1, "(not marked)\n");
}

#[test]
fn a_bad_line_after_some_batches_says_how_many_items_are_marked() {
    let server = TestServer::start(&[]);
    let item = |id: usize| format!(r#"{{"id":"{id}","intValue":"1"}}"#);
    for (good, batch_size, marked, suffix) in [
        (1, "1", 1, " (1 item before was marked)\n"),
        (5, "2", 4, " (4 items before were marked)\n"),
        (5, "6", 0, " (nothing was marked)\n"),
    ] {
        let ids: Vec<String> = (0..good).map(|id| id.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        call(&server, &[&["batch-unmark"], &ids[..]].concat());
        let mut lines: Vec<String> = (0..good).map(item).collect();
        lines.push("no JSON".to_owned());
        let mark = ["batch-mark", "--batch-size", batch_size];
        let (code, out, err) = call_with_input(&server, &mark, &lines.join("\n"));
        assert_eq!((code, out.as_str()), (64, ""), "{err}");
        assert!(
            err.starts_with(&format!("error: line {}: ", good + 1)),
            "{err}"
        );
        assert!(err.ends_with(suffix), "{err}");
        let (_, found, _) = call(&server, &[&["batch-get"], &ids[..]].concat());
        assert_eq!(found.matches("\t1\n").count(), marked, "{found}");
    }
}

#[test]
fn a_line_that_is_not_utf_8_is_named_by_its_number() {
    let server = TestServer::start(&[]);
    let mut child = dyndata()
        .args(["batch-mark", "--addr", &server.addr])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut input = child.stdin.take().expect("standard input");
    input
        .write_all(b"{\"id\":\"42\",\"intValue\":\"1\"}\n\xff\n")
        .expect("writes");
    drop(input);
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(
        (stdout(&output), stderr(&output)),
        ("", "error: line 2: not UTF-8 (nothing was marked)\n")
    );
}

#[test]
fn a_wrong_argument_of_batch_mark_is_found_before_anything_is_sent() {
    let server = TestServer::start(&[]);
    let mark = ["batch-mark", "--batch-size", "1", "a=1", "b"];
    let (code, out, err) = call(&server, &mark);
    assert_eq!((code, out.as_str()), (64, ""));
    assert_eq!(err, "error: b: not of the form ID=VALUE\n");
    assert_eq!(call(&server, &["get", "a"]).1, "(not marked)\n");
}

#[test]
fn a_refused_batch_says_how_many_items_are_marked_already() {
    let server = TestServer::start(&["--max-value-bytes", "10"]);
    let mark = ["batch-mark", "a=1", "b=2", "c=much too long", "d=4"];
    for (batch_size, suffix) in [
        ("1", "(VALUE_TOO_LARGE) (2 items before were marked)\n"),
        ("2", "(VALUE_TOO_LARGE) (2 items before were marked)\n"),
        ("4", "(VALUE_TOO_LARGE)\n"),
    ] {
        call(&server, &["batch-unmark", "a", "b"]);
        let arguments = [&mark[..], &["--batch-size", batch_size]].concat();
        let (code, out, err) = call(&server, &arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.starts_with("error: InvalidArgument: "), "{err}");
        assert!(err.ends_with(suffix), "{err}");
        let found = match batch_size {
            "4" => "a\t(not marked)\nb\t(not marked)\nd\t(not marked)\n",
            _ => "a\t1\nb\t2\nd\t(not marked)\n",
        };
        assert_eq!(call(&server, &["batch-get", "a", "b", "d"]).1, found);
    }
}

#[test]
fn mark_if_says_what_it_wrote_or_what_is_still_there() {
    let server = TestServer::start(&[]);
    for (arguments, start, end) in [
        (
            &["7", "--if-present"][..],
            "not written, still (not ",
            "marked)",
        ),
        (
            &["7", "--if-absent"],
            "expires 20",
            "previously (not marked)",
        ),
        (&["8", "--if-absent"], "not written, ", "still 7"),
        (&["8", "--if-present"], "expires 20", "previously 7"),
        (&["9", "--if-equal", "7"], "not written, ", "still 8"),
        (&["-9", "--if-equal", "8"], "expires 20", "previously 8"),
        (&["x", "--ttl", "1h"], "expires 20", "previously -9"),
    ] {
        let (code, out, err) = call(&server, &[&["mark-if", "42"], arguments].concat());
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}");
        let line = out.trim_end();
        assert!(line.starts_with(start), "{arguments:?}: {out}");
        assert!(line.ends_with(end), "{arguments:?}: {out}");
    }
    assert_eq!(call(&server, &["get", "42"]).1, "x\n");

    let absent = ["mark-if", "42", "y", "--if-absent", "--output", "json"];
    let held = "{\n  \"previous\": {\n    \"id\": \"42\",\n    \"stringValue\": \"x\"\n  }\n}\n";
    assert_eq!(call(&server, &absent).1, held);
    let (_, out, _) = call(&server, &["mark-if", "42", "y", "--output", "json"]);
    assert!(out.contains("\"applied\": true"), "{out}");
    assert!(out.contains("\"expireTime\": \"20"), "{out}");
}

#[test]
fn touch_prints_each_id_with_its_value_and_new_expiry() {
    let server = TestServer::start(&[]);
    assert_eq!(call(&server, &["mark", "42", "100"]).0, 0);
    let (code, out, err) = call(&server, &["touch", "42", "43", "--ttl", "1h"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 2, "{out}");
    assert!(lines[0].starts_with("42\t100\t(expires 20"), "{out}");
    assert_eq!(lines[1], "43\t(not marked)");

    let (_, out, _) = call(&server, &["touch", "43", "42", "--output", "json"]);
    let reply: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(reply["entries"][0], serde_json::json!({"id": "43"}));
    assert_eq!(reply["entries"][1]["intValue"], "100");
    assert!(reply["entries"][1]["expireTime"].is_string(), "{out}");
}

#[test]
fn incr_prints_the_number_or_why_it_is_not_written() {
    let server = TestServer::start(&[]);
    for (arguments, text) in [
        (&[][..], "1\n"),
        (&["5"], "6\n"),
        (&["-10"], "-4\n"),
        (&["0", "--keep-ttl"], "-4\n"),
        (&["--", "-1"], "-5\n"),
    ] {
        let answer = call(&server, &[&["incr", "42"], arguments].concat());
        assert_eq!(answer, (0, text.to_owned(), String::new()), "{arguments:?}");
    }
    for bound in [&["1", "--max", "-5"][..], &["-1", "--min", "-5"]] {
        let (code, out, _) = call(&server, &[&["incr", "42"], bound].concat());
        assert_eq!(code, 0, "{bound:?}");
        assert!(
            out.starts_with("not written, still -5, expires 20"),
            "{bound:?}: {out}"
        );
    }
    let (_, out, _) = call(&server, &["incr", "42", "7", "--output", "json"]);
    let reply: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(reply["applied"], true);
    assert_eq!(reply["value"], "2");
    assert!(reply["expireTime"].is_string(), "{out}");

    assert_eq!(call(&server, &["mark", "text", "one"]).0, 0);
    let (code, _, err) = call(&server, &["incr", "text"]);
    assert_eq!(code, 1);
    assert!(err.starts_with("error: FailedPrecondition: "), "{err}");
    assert!(err.ends_with("(NOT_AN_INTEGER)\n"), "{err}");
}

#[test]
fn namespaces_are_an_option_of_every_command() {
    let server = TestServer::start(&[]);
    assert_eq!(
        call(&server, &["mark", "42", "7", "--namespace", "orders"]).0,
        0
    );
    assert_eq!(
        call(&server, &["get", "42", "--namespace", "orders"]).1,
        "7\n"
    );
    assert_eq!(call(&server, &["get", "42"]).1, "(not marked)\n");
    let (_, out, _) = call(&server, &["batch-get", "42", "--namespace", "orders"]);
    assert_eq!(out, "42\t7\n");
    for (arguments, text) in [
        (&["incr", "42"][..], "8\n"),
        (
            &["mark-if", "42", "9", "--if-absent"],
            "not written, still 8\n",
        ),
        (&["batch-mark", "43=1"], "marked 1, in 1 call\n"),
        (&["batch-unmark", "42", "43"], "removed 2\n"),
        (&["unmark", "42"], "not removed\n"),
        (&["touch", "42"], "42\t(not marked)\n"),
    ] {
        let in_orders = [arguments, &["--namespace", "orders"]].concat();
        assert_eq!(call(&server, &in_orders).1, text, "{arguments:?}");
    }
}

#[test]
fn an_address_without_a_scheme_is_understood_by_every_client_command() {
    let server = TestServer::start(&["--listen=localhost:0"]);
    let port = server.addr.strip_prefix("127.0.0.1:").expect("localhost");
    for host in ["127.0.0.1", "localhost"] {
        let addr = format!("{host}:{port}");
        for command in [
            &["mark", "42", "7"][..],
            &["get", "42"],
            &["batch-get", "42"],
            &["health"],
        ] {
            let output = run(&[command, &["--addr", &addr]].concat());
            assert!(output.status.success(), "{command:?} {addr}: {output:?}");
        }
    }
    let addr = format!("http://{}", server.addr);
    assert!(run(&["health", "--addr", &addr]).status.success());
}

#[test]
fn an_address_without_a_scheme_means_tls_where_files_for_tls_are_given() {
    let (files, authority) = (Directory::new(), Authority::new());
    let identity = authority.issue("localhost", Validity::Now);
    let ca = files.write("ca.pem", &authority.pem);
    let cert = format!("--tls-cert={}", files.write("cert.pem", &identity.cert));
    let key = format!("--tls-key={}", files.write("key.pem", &identity.key));
    let server = TestServer::start(&[&cert, &key]);
    let port = server.addr.strip_prefix("127.0.0.1:").expect("an address");
    let addr = format!("localhost:{port}");
    let with_ca = run(&["health", "--addr", &addr, "--tls-ca", &ca]);
    assert!(with_ca.status.success(), "{with_ca:?}");
    assert!(!run(&["health", "--addr", &addr]).status.success());
}

#[test]
fn a_failed_call_is_one_line_with_code_message_and_reason() {
    let server = TestServer::start(&[]);
    for arguments in [&["get", ""][..], &["mark", "42", "1", "--ttl", "48h"]] {
        let (code, out, err) = call(&server, arguments);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.starts_with("error: InvalidArgument: "), "{err}");
        assert!(
            err.ends_with("_INVALID)\n") || err.ends_with("TTL_OUT_OF_RANGE)\n"),
            "{err}"
        );
        assert_eq!(err.lines().count(), 1);
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let addr = format!("http://127.0.0.1:{}", support::free_port());
    let output = run(&["get", "42", "--addr", &addr]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&addr), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn wrong_usage_exits_64_and_wrong_settings_78() {
    let long_path = format!("unix:/{}", "p".repeat(107));
    for arguments in [
        &["frobnicate"][..],
        &["mark", "42"],
        &["serve", "--frobnicate"],
        &["serve", "--max-ttl", "soon"],
        &["mark", "42", "x", "--type", "int"],
        &["mark-if", "42", "1", "--if-absent", "--if-present"],
        &["mark-if", "42", "1", "--if-absent", "--if-equal", "1"],
        &["unmark", "42", "--type", "int"],
        &["unmark"],
        &["batch-unmark"],
        &["batch-mark", "42=1", "--batch-size", "0"],
        &["touch"],
        &["incr"],
        &["incr", "42", "one"],
        &["get", "42", "--addr", "grpcs://localhost:1"],
        &["get", "42", "--addr", "tls://localhost:1"],
        &["get", "42", "--addr", "ftp://localhost:1"],
        &["get", "42", "--addr", "://localhost:1"],
        &["get", "42", "--addr", "http://x:1", "--tls-ca", "ca.pem"],
        &["get", "42", "--addr", "HTTP://x:1", "--tls-ca", "ca.pem"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(64), "{arguments:?}");
    }
    for arguments in [
        &["serve", "--max-batch", "0"][..],
        &["config", "check", "--redis-url", "http://x"],
        &["config", "check", "--default-ttl", "48h"],
        &["config", "check", "--admin-listen", "127.0.0.1:50051"],
        &["config", "check", "--reflection", "authenticated"],
        &["config", "check", "--listen", &long_path],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        assert!(
            stderr(&output).contains(arguments[arguments.len() - 2]),
            "{output:?}"
        );
    }
}

#[test]
fn config_check_prints_what_is_in_force_without_secrets() {
    let output = dyndata()
        .args(["config", "check", "--max-batch", "7"])
        .env("REDIS_URL", "redis://user:canary@redis.example:1234/5")
        .env("DYNDATA_DEFAULT_TTL", "90s")
        .output()
        .expect("runs");
    let out = stdout(&output);
    assert!(output.status.success(), "{output:?}");
    for line in [
        "redis-url = redis://user:***@redis.example:1234/5",
        "max-batch = 7",
        "default-ttl = 1m 30s",
        "listen = 127.0.0.1:50051",
    ] {
        assert!(out.lines().any(|have| have == line), "{line}: {out}");
    }
    assert!(!format!("{output:?}").contains("canary"));
}

#[test]
fn help_version_completions_and_man_page_are_there() {
    assert!(stdout(&run(&["--version"])).starts_with("dyndata "));
    assert!(stdout(&run(&["--help"])).contains("batch-get"));
    assert!(!stdout(&run(&["serve", "--help"])).is_empty());
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            stdout(&run(&["completions", shell])).contains("batch-get"),
            "{shell}"
        );
    }
    assert!(stdout(&run(&["man"])).contains(".TH dyndata "));
    let page = run(&["man", "token", "new"]);
    assert!(stdout(&page).contains(".TH dyndata-token-new "));
    assert!(stdout(&page).contains("namespace"));
    assert_eq!(run(&["man", "no-such"]).status.code(), Some(64));
}

/// A process of `dyndata serve`, killed at the end of the test.
struct Serving {
    process: Child,
    log: std::sync::mpsc::Receiver<String>,
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// Starts with more environment variables.
    fn start_in(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let listen = match arguments.contains(&"--listen") {
            true => &[][..],
            false => &["--listen", "127.0.0.1:0"],
        };
        Self::start_with(|command| {
            command
                .args(listen)
                .args(arguments)
                .envs(environment.iter().copied());
        })
    }

    /// Starts with what `prepare` adds to the command.
    fn start_with(prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = dyndata();
        command.args(["serve", "--admin-listen", "off"]);
        prepare(&mut command);
        let mut process = command.stderr(Stdio::piped()).spawn().expect("runs");
        let (lines, log) = std::sync::mpsc::channel();
        let stderr = BufReader::new(process.stderr.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, log }
    }

    /// The next line of the log that contains `part`.
    fn line(&self, part: &str) -> String {
        let start = Instant::now();
        loop {
            let line = self.log.recv_timeout(PATIENCE).expect("a line of the log");
            if line.contains(part) {
                return line;
            }
            assert!(start.elapsed() < PATIENCE, "never logged: {part}");
        }
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the process ends", || {
            status = self.process.try_wait().expect("waits");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[test]
fn serve_says_what_a_person_needs_to_know() {
    let redis = Redis::start();
    let url = format!("redis://:canary@127.0.0.1:{}", redis.port);
    let mut serving = Serving::start(&["--redis-url", &url]);
    let store = serving.line("store");
    assert!(
        store.contains(":***@127.0.0.1") && !store.contains("canary"),
        "{store}"
    );
    let listening = serving.line("serving gRPC on 127.0.0.1:");
    assert!(!listening.contains(":0 "), "the bound port: {listening}");
    assert!(
        serving
            .line("try: grpcurl")
            .contains("dyndata.v1.DynData/Mark")
    );
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));

    let mut embedded = Serving::start(&[]);
    let warning = embedded.line("WARN");
    assert!(warning.contains("lost on exit"), "{warning}");
    embedded.signal("-INT");
    assert_eq!(embedded.exit_code(), Some(0));
}

#[test]
fn the_log_can_be_json() {
    let serving = Serving::start(&["--log-format", "json"]);
    let line = serving.line("serving gRPC");
    let parsed: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(parsed["level"], "INFO");
}

#[test]
fn the_hint_at_the_start_is_printed_only_where_it_works() {
    let (files, authority) = (Directory::new(), Authority::new());
    let identity = authority.issue("localhost", Validity::Now);
    let ca = files.write("ca.pem", &authority.pem);
    let cert = files.write("cert.pem", &identity.cert);
    let key = files.write("key.pem", &identity.key);
    let access = files.write(
        "access.toml",
        &format!(
            "[[caller]]\nname = \"orders\"\ntoken_sha256 = \"{}\"\nallow = [\"read\"]\nnamespaces = [\"*\"]\n",
            support::sha256_hex(support::CANARY)
        ),
    );
    let tls = ["--tls-cert", &cert, "--tls-key", &key];
    let unix = format!("unix:{}", files.path("hint.sock"));
    for (arguments, hinted) in [
        (&[][..], true),
        (&["--listen", &unix], true),
        (&[&tls[..], &["--listen", &unix]].concat(), true),
        (&["--reflection", "off"], false),
        (&["--access-file", &access], false),
        (&tls, false),
        (&[&tls[..], &["--tls-client-ca", &ca]].concat(), false),
    ] {
        let mut serving = Serving::start(arguments);
        let mut lines = Vec::new();
        while lines
            .last()
            .is_none_or(|line: &String| !line.contains("health: ready"))
        {
            lines.push(serving.line(""));
        }
        let hints = lines.iter().any(|line| line.contains("try: grpcurl"));
        assert_eq!(hints, hinted, "{arguments:?}: {lines:#?}");
        serving.signal("-TERM");
        assert_eq!(serving.exit_code(), Some(0));
    }
}

#[test]
fn the_hint_names_a_unix_socket_by_its_whole_path() {
    let files = Directory::new();
    for (name, hinted) in [("hint.sock", true), ("its hint.sock", false)] {
        let directory = files.path("");
        let mut serving = Serving::start_with(|command| {
            command.current_dir(&directory);
            command.args(["--listen", &format!("unix:{name}")]);
        });
        let mut lines = vec![serving.line("serving gRPC")];
        while !lines
            .last()
            .is_some_and(|line| line.contains("health: ready"))
        {
            lines.push(serving.line(""));
        }
        let hint = lines.iter().find(|line| line.contains("try: grpcurl"));
        assert_eq!(hint.is_some(), hinted, "{name}: {lines:#?}");
        if let Some(hint) = hint {
            let target = format!(" unix://{} ", files.path(name));
            assert!(hint.contains(&target), "{target}: {hint}");
        }
        serving.signal("-TERM");
        assert_eq!(serving.exit_code(), Some(0));
    }
}

#[test]
fn a_second_signal_ends_the_shutdown_delay_and_a_third_the_process() {
    let mut serving = Serving::start(&["--shutdown-delay", "60s", "--drain-timeout", "60s"]);
    let _stopped = silent_peer(&serving);
    serving.signal("-TERM");
    serving.line("shutting down");
    serving.signal("-TERM");
    serving.line("draining");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(1));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut serving = Serving::start(&["--drain-timeout", "60s"]);
    let _stopped = silent_peer(&serving);
    serving.signal("-TERM");
    serving.line("draining");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(1));
}

/// A peer that never answers the GOAWAY, so that the drain has to wait.
fn silent_peer(serving: &Serving) -> std::net::TcpStream {
    let listening = serving.line("serving gRPC on ");
    let addr = listening
        .split("serving gRPC on ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let mut peer = std::net::TcpStream::connect(addr.expect("an address")).expect("connects");
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .expect("writes");
    peer.read_exact(&mut [0]).expect("the server's settings");
    peer
}

#[test]
fn an_address_in_use_is_said_and_exits_1() {
    let server = TestServer::start(&[]);
    let output = run(&["serve", "--listen", &server.addr, "--admin-listen", "off"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&server.addr), "{output:?}");
}

#[test]
fn a_redis_behind_tls_is_reached_if_its_certificate_is_trusted() {
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("signs");
    let files = Directory::new();
    let cert = files.write("cert.pem", &certificate.cert.pem());
    let key = files.write("key.pem", &certificate.signing_key.serialize_pem());
    let port = support::free_port();
    let tls_port = port.to_string();
    let mut arguments = vec!["--tls-port", &tls_port, "--tls-auth-clients", "no"];
    arguments.extend(["--tls-cert-file", &cert, "--tls-key-file", &key]);
    arguments.extend(["--tls-ca-cert-file", &cert]);
    let _redis = Redis::start_with(&arguments);
    let url = format!("rediss://localhost:{port}");

    let serving = Serving::start_in(&["--redis-url", &url], &[("SSL_CERT_FILE", &cert)]);
    let listening = serving.line("serving gRPC on ");
    serving.line("health: ready");
    let addr = listening
        .split("serving gRPC on ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let addr = format!("http://{}", addr.expect("an address"));
    // More than one TLS record, in both directions.
    let value = "x".repeat(60_000);
    assert!(
        run(&["mark", "42", &value, "--addr", &addr])
            .status
            .success()
    );
    assert_eq!(
        stdout(&run(&["get", "42", "--addr", &addr])).trim_end(),
        value
    );

    let refusing = Serving::start(&["--redis-url", &url]);
    let reason = refusing.line("redis cannot serve");
    assert!(reason.contains("certificate"), "{reason}");
}

//! No secret appears in any output, log or admin page of the program, even at the most verbose log
//! level.

mod support;

use std::process::{Command, Stdio};

use support::{
    CANARY, Directory, Dyndata, Redis, assert_no_secret,
    certificates::{Authority, Validity},
    free_port, sha256_hex,
};

/// Runs `dyndata` to its end, with the most verbose log. Returns all output.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_dyndata"))
        .args(arguments)
        .env_remove("REDIS_URL")
        .env("RUST_LOG", "trace")
        .envs(environment.iter().copied())
        .output()
        .expect("runs");
    let [stdout, stderr] = [output.stdout, output.stderr].map(String::from_utf8);
    stdout.expect("UTF-8") + &stderr.expect("UTF-8")
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what}: no output to check");
    assert_no_secret(what, text);
}

#[test]
fn errors_about_settings_show_no_secret() {
    let files = Directory::new();
    let secret = files.write("secret", CANARY);
    let access = files.write(
        "access.toml",
        &format!("[[caller]]\nname = \"a\"\ntoken = \"{CANARY}\""),
    );
    let token = files.write("token.toml", &format!("token = {CANARY}"));
    let url = format!("redis://user:{CANARY}@localhost");
    let wrong_url = format!("http://:{CANARY}@localhost");
    let list = format!("redis://:{CANARY}@a,rediss://:{CANARY}@b");
    for arguments in [
        vec!["--redis-url", &url, "--redis-password-file", &secret],
        vec!["--redis-url", &wrong_url],
        vec!["--redis-url", &list, "--redis-mode=cluster"],
        vec!["--redis-url", &url, "--workers=0"],
        vec!["--redis-url", &url, "--no-such-flag"],
        vec!["--access-file", &access],
        vec!["--access-file", &token],
        vec!["--tls-cert", &secret, "--tls-key", &secret],
        vec!["--redis-url", &url],
        vec!["--redis-url", &url, "--redis-mode=sentinel"],
    ] {
        for command in [&["config", "check"][..], &["serve", "--help"]] {
            let text = run(&[command, &arguments].concat(), &[]);
            assert_clean(&arguments.join(" "), &text);
        }
        let environment = [("REDIS_URL", &*url), ("DYNDATA_ACCESS_FILE", &access)];
        assert_clean("environment", &run(&["config", "check"], &environment));
        assert_clean("help", &run(&["serve", "--help"], &environment));
    }
}

#[test]
fn a_running_server_shows_no_secret() {
    let files = Directory::new();
    let authority = Authority::new();
    let identity = authority.issue("localhost", Validity::Now);
    let ca = files.write("ca.pem", &authority.pem);
    let cert = files.write("cert.pem", &identity.cert);
    let key = files.write("key.pem", &identity.key);
    let token = files.write("token", &format!("dyn_{CANARY}\n"));
    let wrong_token = files.write("wrong-token", &format!("wrong-{CANARY}\n"));
    let hash = sha256_hex(&format!("dyn_{CANARY}"));
    let access = files.write(
        "access.toml",
        &format!(
            "[[caller]]\nname = \"a\"\ntoken_sha256 = \"{hash}\"\nallow = [\"write\"]\nnamespaces = [\"\"]"
        ),
    );
    let password = files.write("password", CANARY);
    let redis = Redis::start_with(&["--requirepass", CANARY]);
    let (port, admin_port) = (free_port(), free_port());
    let listen = format!("127.0.0.1:{port}");
    let admin = format!("127.0.0.1:{admin_port}");
    let url = redis.url();
    let log = std::fs::File::create(files.path("log")).expect("a file");
    let mut server = Command::new(env!("CARGO_BIN_EXE_dyndata"))
        .args(["serve", "--listen", &listen, "--admin-listen", &admin])
        .args([
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--access-file",
            &access,
        ])
        .args(["--redis-url", &url, "--redis-password-file", &password])
        .env("RUST_LOG", "trace")
        .stderr(Stdio::from(log))
        .spawn()
        .expect("runs");
    let get = |path: &str| {
        use std::io::{Read as _, Write as _};
        let mut socket = std::net::TcpStream::connect(&admin).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut reply = String::new();
        socket.read_to_string(&mut reply).ok()?;
        Some(reply)
    };
    support::eventually("the server is ready", || {
        get("/readyz").is_some_and(|reply| reply.contains(" 200 "))
    });

    let addr = format!("https://localhost:{port}");
    let mut written = String::new();
    for arguments in [
        // Ids and values are private too.
        vec!["mark", "42", CANARY, "--token-file", &token],
        vec!["mark", CANARY, "7", "--token-file", &token],
        vec!["get", "42", "--token-file", &token],
        vec!["get", "42", "--token-file", &wrong_token],
        vec!["get", "42"],
    ] {
        let how = ["--addr", &addr, "--tls-ca", &ca];
        written += &run(&[&arguments[..], &how].concat(), &[]);
    }
    // With a wrong password, the error of Redis is logged.
    files.write("password", &format!("not-{CANARY}"));
    redis.use_password(CANARY);
    redis.try_to(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    support::eventually("the server is not ready", || {
        get("/readyz").is_some_and(|reply| reply.contains(" 503 "))
    });
    for path in ["/metrics", "/readyz", "/livez", "/"] {
        written += &get(path).expect("answers");
    }
    let kill = Command::new("kill").arg(server.id().to_string()).status();
    assert!(kill.expect("kill runs").success());
    assert!(server.wait().expect("ends").success());
    assert!(written.contains("expires"), "a Mark was made: {written}");
    assert_clean("clients and admin endpoints", &written);
    let log = std::fs::read_to_string(files.path("log")).expect("a log");
    assert!(log.contains("TRACE"), "the log is not verbose");
    assert_clean("the log", &log);
}

/// Redis quotes the arguments of a command that it does not have.
#[test]
fn what_redis_quotes_of_a_command_is_not_logged() {
    let redis = Redis::start_with(&["--rename-command", "SET", ""]);
    let server = Dyndata::on(&redis.url(), &[]);
    let addr = format!("http://{}", server.addr);
    let arguments = ["mark", CANARY, CANARY, "--namespace", "orders"];
    let text = run(&[&arguments[..], &["--addr", &addr]].concat(), &[]);
    assert!(text.contains("INTERNAL"), "{text}");
    let log = server.log();
    assert!(log.contains("unknown command"), "{log}");
    assert!(!log.contains("orders"), "{log}");
    assert_clean("the log", &log);
}

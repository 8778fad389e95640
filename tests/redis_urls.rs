//! Redis URLs: all forms that the docs list, on a real server, and URLs that are refused.

mod support;

use std::process::Command;

use support::{
    CANARY, Directory, Redis, TestServer, assert_no_secret,
    certificates::{Authority, Validity},
    eventually, free_port, int, mark,
};

/// A password that has to be percent-encoded, and its encoded form.
const PASSWORD: &str = "p@ss:w/rd?#%+&=,[é";
const ENCODED: &str = "p%40ss%3Aw%2Frd%3F%23%25%2B%26%3D%2C%5B%C3%A9";

/// A Redis with a user `app`, whose password is [`PASSWORD`].
fn redis_with_user(arguments: &[&str]) -> Redis {
    let redis = Redis::start_with(arguments);
    let password = format!(">{PASSWORD}");
    redis::cmd("ACL")
        .arg(&["SETUSER", "app", "on", &password, "~*", "+@all"])
        .exec(&mut redis.connect())
        .expect("ACL SETUSER");
    redis
}

/// Starts a server with these flags, marks a value, and looks for the value in this database.
async fn assert_served(redis: &Redis, db: i64, user: &str, arguments: &[&str]) {
    let server = TestServer::start(arguments);
    server.ready().await;
    let mut client = server.client().await;
    client.mark(mark("42", int(100))).await.expect("marks");

    let mut connection = redis.connect();
    let clients: String = redis::cmd("CLIENT")
        .arg("LIST")
        .query(&mut connection)
        .expect("CLIENT LIST");
    let (db_field, user_field) = (format!(" db={db} "), format!(" user={user} "));
    let logged_in = clients
        .lines()
        .filter(|line| line.contains(&db_field) && line.contains(&user_field))
        .count();
    // One connection for each worker. The connection of the test has no such user or database.
    assert!(logged_in >= 2, "{arguments:?}: {clients}");
    redis::cmd("SELECT")
        .arg(db)
        .exec(&mut connection)
        .expect("SELECT");
    let value: Option<String> = redis::cmd("GETDEL")
        .arg("dyn_data/42")
        .query(&mut connection)
        .expect("GETDEL");
    assert_eq!(value.as_deref(), Some("100"), "{arguments:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_tcp_address_may_have_user_password_and_database() {
    let redis = redis_with_user(&[]);
    let port = redis.port;
    for (url, db, user) in [
        (format!("redis://127.0.0.1:{port}"), 0, "default"),
        (format!("redis://localhost:{port}/"), 0, "default"),
        (format!("redis://localhost:{port}/3"), 3, "default"),
        (
            format!("redis://app:{ENCODED}@127.0.0.1:{port}/3"),
            3,
            "app",
        ),
        (
            format!(" redis://app:{ENCODED}@127.0.0.1:{port}\n"),
            0,
            "app",
        ),
    ] {
        assert_served(&redis, db, user, &[&format!("--redis-url={url}")]).await;
    }
    let files = Directory::new();
    let file = files.write("password", &format!("{PASSWORD}\n"));
    let arguments = [
        &*format!("--redis-url=redis://app@127.0.0.1:{port}/3"),
        &*format!("--redis-password-file={file}"),
    ];
    assert_served(&redis, 3, "app", &arguments).await;

    redis::cmd("CONFIG")
        .arg(&["SET", "requirepass", CANARY])
        .exec(&mut redis.connect())
        .expect("CONFIG SET");
    // Only readiness is checked, because the connections of the test send no password.
    let server = TestServer::start(&[&format!("--redis-url=redis://:{CANARY}@127.0.0.1:{port}/3")]);
    server.ready().await;
    server.stop().await;
}

#[tokio::test]
async fn an_ipv6_address_stands_in_brackets() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        // This machine has no IPv6.
        return;
    }
    let redis = redis_with_user(&["--bind", "127.0.0.1", "::1"]);
    let url = format!("--redis-url=redis://app:{ENCODED}@[::1]:{}/3", redis.port);
    assert_served(&redis, 3, "app", &[&url]).await;
}

#[tokio::test]
async fn a_unix_socket_may_have_database_user_and_password() {
    let redis = redis_with_user(&[]);
    eventually("the socket is there", || {
        std::path::Path::new(&redis.unix_path()).exists()
    });
    let path = redis.unix_path();
    for (query, db, user) in [
        (String::new(), 0, "default"),
        ("?db=3".to_owned(), 3, "default"),
        (format!("?user=app&pass={ENCODED}"), 0, "app"),
        (format!("?db=3&user=app&pass={ENCODED}"), 3, "app"),
    ] {
        let url = format!("--redis-url=unix://{path}{query}");
        assert_served(&redis, db, user, &[&url]).await;
    }
    // Any byte of a path can be written with its code.
    let odd = path.replace("redis.sock", "a,b c#d.sock");
    std::os::unix::fs::symlink(&path, &odd).expect("links");
    let encoded = odd.replace(' ', "%20").replace('#', "%23");
    let url = format!("--redis-url=unix://{encoded}?db=3");
    assert_served(&redis, 3, "default", &[&url]).await;
}

#[tokio::test]
async fn rediss_may_have_user_password_and_database() {
    let (authority, files) = (Authority::new(), Directory::new());
    let identity = authority.issue("localhost", Validity::Now);
    let ca = files.write("ca.pem", &authority.pem);
    let cert = files.write("cert.pem", &identity.cert);
    let key = files.write("key.pem", &identity.key);
    let port = free_port();
    let redis = redis_with_user(
        &[
            &["--tls-port", &port.to_string(), "--tls-auth-clients", "no"],
            &["--tls-cert-file", &cert, "--tls-key-file", &key][..],
            &["--tls-ca-cert-file", &ca],
        ]
        .concat(),
    );
    let ca = format!("--redis-tls-ca={ca}");
    for (url, db, user) in [
        (format!("rediss://localhost:{port}"), 0, "default"),
        (
            format!("rediss://app:{ENCODED}@localhost:{port}/3"),
            3,
            "app",
        ),
    ] {
        assert_served(&redis, db, user, &[&ca, &format!("--redis-url={url}")]).await;
    }
}

/// A list of sentinels of which one may be missing. The user is for the master.
#[tokio::test]
async fn a_list_has_the_user_password_and_database_of_its_first_url() {
    let redis = redis_with_user(&[]);
    let config = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", redis.port);
    let mut sentinel = Redis::prepare(&[]);
    sentinel.run_as_sentinel(&config);
    let (port, nobody) = (sentinel.port, free_port());
    for list in [
        format!("redis://app:{ENCODED}@127.0.0.1:{port}/3"),
        format!("redis://app:{ENCODED}@127.0.0.1:{nobody}/3,redis://127.0.0.1:{port}"),
        format!(
            "redis://app:{ENCODED}@127.0.0.1:{nobody}/3, redis://app:{ENCODED}@localhost:{port}/3"
        ),
    ] {
        let url = format!("--redis-url={list}");
        assert_served(&redis, 3, "app", &["--redis-mode=sentinel", &url]).await;
    }
}

/// Runs `dyndata` with these arguments. Returns its exit code and all output.
fn run(command: &[&str], arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dyndata"))
        .args(command)
        .args(arguments)
        .env_remove("REDIS_URL")
        .output()
        .expect("runs");
    let [stdout, stderr] = [output.stdout, output.stderr].map(String::from_utf8);
    let text = stdout.expect("UTF-8") + &stderr.expect("UTF-8");
    (output.status.code(), text)
}

#[test]
fn an_unsupported_part_of_a_url_is_refused_by_its_name() {
    let secret = CANARY;
    for (url, named) in [
        ("redis://h?protocol=resp3", "?protocol"),
        ("redis://h/?db=3", "?db"),
        (&*format!("redis://h?password={secret}"), "?password"),
        (&format!("redis://h?{secret}=1"), "query"),
        ("redis://h?", "query"),
        ("redis://h/3/extra", "after the host"),
        ("redis://h/3/", "after the host"),
        ("redis://h//3", "after the host"),
        (&format!("redis://h/{secret}"), "after the host"),
        ("redis://h/-1", "after the host"),
        ("redis://h/99999999999", "database"),
        ("rediss://h/#insecure", "#insecure"),
        ("redis://h/3#insecure", "#insecure"),
        (&format!("redis://h#{secret}"), "#"),
        ("redis://h:0", "port"),
        ("redis://", "host"),
        // Passwords without percent-encoding.
        (&format!("redis://:a?{secret}@h"), "percent-encoded"),
        (&format!("redis://:a#{secret}@h"), "percent-encoded"),
        (&format!("redis://:a/{secret}@h"), "percent-encoded"),
        (&format!("redis://app:12/{secret}@h"), "percent-encoded"),
        (&format!("redis://app:12?{secret}@h"), "percent-encoded"),
        (&format!("redis://app:12#{secret}@h"), "percent-encoded"),
        (&format!("redis://app:%ff{secret}@h"), "UTF-8"),
        (&format!("redis://:a\t{secret}@h"), "control character"),
        // A user without a password cannot log in.
        (&format!("redis://{secret}@h"), "password"),
        ("unix:///s?user=app", "password"),
        ("unix:///s?password=x&db=1", "?password"),
        ("unix:///s?protocol=3", "?protocol"),
        (&format!("unix:///s?db={secret}"), "?db"),
        ("unix:///s?db=1&db=2", "?db"),
        ("unix:///s?db=", "?db"),
        (&format!("unix:///s?pass={secret}+x"), "%2B"),
        (&format!("unix:///s?pass={secret}#x"), "#"),
        (&format!("unix:///s?pass=a&{secret}"), "query"),
        (&format!("unix://:{secret}@/s"), "user"),
        ("unix://run/s", "unix:///"),
        ("unix://", "unix:///"),
        ("unix:/s", "redis://"),
        ("valkey://h", "valkey://"),
        ("redis+unix:///s", "redis+unix://"),
        (&format!("http://:{secret}@h"), "redis://"),
        ("redis://a:1,redis://b:2", "--redis-mode"),
        ("redis://a,b", "--redis-mode"),
    ] {
        let flag = format!("--redis-url={url}");
        for command in [&["config", "check"][..], &["serve"]] {
            let (code, text) = run(command, &[&flag]);
            assert_no_secret(url, &text);
            assert_eq!(code, Some(78), "{url}: {text}");
            assert!(text.contains(named), "{url}: {text}");
        }
    }
}

#[test]
fn every_url_of_a_list_is_checked() {
    for (list, named) in [
        ("redis://a:1,redis://b:2?protocol=resp3", "URL 2"),
        ("redis://a:1,redis://b:2/3/x", "URL 2"),
        ("redis://a:1,redis://b:2,redis://c:3#insecure", "URL 3"),
        ("redis://a:1,", "URL 2"),
        ("redis://a:1?db=3,redis://b:2", "URL 1"),
    ] {
        let flag = format!("--redis-url={list}");
        for mode in ["--redis-mode=sentinel", "--redis-mode=cluster"] {
            let (code, text) = run(&["config", "check"], &[mode, &flag]);
            assert_eq!(code, Some(78), "{list}: {text}");
            assert!(text.contains(named), "{list}: {text}");
        }
    }
}

#[test]
fn a_url_is_shown_as_it_could_be_written() {
    for (url, shown) in [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://:c4n4ry@[::1]/2", "redis://:***@[::1]:6379/2"),
        ("rediss://app:c4n4ry@h:1", "rediss://app:***@h:1/0"),
        (
            "unix:///s?pass=c4n4ry&user=app",
            "unix:///s?db=0&user=app&pass=***",
        ),
        ("unix:///s?db=3&pass=c4n4ry", "unix:///s?db=3&pass=***"),
    ] {
        let (code, text) = run(&["config", "check"], &[&format!("--redis-url={url}")]);
        assert_eq!(code, Some(0), "{url}: {text}");
        let line = text.lines().find(|line| line.starts_with("redis-url"));
        let line = line.expect("a line");
        assert!(line.ends_with(shown), "{url}: {line}");
    }
}

//! Changes of certificates and of the access file while the server runs.

#![allow(clippy::print_stdout, reason = "figures, for --nocapture")]

mod support;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use dyndata::proto::{GetRequest, dyn_data_client::DynDataClient};
use support::{
    CANARY, Directory, PATIENCE, TestServer,
    certificates::{Authority, Validity},
    sha256_hex,
};
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// The longest time until a change is in force.
const IN_FORCE: Duration = Duration::from_secs(5);

/// An entry of the access file for the token that [`get`] sends for this name.
fn entry(name: &str) -> String {
    let hash = sha256_hex(&token(name));
    format!(
        "[[caller]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\nallow = [\"read\"]\nnamespaces = [\"*\"]\n"
    )
}

fn token(name: &str) -> String {
    format!("dyn_{CANARY}-{name}")
}

async fn get(channel: &Channel, name: &str) -> Result<(), Status> {
    let mut request = Request::new(GetRequest {
        id: "42".to_owned(),
        ..GetRequest::default()
    });
    request.set_timeout(Duration::from_secs(5));
    let value = format!("Bearer {}", token(name)).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    let mut client = DynDataClient::new(channel.clone());
    client.get(request).await.map(drop)
}

fn connect(server: &TestServer, authority: &Authority) -> Channel {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&authority.pem))
        .domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", server.addr)).expect("a URL");
    endpoint.tls_config(tls).expect("TLS").connect_lazy()
}

/// Waits until a call works, with a new connection for each attempt.
async fn eventually(what: &str, works: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !works().await {
        assert!(start.elapsed() < IN_FORCE, "not in force in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{what}: in force after {:?}", start.elapsed());
}

#[tokio::test]
async fn new_files_are_in_force_soon_and_no_call_fails_meanwhile() {
    let files = Directory::new();
    let (old, new) = (Authority::new(), Authority::new());
    let first = old.issue("localhost", Validity::Now);
    let cert = files.write("cert.pem", &first.cert);
    let key = files.write("key.pem", &first.key);
    let access = files.write("access.toml", &entry("one"));
    let mut arguments = vec!["--tls-cert", &cert, "--tls-key", &key];
    arguments.extend(["--access-file", &access]);
    let server = TestServer::start(&arguments);

    // Two callers call all the time, each on its own connection.
    let stop = Arc::<AtomicBool>::default();
    let calls = Arc::<AtomicU32>::default();
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let channel = connect(&server, &old);
        let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
        load.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                get(&channel, "one").await.expect("no call fails");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    // After the change to a certificate of another authority, only clients that trust it can
    // connect.
    let second = new.issue("localhost", Validity::Now);
    assert!(get(&connect(&server, &new), "one").await.is_err());
    files.write("cert.pem", &second.cert);
    files.write("key.pem", &second.key);
    eventually("certificate", async || {
        get(&connect(&server, &new), "one").await.is_ok()
    })
    .await;
    assert!(get(&connect(&server, &old), "one").await.is_err());

    // A new caller is added, and the caller of the load stays.
    files.write("access.toml", &(entry("one") + &entry("two")));
    eventually("access file", async || {
        get(&connect(&server, &new), "two").await.is_ok()
    })
    .await;

    // Invalid files change nothing: a key that does not fit the certificate, and a file that is no
    // TOML.
    files.write("key.pem", &first.key);
    files.write("access.toml", "caller = ");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        get(&connect(&server, &new), "two")
            .await
            .expect("still in force");
    }
    stop.store(true, Ordering::Relaxed);
    load.join_all().await;
    println!(
        "calls meanwhile: {}, none failed",
        calls.load(Ordering::Relaxed)
    );

    // A caller that is removed from the file is refused, also on open connections.
    files.write("key.pem", &second.key);
    files.write("access.toml", &entry("two"));
    let channel = connect(&server, &new);
    eventually("revocation", async || {
        get(&channel, "one")
            .await
            .is_err_and(|status| status.code() == Code::Unauthenticated)
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_change_before_the_server_runs_is_not_missed() {
    let files = Directory::new();
    let access = files.write("access.toml", &entry("one"));
    let config = dyndata::Config::parse_from([
        "--listen=127.0.0.1:0",
        "--admin-listen=off",
        "--workers=1",
        "--access-file",
        &access,
    ]);
    let bound = dyndata::Server::bind(config.expect("valid")).await;
    let bound = bound.expect("binds");
    files.write("access.toml", &(entry("one") + &entry("two")));
    let endpoint = Endpoint::from_shared(format!("http://{}", bound.local_addr()));
    let channel = endpoint.expect("a URL").connect_lazy();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(bound.run(async { _ = stopped.await }));
    eventually("access file", async || get(&channel, "two").await.is_ok()).await;
    drop((channel, stop));
    server.await.expect("ends").expect("runs");
}

#[tokio::test]
async fn the_first_token_in_the_access_file_makes_certificates_optional() {
    let files = Directory::new();
    let authority = Authority::new();
    let identity = authority.issue("localhost", Validity::Now);
    let cert = files.write("cert.pem", &identity.cert);
    let key = files.write("key.pem", &identity.key);
    let ca = files.write("ca.pem", &authority.pem);
    let by_certificate = "[[caller]]\nname = \"mesh\"\ncertificate = \"dns:mesh\"\n\
                          allow = [\"read\"]\nnamespaces = [\"*\"]\n";
    let access = files.write("access.toml", by_certificate);
    let mut arguments = vec!["--tls-cert", &cert, "--tls-key", &key];
    arguments.extend(["--tls-client-ca", &ca, "--access-file", &access]);
    let server = TestServer::start(&arguments);
    assert!(get(&connect(&server, &authority), "one").await.is_err());
    files.write("access.toml", &(by_certificate.to_owned() + &entry("one")));
    eventually("the first token", async || {
        get(&connect(&server, &authority), "one").await.is_ok()
    })
    .await;
    // Without tokens, every caller needs a certificate again.
    files.write("access.toml", by_certificate);
    eventually("no token", async || {
        let refused = get(&connect(&server, &authority), "one").await;
        refused.is_err_and(|status| status.code() != Code::Unauthenticated)
    })
    .await;
    server.stop().await;
}

#[test]
fn a_hangup_reloads_and_does_not_end_the_server() {
    let files = Directory::new();
    let access = files.write("access.toml", &entry("one"));
    let mut server = Command::new(env!("CARGO_BIN_EXE_dyndata"))
        .args(["serve", "--listen=127.0.0.1:0", "--admin-listen=off"])
        .args(["--access-file", &access])
        .env_remove("REDIS_URL")
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("runs");
    let log = std::io::BufReader::new(server.stderr.take().expect("piped"));
    let mut lines = std::io::BufRead::lines(log).map(|line| line.expect("UTF-8"));
    assert!(lines.any(|line| line.contains("ready")));
    let signal = |name: &str| {
        let kill = Command::new("kill")
            .args([name, &server.id().to_string()])
            .status();
        assert!(kill.expect("kill runs").success());
    };
    signal("-HUP");
    assert!(lines.any(|line| line.contains("reloaded")));
    signal("-TERM");
    let start = Instant::now();
    assert!(server.wait().expect("ends").success());
    assert!(start.elapsed() < PATIENCE);
}

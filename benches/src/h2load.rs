//! nghttp2's h2load, a second generator. It costs less than ours, and checks only the HTTP status.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    load::{Outcome, Shape},
    process::bounded,
    redis_server::Directory,
    workload::Workload,
};

/// Repeats one request for `duration`. The request is written to a file in `directory`.
pub fn run<P>(
    target: SocketAddr,
    workload: &Workload,
    shape: Shape,
    duration: Duration,
    directory: &Directory,
    mut probe: impl FnMut() -> Result<P>,
) -> Result<Outcome<P>> {
    let file = directory.path("request");
    fs::write(&file, workload.request(0))?;
    let url = format!("http://{target}{}", workload.path);
    let mut command = bounded("h2load", duration + Duration::from_secs(20));
    command
        .args(["-t", "1", "-c", &shape.connections.to_string()])
        .args(["-m", &shape.streams.to_string()])
        .args(["-D", &format!("{}ms", duration.as_millis())])
        .args(["-H", "content-type: application/grpc", "-H", "te: trailers"])
        .arg("-d")
        .arg(&file)
        .arg(url);
    let before = probe()?;
    let output = command.output().context("cannot run h2load")?;
    let after = probe()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "h2load: {}", output.status);

    // requests: 0 total, 201000 started, 200900 done, 200900 succeeded, 0 failed, …
    let requests = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "));
    let requests = requests.with_context(|| format!("h2load printed {text:?}"))?;
    let count = |what: &str| -> Option<u64> {
        let part = requests.split(", ").find(|part| part.ends_with(what))?;
        part.split(' ').next()?.parse().ok()
    };
    let calls = count(" succeeded").context("h2load: no count of requests")?;
    ensure!(calls > 0, "h2load: no request was answered: {requests}");
    Ok(Outcome {
        calls,
        all_calls: calls,
        // h2load does not check the gRPC status.
        refused: 0,
        elapsed: duration,
        latencies: None,
        before,
        after,
    })
}

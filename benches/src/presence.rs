//! Count and List of many ids, while heartbeats go on.
//!
//! All ids stay marked, so each Count has to be exact and a List has to name every id.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use peer::proto::{
    BatchMarkRequest, CountRequest, ListRequest, MarkRequest, batch_mark_request,
    dyn_data_client::DynDataClient, mark_request,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time,
};
use tonic::transport::Channel;

use crate::{
    load::{CALL_LIMIT, new_histogram, runtime, wait_until_due, within},
    operation::INDEXED,
};

/// How many ids are marked, and how many of them are marked again in a second.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub ids: usize,
    pub rate: usize,
}

pub const SIZES: [Size; 2] = [
    Size {
        ids: 100_000,
        rate: 1_000,
    },
    Size {
        ids: 1_000_000,
        rate: 5_000,
    },
];

/// How many Counts are made, one after the other.
const COUNTS: usize = 2_000;
const PAGE: i32 = 1_000;
const BATCH: usize = 1_000;
const BATCHES_AT_A_TIME: usize = 8;
const TTL: Duration = Duration::from_secs(600);
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(120);

pub struct Outcome {
    /// In nanoseconds, as all times here.
    pub counts: Histogram<u64>,
    /// A PING of Redis after each Count.
    pub pings: Histogram<u64>,
    pub pages: Histogram<u64>,
    pub listed_in: Duration,
}

/// Marks the ids, and then counts and lists them while a part of them is marked again and again.
pub fn run(server: SocketAddr, redis: SocketAddr, size: Size) -> Result<Outcome> {
    let run = async {
        let client = DynDataClient::connect(format!("http://{server}")).await?;
        fill(&client, size.ids).await?;
        let heartbeats = tokio::spawn(beat(client.clone(), size));
        tokio::select! {
            measured = measure(client, redis, size.ids) => measured,
            ended = heartbeats => {
                ended??;
                bail!("the heartbeats ended")
            }
        }
    };
    runtime()?.block_on(within(LIMIT, run))
}

fn id(number: usize) -> String {
    format!("user-{number:07}")
}

async fn fill(client: &DynDataClient<Channel>, ids: usize) -> Result<()> {
    let mut calls = JoinSet::new();
    for first in (0..ids).step_by(BATCH) {
        let marks = (first..ids.min(first + BATCH)).map(|number| batch_mark_request::Item {
            id: id(number),
            value: Some(batch_mark_request::item::Value::IntValue(1)),
            ttl: prost_types::Duration::try_from(TTL).ok(),
        });
        let request = BatchMarkRequest {
            namespace: INDEXED.to_owned(),
            marks: marks.collect(),
        };
        let mut client = client.clone();
        calls.spawn(async move { client.batch_mark(request).await.map(drop) });
        if calls.len() == BATCHES_AT_A_TIME
            && let Some(done) = calls.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

/// Marks random ids again, at a fixed rate. Ends only with an error.
async fn beat(client: DynDataClient<Channel>, size: Size) -> Result<()> {
    let mut calls = JoinSet::new();
    let start = time::Instant::now();
    for number in 0.. {
        wait_until_due(start, number, size.rate).await;
        let request = MarkRequest {
            namespace: INDEXED.to_owned(),
            id: id(fastrand::usize(..size.ids)),
            value: Some(mark_request::Value::IntValue(number as i64)),
            ttl: prost_types::Duration::try_from(TTL).ok(),
        };
        let mut client = client.clone();
        calls.spawn(async move { client.mark(request).await.map(drop) });
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    Ok(())
}

async fn measure(
    mut client: DynDataClient<Channel>,
    redis: SocketAddr,
    ids: usize,
) -> Result<Outcome> {
    let (mut counts, mut pings, mut pages) = (new_histogram()?, new_histogram()?, new_histogram()?);
    let mut redis = TcpStream::connect(redis).await?;
    for _ in 0..COUNTS {
        let start = Instant::now();
        let request = CountRequest {
            namespace: INDEXED.to_owned(),
        };
        let count = client.count(request).await?.into_inner().count;
        counts.saturating_record(start.elapsed().as_nanos() as u64);
        ensure!(count == ids as i64, "{count} of {ids} ids were counted");
        let start = Instant::now();
        redis.write_all(b"PING\r\n").await?;
        let mut pong = [0; 7];
        redis.read_exact(&mut pong).await?;
        pings.saturating_record(start.elapsed().as_nanos() as u64);
        ensure!(&pong == b"+PONG\r\n", "Redis replied {pong:?}");
    }
    let mut listed = HashSet::with_capacity(ids);
    let mut page_token = String::new();
    let began = Instant::now();
    loop {
        let start = Instant::now();
        let request = ListRequest {
            namespace: INDEXED.to_owned(),
            page_size: PAGE,
            page_token,
        };
        let page = client.list(request).await?.into_inner();
        pages.saturating_record(start.elapsed().as_nanos() as u64);
        listed.extend(page.entries.into_iter().map(|entry| entry.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        ensure!(began.elapsed() < 4 * CALL_LIMIT, "the List does not end");
    }
    let listed_in = began.elapsed();
    let missing = (0..ids).filter(|number| !listed.contains(&id(*number)));
    let missing = missing.count();
    ensure!(missing == 0, "{missing} of {ids} ids were not listed");
    Ok(Outcome {
        counts,
        pings,
        pages,
        listed_in,
    })
}

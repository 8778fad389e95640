//! Mark, Get, BatchGet and Increment, an absent id, and the reason of an error. Calls are retried when the
//! server says that they may be, after the time that it names.
//!
//! ```sh
//! . ../../.tools/examples/env    # see ../serve.sh
//! cargo run
//! ```

use std::{env, error::Error, fs, process::ExitCode, time::Duration};

use dyndata::proto::{
    BatchGetRequest, Entry, GetRequest, IncrementRequest, MarkRequest,
    dyn_data_client::DynDataClient, entry, mark_request,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;

const NAMESPACE: &str = "examples";
/// The deadline of one call, including its retries.
const DEADLINE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast::<Status>() {
                Ok(status) => eprintln!("error: {}", explain(&status)),
                Err(error) => eprintln!("error: {}", chain(&*error)),
            }
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let client = Client::connect().await?;
    let namespace = NAMESPACE.to_owned();
    let ttl = prost_types::Duration {
        seconds: 30,
        nanos: 0,
    };

    let mark = MarkRequest {
        namespace: namespace.clone(),
        id: "alice".to_owned(),
        value: Some(mark_request::Value::IntValue(100)),
        ttl: Some(ttl),
    };
    let marked = client
        .call(mark, async |mut stub, request| stub.mark(request).await)
        .await?;
    println!(
        "alice is marked until {}",
        marked.expire_time.unwrap_or_default()
    );

    let get = |id: &str| GetRequest {
        namespace: namespace.clone(),
        id: id.to_owned(),
        ..GetRequest::default()
    };
    let got = client
        .call(get("alice"), async |mut stub, request| {
            stub.get(request).await
        })
        .await?;
    println!("Get: {}", describe(&got.entry.unwrap_or_default()));

    let batch_get = BatchGetRequest {
        namespace: namespace.clone(),
        ids: vec!["alice".to_owned(), "bob".to_owned()],
        ..BatchGetRequest::default()
    };
    let batch = client
        .call(batch_get, async |mut stub, request| {
            stub.batch_get(request).await
        })
        .await?;
    let entries: Vec<_> = batch.entries.iter().map(describe).collect();
    println!("BatchGet: {}", entries.join(", "));

    let increment = IncrementRequest {
        namespace: namespace.clone(),
        id: "visits".to_owned(),
        ttl: Some(ttl),
        ..IncrementRequest::default()
    };
    let counted = client
        .call(increment, async |mut stub, request| {
            stub.increment(request).await
        })
        .await?;
    println!("Increment: visits is {}", counted.value);

    match client
        .call(get(""), async |mut stub, request| stub.get(request).await)
        .await
    {
        Ok(_) => Err("an empty id was accepted".into()),
        Err(status) => {
            println!("refused: {}", explain(&status));
            Ok(())
        }
    }
}

/// The generated client, with a token, a deadline and retries around it.
struct Client {
    stub: DynDataClient<Channel>,
    token: MetadataValue<Ascii>,
}

impl Client {
    async fn connect() -> Result<Self, Box<dyn Error>> {
        let authorities = fs::read_to_string(env::var("DYNDATA_CLIENT_TLS_CA")?)?;
        let token = fs::read_to_string(env::var("DYNDATA_TOKEN_FILE")?)?;
        let mut token = MetadataValue::try_from(format!("Bearer {}", token.trim()))?;
        // Keeps the token out of debug output and out of HPACK tables.
        token.set_sensitive(true);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities));
        // The channel reconnects by itself once it has been connected.
        let endpoint = Endpoint::from_shared(env::var("DYNDATA_ADDR")?)?
            .tls_config(tls)?
            // The limit for a reconnect. It does not include the TLS handshake, hence the outer timeout.
            .connect_timeout(DEADLINE);
        let channel = timeout(DEADLINE, endpoint.connect())
            .await
            .map_err(|_| "cannot connect within the deadline")??;
        Ok(Self {
            stub: DynDataClient::new(channel),
            token,
        })
    }

    /// Makes a call and retries it while the server names a time to retry and the deadline allows it.
    /// The server names none if a write may have taken effect, since a retry could restore an older
    /// value, or count twice.
    async fn call<M: Clone, R>(
        &self,
        message: M,
        method: impl AsyncFn(DynDataClient<Channel>, Request<M>) -> Result<Response<R>, Status>,
    ) -> Result<R, Status> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline - Instant::now());
            request
                .metadata_mut()
                .insert("authorization", self.token.clone());
            let status = match method(self.stub.clone(), request).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => status,
            };
            match retry_after(&status) {
                Some(delay) if Instant::now() + delay < deadline => sleep(delay).await,
                _ => return Err(status),
            }
        }
    }
}

/// The delay after which the server allows a retry, if it allows one.
fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// An entry without a value means that the id is not marked, which is not an error.
fn describe(entry: &Entry) -> String {
    let id = &entry.id;
    match &entry.value {
        Some(entry::Value::IntValue(value)) => format!("{id} is {value}"),
        Some(entry::Value::StringValue(value)) => format!("{id} is {value}"),
        Some(entry::Value::BytesValue(value)) => format!("{id} is {value:x?}"),
        None => format!("{id} is not marked"),
    }
}

/// The code, the reason (for programs) and the message (for people).
fn explain(status: &Status) -> String {
    let (code, message) = (status.code(), status.message());
    match status.get_details_error_info() {
        Some(info) => format!("{code:?} ({}): {message}", info.reason),
        // An error of tonic itself, for example because the connection broke.
        None => format!("{code:?}: {message}"),
    }
}

/// An error with its causes, since tonic's own messages say little.
fn chain(mut error: &dyn Error) -> String {
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text += &format!(": {source}");
        error = source;
    }
    text
}

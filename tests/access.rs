//! Access rules: every RPC by every kind of caller, on TLS and on plaintext.

#![allow(clippy::print_stdout, reason = "figures, for --nocapture")]

mod support;

use dyndata::proto::{
    self, BatchGetRequest, BatchMarkRequest, BatchUnmarkRequest, CountRequest, FILE_DESCRIPTOR_SET,
    GetRequest, IncrementRequest, ListRequest, MarkIfRequest, MarkRequest, TouchRequest,
    UnmarkRequest, WatchRequest, batch_mark_request,
    dyn_data_client::DynDataClient,
    health::{HealthCheckRequest, HealthListRequest, health_client::HealthClient},
    mark_if_request,
    mark_request::Value,
    value,
};
use prost::Message as _;
use support::{
    CANARY, Directory, TestServer,
    certificates::{Authority, Identity, Validity},
    sha256_hex,
};
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

const NAMESPACE: &str = "orders";

/// All RPCs of the server, with what each demands of its caller. An RPC has a second row, with a
/// space and more after its name, if a field changes what it demands.
const RPCS: [(&str, Demand); 18] = [
    ("dyndata.v1.DynData/Mark", Demand::Write),
    ("dyndata.v1.DynData/Get", Demand::Read),
    ("dyndata.v1.DynData/BatchGet", Demand::Read),
    ("dyndata.v1.DynData/Unmark", Demand::Write),
    // It also tells whether the value is equal.
    ("dyndata.v1.DynData/Unmark if_equal", Demand::ReadAndWrite),
    ("dyndata.v1.DynData/BatchUnmark", Demand::Write),
    ("dyndata.v1.DynData/BatchMark", Demand::Write),
    ("dyndata.v1.DynData/MarkIf", Demand::ReadAndWrite),
    ("dyndata.v1.DynData/Touch", Demand::ReadAndWrite),
    ("dyndata.v1.DynData/Increment", Demand::ReadAndWrite),
    ("dyndata.v1.DynData/Count", Demand::Read),
    ("dyndata.v1.DynData/List", Demand::Read),
    ("dyndata.v1.DynData/Watch", Demand::Read),
    // Probes send no credentials.
    ("grpc.health.v1.Health/Check", Demand::Nothing),
    ("grpc.health.v1.Health/List", Demand::Nothing),
    ("grpc.health.v1.Health/Watch", Demand::Nothing),
    (REFLECTION, Demand::Credentials),
    (
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Demand::Credentials,
    ),
];
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// What an RPC demands of its caller.
#[derive(Debug, Clone, Copy)]
enum Demand {
    Nothing,
    Credentials,
    Read,
    Write,
    ReadAndWrite,
}

/// A caller with its credentials.
struct Caller {
    name: &'static str,
    token: Option<String>,
    identity: Option<Identity>,
    knows: Known,
}

/// What the server knows about a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// The server refuses the connection.
    Refused,
    Nobody,
    Reader,
    Writer,
    ReaderAndWriter,
    /// A reader and writer of another namespace.
    Elsewhere,
}

/// The code with which an RPC must end. `None` if there must be no connection.
fn expected(demand: Demand, known: Known) -> Option<Code> {
    Some(match (demand, known) {
        (_, Known::Refused) => return None,
        (Demand::Nothing, _) => Code::Ok,
        (_, Known::Nobody) => Code::Unauthenticated,
        (Demand::Credentials, _)
        | (Demand::Read, Known::Reader | Known::ReaderAndWriter)
        | (Demand::Write, Known::Writer | Known::ReaderAndWriter)
        | (Demand::ReadAndWrite, Known::ReaderAndWriter) => Code::Ok,
        (Demand::Read | Demand::Write | Demand::ReadAndWrite, _) => Code::PermissionDenied,
    })
}

/// The outcome in the error of a refused call. `None` for a call that does not write.
fn outcome(demand: Demand) -> Option<&'static str> {
    match demand {
        Demand::Write | Demand::ReadAndWrite => Some("not_executed"),
        Demand::Nothing | Demand::Credentials | Demand::Read => None,
    }
}

#[test]
fn every_rpc_is_in_the_matrix() {
    let sets = [
        FILE_DESCRIPTOR_SET,
        v1::FILE_DESCRIPTOR_SET,
        v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut found = Vec::new();
    for set in sets {
        let set = prost_types::FileDescriptorSet::decode(set).expect("a descriptor set");
        for file in set.file {
            for service in &file.service {
                for method in &service.method {
                    found.push(format!(
                        "{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
    }
    found.sort();
    found.dedup();
    let without_field = |rpc: &str| rpc.split(' ').next().map(str::to_owned);
    let mut listed: Vec<_> = RPCS
        .iter()
        .filter_map(|(rpc, _)| without_field(rpc))
        .collect();
    listed.sort();
    listed.dedup();
    assert_eq!(found, listed);
}

#[tokio::test]
async fn every_caller_gets_what_the_access_file_says_on_tls() {
    let setup = Setup::new();
    let server = setup.start_tls();
    let callers = setup.callers();
    let cells = check(&callers, async |caller| {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&setup.authority.pem))
            .domain_name("localhost");
        if let Some(Identity { cert, key }) = &caller.identity {
            tls = tls.identity(tonic::transport::Identity::from_pem(cert, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", server.addr)).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect_lazy()
    })
    .await;
    println!("authorization on TLS: {cells} cells, all as expected");
    server.stop().await;
}

#[tokio::test]
async fn every_caller_gets_what_the_access_file_says_on_plaintext() {
    let setup = Setup::new();
    let access = setup.files.path("access.toml");
    let server = TestServer::start(&["--access-file", &access, "--indexed-namespaces=orders"]);
    // Callers without TLS have no certificates.
    let mut callers = setup.callers();
    callers.retain(|caller| caller.identity.is_none());
    let cells = check(&callers, async |_| server.channel().await).await;
    println!("authorization on plaintext: {cells} cells, all as expected");
    server.stop().await;
}

#[tokio::test]
async fn the_setting_decides_who_may_use_reflection() {
    let setup = Setup::new();
    let access = setup.files.path("access.toml");
    for (arguments, nobody, somebody) in [
        (vec![], Code::Ok, Code::Ok),
        (
            vec!["--access-file", &access],
            Code::Unauthenticated,
            Code::Ok,
        ),
        (
            vec!["--access-file", &access, "--reflection=open"],
            Code::Ok,
            Code::Ok,
        ),
        (
            vec!["--access-file", &access, "--reflection=off"],
            Code::Unauthenticated,
            Code::Unimplemented,
        ),
        (
            vec!["--reflection=off"],
            Code::Unimplemented,
            Code::Unimplemented,
        ),
    ] {
        let server = TestServer::start(&arguments);
        let channel = server.channel().await;
        let code = call(REFLECTION, channel.clone(), None).await.err();
        assert_eq!(
            code.map_or(Code::Ok, |status| status.code()),
            nobody,
            "{arguments:?}"
        );
        let code = call(REFLECTION, channel, Some(&setup.reader)).await.err();
        assert_eq!(
            code.map_or(Code::Ok, |status| status.code()),
            somebody,
            "{arguments:?}"
        );
        server.stop().await;
    }
}

#[tokio::test]
async fn without_an_access_file_a_certificate_of_the_authority_is_enough_and_needed() {
    let setup = Setup::new();
    let server = setup.start_tls_with(&[]);
    for (identity, allowed) in [
        (Some(setup.authority.issue("anybody", Validity::Now)), true),
        (
            Some(setup.authority.issue("anybody", Validity::Expired)),
            false,
        ),
        (
            Some(Authority::new().issue("anybody", Validity::Now)),
            false,
        ),
        (None, false),
    ] {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&setup.authority.pem))
            .domain_name("localhost");
        if let Some(Identity { cert, key }) = &identity {
            tls = tls.identity(tonic::transport::Identity::from_pem(cert, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", server.addr)).expect("a URL");
        let channel = endpoint.tls_config(tls).expect("TLS").connect_lazy();
        let result = call("dyndata.v1.DynData/Mark", channel, None).await;
        assert_eq!(result.is_ok(), allowed, "{identity:?}: {result:?}");
    }
    server.stop().await;
}

/// Certificates and tokens, and the access file that lists them.
struct Setup {
    authority: Authority,
    files: Directory,
    reader: String,
}

impl Setup {
    fn new() -> Self {
        let files = Directory::new();
        let setup = Self {
            authority: Authority::new(),
            reader: token("reader"),
            files,
        };
        let server = setup.authority.issue("localhost", Validity::Now);
        setup.files.write("cert.pem", &server.cert);
        setup.files.write("key.pem", &server.key);
        setup.files.write("ca.pem", &setup.authority.pem);
        let mut access = String::new();
        for (name, allow, namespace) in [
            ("reader", "\"read\"", NAMESPACE),
            ("writer", "\"write\"", NAMESPACE),
            ("both", "\"read\", \"write\"", "ord*"),
            ("elsewhere", "\"read\", \"write\"", "others"),
        ] {
            let hash = sha256_hex(&token(name));
            access += &format!(
                "[[caller]]\nname = \"{name}\"\ntoken_sha256 = \"{hash}\"\n\
                 allow = [{allow}]\nnamespaces = [\"{namespace}\"]\n\
                 [[caller]]\nname = \"{name} by certificate\"\n\
                 certificate = \"spiffe://example.com/{name}\"\n\
                 allow = [{allow}]\nnamespaces = [\"{namespace}\"]\n"
            );
        }
        setup.files.write("access.toml", &access);
        setup
    }

    fn start_tls(&self) -> TestServer {
        let access = self.files.path("access.toml");
        self.start_tls_with(&["--access-file", &access, "--indexed-namespaces=orders"])
    }

    fn start_tls_with(&self, more: &[&str]) -> TestServer {
        let [cert, key, ca] = ["cert.pem", "key.pem", "ca.pem"].map(|name| self.files.path(name));
        let mut arguments = vec![
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-client-ca",
            &ca,
        ];
        arguments.extend(more);
        TestServer::start(&arguments)
    }

    fn callers(&self) -> Vec<Caller> {
        let by_token = |name, token: String, knows| Caller {
            name,
            token: Some(token),
            identity: None,
            knows,
        };
        let by_certificate = |name, identity, knows| Caller {
            name,
            token: None,
            identity: Some(identity),
            knows,
        };
        let issue = |name: &str, validity| {
            let name = format!("spiffe://example.com/{name}");
            self.authority.issue(&name, validity)
        };
        let now = |name| issue(name, Validity::Now);
        vec![
            Caller {
                name: "nobody",
                token: None,
                identity: None,
                knows: Known::Nobody,
            },
            by_token("wrong token", token("guess"), Known::Nobody),
            by_token("empty token", String::new(), Known::Nobody),
            by_token("read token", token("reader"), Known::Reader),
            by_token("write token", token("writer"), Known::Writer),
            by_token("full token", token("both"), Known::ReaderAndWriter),
            by_token("token for elsewhere", token("elsewhere"), Known::Elsewhere),
            by_certificate("read certificate", now("reader"), Known::Reader),
            by_certificate("write certificate", now("writer"), Known::Writer),
            by_certificate("full certificate", now("both"), Known::ReaderAndWriter),
            by_certificate(
                "certificate for elsewhere",
                now("elsewhere"),
                Known::Elsewhere,
            ),
            by_certificate("unlisted name", now("stranger"), Known::Nobody),
            by_certificate(
                "expired certificate",
                issue("both", Validity::Expired),
                Known::Refused,
            ),
            by_certificate(
                "other authority",
                Authority::new().issue("spiffe://example.com/both", Validity::Now),
                Known::Refused,
            ),
            Caller {
                name: "full certificate and a wrong token",
                token: Some(token("guess")),
                identity: Some(now("both")),
                knows: Known::Nobody,
            },
            Caller {
                name: "read token and a full certificate",
                token: Some(token("reader")),
                identity: Some(now("both")),
                knows: Known::Reader,
            },
        ]
    }
}

/// Makes every call as every caller. Returns the number of calls.
async fn check(callers: &[Caller], connect: impl AsyncFn(&Caller) -> Channel) -> usize {
    let mut refusals = Vec::new();
    let mut cells = 0;
    for caller in callers {
        let channel = connect(caller).await;
        for (rpc, demand) in RPCS {
            let result = call(rpc, channel.clone(), caller.token.as_deref()).await;
            match expected(demand, caller.knows) {
                Some(code) => {
                    let actual = result.as_ref().err().map_or(Code::Ok, Status::code);
                    assert_eq!(actual, code, "{rpc} by {}: {result:?}", caller.name);
                    if let Err(status) = result {
                        let info = status.get_details_error_info().expect("an ErrorInfo");
                        // The outcome depends on the RPC, and not on the credentials.
                        let stated = info.metadata.get("outcome").map(String::as_str);
                        assert_eq!(stated, outcome(demand), "{rpc} by {}", caller.name);
                        if code == Code::Unauthenticated {
                            refusals.push((status.message().to_owned(), info.reason));
                        }
                    }
                }
                None => {
                    let status = result.expect_err("no connection");
                    assert!(
                        std::error::Error::source(&status).is_some(),
                        "{rpc} by {} got an answer: {status:?}",
                        caller.name
                    );
                }
            }
            cells += 1;
        }
    }
    // The error does not say what is wrong with the credentials.
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    cells
}

/// Makes one call, and waits for its first reply.
async fn call(rpc: &str, channel: Channel, token: Option<&str>) -> Result<(), Status> {
    fn with<T>(message: T, token: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
    let namespace = || NAMESPACE.to_owned();
    let mut dyn_data = DynDataClient::new(channel.clone());
    let mut health = HealthClient::new(channel.clone());
    match rpc {
        "dyndata.v1.DynData/Mark" => {
            let mark = MarkRequest {
                namespace: namespace(),
                id: "42".to_owned(),
                value: Some(Value::IntValue(1)),
                ttl: None,
            };
            dyn_data.mark(with(mark, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Get" => {
            let get = GetRequest {
                namespace: namespace(),
                id: "42".to_owned(),
                include_expire_time: true,
            };
            dyn_data.get(with(get, token)).await.map(drop)
        }
        "dyndata.v1.DynData/BatchGet" => {
            let batch_get = BatchGetRequest {
                namespace: namespace(),
                ids: vec!["42".to_owned()],
                include_expire_time: false,
            };
            dyn_data.batch_get(with(batch_get, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Unmark" | "dyndata.v1.DynData/Unmark if_equal" => {
            let unmark = UnmarkRequest {
                namespace: namespace(),
                id: "42".to_owned(),
                if_equal: rpc.ends_with("if_equal").then_some(proto::Value {
                    kind: Some(value::Kind::IntValue(1)),
                }),
            };
            dyn_data.unmark(with(unmark, token)).await.map(drop)
        }
        "dyndata.v1.DynData/BatchUnmark" => {
            let batch_unmark = BatchUnmarkRequest {
                namespace: namespace(),
                ids: vec!["42".to_owned()],
            };
            let request = with(batch_unmark, token);
            dyn_data.batch_unmark(request).await.map(drop)
        }
        "dyndata.v1.DynData/BatchMark" => {
            let item = batch_mark_request::Item {
                id: "42".to_owned(),
                value: Some(batch_mark_request::item::Value::IntValue(1)),
                ttl: None,
            };
            let batch_mark = BatchMarkRequest {
                namespace: namespace(),
                marks: vec![item],
            };
            dyn_data.batch_mark(with(batch_mark, token)).await.map(drop)
        }
        "dyndata.v1.DynData/MarkIf" => {
            let mark_if = MarkIfRequest {
                namespace: namespace(),
                id: "42".to_owned(),
                value: Some(mark_if_request::Value::IntValue(1)),
                ttl: None,
                condition: None,
            };
            dyn_data.mark_if(with(mark_if, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Touch" => {
            let touch = TouchRequest {
                namespace: namespace(),
                ids: vec!["42".to_owned()],
                ttl: None,
            };
            dyn_data.touch(with(touch, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Increment" => {
            let increment = IncrementRequest {
                namespace: namespace(),
                id: "42".to_owned(),
                ..IncrementRequest::default()
            };
            dyn_data.increment(with(increment, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Count" => {
            let count = CountRequest {
                namespace: namespace(),
            };
            dyn_data.count(with(count, token)).await.map(drop)
        }
        "dyndata.v1.DynData/List" => {
            let list = ListRequest {
                namespace: namespace(),
                ..ListRequest::default()
            };
            dyn_data.list(with(list, token)).await.map(drop)
        }
        "dyndata.v1.DynData/Watch" => {
            let watch = WatchRequest {
                namespace: namespace(),
                ids: vec!["42".to_owned()],
                all: false,
            };
            dyn_data.watch(with(watch, token)).await.map(drop)
        }
        "grpc.health.v1.Health/Check" => {
            let request = with(HealthCheckRequest::default(), token);
            health.check(request).await.map(drop)
        }
        "grpc.health.v1.Health/List" => {
            let request = with(HealthListRequest::default(), token);
            health.list(request).await.map(drop)
        }
        "grpc.health.v1.Health/Watch" => {
            let request = with(HealthCheckRequest::default(), token);
            let mut watch = health.watch(request).await?.into_inner();
            watch.next().await.expect("a status").map(drop)
        }
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => {
            let request = v1::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
                    String::new(),
                )),
            };
            let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
            let request = with(tokio_stream::iter([request]), token);
            let mut replies = client.server_reflection_info(request).await?.into_inner();
            replies.next().await.expect("a reply").map(drop)
        }
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            let request = v1alpha::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(
                    v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
                ),
            };
            let mut client =
                v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
            let request = with(tokio_stream::iter([request]), token);
            let mut replies = client.server_reflection_info(request).await?.into_inner();
            replies.next().await.expect("a reply").map(drop)
        }
        _ => panic!("no call for {rpc}"),
    }
}

fn token(name: &str) -> String {
    format!("dyn_{CANARY}-of-{name}")
}

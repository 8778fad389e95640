//! TLS handshakes: with silent peers, with too much data, and with resumed sessions.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use dyndata::proto::{GetRequest, dyn_data_client::DynDataClient};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use support::{
    Directory, PATIENCE, TestServer,
    certificates::{Authority, Identity, Validity},
};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

/// The server closes a connection without a complete greeting after this time.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// The client preface of HTTP/2 and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The files of a server with TLS, and the authority of its certificate.
struct Setup {
    authority: Authority,
    files: Directory,
}

impl Setup {
    fn new() -> Self {
        let setup = Self {
            authority: Authority::new(),
            files: Directory::new(),
        };
        let server = setup.authority.issue("localhost", Validity::Now);
        setup.files.write("cert.pem", &server.cert);
        setup.files.write("key.pem", &server.key);
        setup.files.write("ca.pem", &setup.authority.pem);
        setup
    }

    fn start(&self, more: &[&str]) -> TestServer {
        let (cert, key) = (self.files.path("cert.pem"), self.files.path("key.pem"));
        let mut arguments = vec!["--tls-cert", &cert, "--tls-key", &key, "--workers=1"];
        arguments.extend(more);
        TestServer::start(&arguments)
    }

    /// Starts a server that requires client certificates of this authority.
    fn start_with_client_ca(&self, more: &[&str]) -> TestServer {
        let ca = self.files.path("ca.pem");
        let mut arguments = vec!["--tls-client-ca", &ca];
        arguments.extend(more);
        self.start(&arguments)
    }

    /// A client that resumes sessions if possible.
    fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<&Identity>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("PEM");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                let builder = builder.with_client_auth_cert(vec![cert], key);
                builder.expect("a certificate and its key")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    fn channel(&self, server: &TestServer, identity: &Identity) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority.pem))
            .domain_name("localhost")
            .identity(tonic::transport::Identity::from_pem(
                &identity.cert,
                &identity.key,
            ));
        let endpoint = Endpoint::from_shared(format!("https://{}", server.addr)).expect("a URL");
        endpoint.tls_config(tls).expect("TLS").connect_lazy()
    }
}

/// Connects, sends the greeting, and waits for the first bytes of the server. Returns the kind of
/// the handshake.
fn visit(server: &TestServer, config: &Arc<ClientConfig>) -> std::io::Result<HandshakeKind> {
    let name = "localhost".try_into().expect("a name");
    let tls = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let socket = TcpStream::connect(&server.addr)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(tls, socket);
    stream.write_all(PREFACE)?;
    stream.read_exact(&mut [0])?;
    Ok(stream.conn.handshake_kind().expect("a handshake"))
}

async fn get(channel: &Channel) -> Result<(), Status> {
    let request = GetRequest {
        id: "42".to_owned(),
        ..GetRequest::default()
    };
    let mut client = DynDataClient::new(channel.clone());
    client.get(request).await.map(drop)
}

#[tokio::test]
async fn silent_connections_do_not_delay_a_handshake_and_are_closed() {
    let setup = Setup::new();
    let server = setup.start(&["--max-connections-per-peer=2000"]);
    let start = Instant::now();
    let mut silent: Vec<_> = (0..600)
        .map(|_| TcpStream::connect(&server.addr).expect("connects"))
        .collect();
    server.metric("dyndata_connections 600").await;
    let client = setup.client(&TLS13, None);
    let before = Instant::now();
    visit(&server, &client).expect("greets");
    let took = before.elapsed();
    assert!(
        before - start < GREETING_TIMEOUT,
        "the silent ones may be gone"
    );
    assert!(took < Duration::from_secs(2), "the handshake took {took:?}");
    for socket in &mut silent {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        assert_eq!(socket.read(&mut [0]).expect("a clean end"), 0);
    }
    assert!(start.elapsed() >= GREETING_TIMEOUT);
    server.stop().await;
}

#[tokio::test]
async fn an_endless_client_hello_is_ended_early() {
    let setup = Setup::new();
    let server = setup.start(&[]);
    let mut socket = TcpStream::connect(&server.addr).expect("connects");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let start = Instant::now();
    // Records of 1 KiB, all of them parts of one ClientHello of almost 64 KiB.
    let mut sent = 0;
    let mut record = vec![22, 3, 1, 4, 0, 1, 0, 0xff, 0];
    record.resize(5 + 1024, 0);
    while sent < 40 * 1024 && socket.write_all(&record).is_ok() {
        sent += record.len();
        record[5..9].fill(0);
    }
    // The connection is closed or reset, and earlier than a silent one.
    while matches!(socket.read(&mut [0; 64]), Ok(1..)) {}
    assert!(start.elapsed() < GREETING_TIMEOUT, "{:?}", start.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn an_unfinished_handshake_does_not_hold_up_a_drain() {
    let setup = Setup::new();
    let server = setup.start(&["--drain-timeout=60s"]);
    // One peer sends nothing, and one sends the first half of a handshake.
    let silent = TcpStream::connect(&server.addr).expect("connects");
    let name = "localhost".try_into().expect("a name");
    let mut tls = ClientConnection::new(setup.client(&TLS13, None), name).expect("a client");
    let mut half = TcpStream::connect(&server.addr).expect("connects");
    tls.write_tls(&mut half).expect("writes");
    half.read_exact(&mut [0]).expect("the server's half");
    server.metric("dyndata_connections 2").await;
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < GREETING_TIMEOUT, "{:?}", start.elapsed());
    drop((silent, half));
}

#[tokio::test]
async fn an_expired_client_certificate_cannot_resume_a_session() {
    let setup = Setup::new();
    let server = setup.start_with_client_ca(&[]);
    for version in [&TLS13, &TLS12] {
        let lifetime = Duration::from_secs(3);
        let identity = setup.authority.issue("caller", Validity::For(lifetime));
        let client = setup.client(version, Some(&identity));
        let issued = Instant::now();
        for _ in 0..2 {
            let kind = visit(&server, &client).expect("a valid certificate");
            assert_eq!(kind, HandshakeKind::Full, "{version:?}");
        }
        // The expiry of a certificate has whole seconds.
        tokio::time::sleep(lifetime + Duration::from_secs(1) - issued.elapsed()).await;
        let late = visit(&server, &client);
        assert!(late.is_err(), "{version:?}: {late:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn without_a_client_authority_sessions_are_resumed() {
    let setup = Setup::new();
    let server = setup.start(&[]);
    for version in [&TLS13, &TLS12] {
        let client = setup.client(version, None);
        let kinds = [0; 2].map(|_| visit(&server, &client).expect("greets"));
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_certificate_that_expires_is_noticed_at_the_next_handshake() {
    let setup = Setup::new();
    let for_ever = setup.start_with_client_ca(&[]);
    let for_a_while = setup.start_with_client_ca(&["--max-connection-age=5s"]);
    let lifetime = Duration::from_secs(3);
    let identity = setup.authority.issue("caller", Validity::For(lifetime));
    let issued = Instant::now();
    let (old, aging) = (
        setup.channel(&for_ever, &identity),
        setup.channel(&for_a_while, &identity),
    );
    get(&old).await.expect("a valid certificate");
    get(&aging).await.expect("a valid certificate");
    tokio::time::sleep(lifetime + Duration::from_secs(1) - issued.elapsed()).await;
    get(&old).await.expect("its connection is there");
    let new = setup.channel(&for_ever, &identity);
    assert!(get(&new).await.is_err(), "a new connection");
    // The connection is closed at its maximum age, and a new one is refused.
    let start = Instant::now();
    while get(&aging).await.is_ok() {
        assert!(start.elapsed() < PATIENCE, "the connection never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for_ever.stop().await;
    for_a_while.stop().await;
}

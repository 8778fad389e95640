//! The options that all client commands share: address, TLS, token, deadline, output.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    metadata::MetadataValue,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    error::{CliError, chain},
    render::{Output, json, print_line},
};
use crate::proto::dyn_data_client::DynDataClient;

/// How long a connection may be silent before the client asks whether the server is there, and how
/// long it waits for the answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The server that a client command calls, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Address of the server: http:// or https:// and HOST:PORT, or unix:/path. HOST:PORT alone means
    /// https:// if one of the --tls options is given, and http:// otherwise. http:// together with a
    /// --tls option is refused
    #[arg(
        long,
        env = "DYNDATA_ADDR",
        value_name = "ADDR",
        default_value = "http://127.0.0.1:50051"
    )]
    addr: String,
    /// Namespace of the ids
    #[arg(long, env = "DYNDATA_NAMESPACE", default_value = "")]
    pub(super) namespace: String,
    /// Format of the result
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) output: Output,
    /// PEM file with the authorities that sign the server's certificate; for https:// [default: the
    /// system's]
    #[arg(long, env = "DYNDATA_CLIENT_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// PEM file with the client certificate; with --tls-key
    #[arg(
        long,
        env = "DYNDATA_CLIENT_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// PEM file with the private key of the client certificate
    #[arg(
        long,
        env = "DYNDATA_CLIENT_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// File with the bearer token
    #[arg(long, env = "DYNDATA_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Deadline of the call
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Target {
    /// Connects.
    pub(super) async fn channel(&self) -> Result<Channel, CliError> {
        let failed = |error: tonic::transport::Error| CliError::Connect {
            addr: self.addr.clone(),
            reason: chain(&error),
        };
        let mut endpoint = Endpoint::from_shared(self.url()?)
            .map_err(failed)?
            .connect_timeout(self.timeout)
            // A stream notices that its server is gone without a word.
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(failed)?;
        }
        // The timeout of the endpoint does not cover the TLS handshake.
        match tokio::time::timeout(self.timeout, endpoint.connect()).await {
            Ok(channel) => channel.map_err(failed),
            Err(_) => Err(CliError::Connect {
                addr: self.addr.clone(),
                reason: "no answer in time".to_owned(),
            }),
        }
    }

    /// The address with its scheme. An address without a scheme means `https://` if there are files
    /// for TLS, because the caller expects encryption then. For the same reason, `http://` together
    /// with such files is refused, and any scheme that tonic would treat like `http`.
    fn url(&self) -> Result<String, CliError> {
        if self.addr.starts_with("unix:") {
            return Ok(self.addr.clone());
        }
        let has_tls_files = self.tls_ca.is_some() || self.tls_cert.is_some();
        let Some((scheme, _)) = self.addr.split_once("://") else {
            let scheme = if has_tls_files { "https" } else { "http" };
            return Ok(format!("{scheme}://{}", self.addr));
        };
        match scheme.to_ascii_lowercase().as_str() {
            "https" => Ok(self.addr.clone()),
            "http" if has_tls_files => Err(CliError::Usage(
                "--addr: http:// has no TLS, so the --tls files are of no use; is https:// meant?"
                    .to_owned(),
            )),
            "http" => Ok(self.addr.clone()),
            _ => Err(CliError::Usage(format!(
                "--addr: {scheme}:// is not known; there are http://, https:// and unix:"
            ))),
        }
    }

    fn tls(&self) -> Result<ClientTlsConfig, CliError> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.tls_ca {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read(file)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(tls)
    }

    /// Connects, for calls of `dyndata.v1.DynData`.
    pub(super) async fn client(&self) -> Result<DynDataClient<Channel>, CliError> {
        // A batch of large values is larger than the usual limit of 4 MiB.
        Ok(DynDataClient::new(self.channel().await?).max_decoding_message_size(usize::MAX))
    }

    /// Makes a request with the deadline and the token.
    pub(super) fn request<T>(&self, message: T) -> Result<tonic::Request<T>, CliError> {
        let mut request = self.request_without_deadline(message)?;
        request.set_timeout(self.timeout);
        Ok(request)
    }

    /// Makes a request with the token, for a stream that lasts as long as its caller likes.
    pub(super) fn request_without_deadline<T>(
        &self,
        message: T,
    ) -> Result<tonic::Request<T>, CliError> {
        let mut request = tonic::Request::new(message);
        if let Some(file) = &self.token_file {
            let token = read(file)?;
            let token = format!("Bearer {}", token.trim());
            let mut token = MetadataValue::try_from(token).map_err(|_| {
                CliError::Usage(format!("{} does not hold a token", file.display()))
            })?;
            token.set_sensitive(true);
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }

    /// Prints a reply in the format of `--output`: `text`, or the message as JSON.
    pub(super) fn print(
        &self,
        message: &str,
        reply: &impl prost::Message,
        text: &str,
    ) -> Result<(), CliError> {
        match self.output {
            Output::Text => print_line(text),
            Output::Json => print_line(&json(message, reply)?),
        }
    }
}

fn read(file: &Path) -> Result<String, CliError> {
    std::fs::read_to_string(file).map_err(|source| CliError::File {
        file: file.to_owned(),
        source,
    })
}

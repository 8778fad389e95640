//! Who gets in: TLS, client certificates, the access file, and what is refused without them.
//!
//! A server that can be reached from other hosts either knows its callers and speaks TLS, or has
//! been told `--insecure`.

use std::path::PathBuf;

use super::{ConfigError, Lines, ListenAddr, Reflection, check, invalid};
use crate::{
    auth::Access,
    server::listen::tls::{ClientCertificate, TlsFiles},
};

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SecurityArgs {
    /// Certificate chain for TLS, as PEM; with --tls-key. Read again when it changes, and on SIGHUP
    #[arg(
        long,
        env = "DYNDATA_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,

    /// Private key for TLS, as PEM
    #[arg(
        long,
        env = "DYNDATA_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,

    /// Authorities whose client certificates are accepted (mTLS), as PEM. A client needs one, or a
    /// token if the access file has any
    #[arg(
        long,
        env = "DYNDATA_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,

    /// Who may do what: callers by token or certificate, as TOML. Read again when it changes, and on
    /// SIGHUP. Unset: everybody who can connect may do everything
    #[arg(long, env = "DYNDATA_ACCESS_FILE", value_name = "FILE")]
    access_file: Option<PathBuf>,

    /// Who may ask what the API looks like [default: authenticated with an access file, open without]
    #[arg(long, env = "DYNDATA_REFLECTION", value_name = "WHO")]
    reflection: Option<Reflection>,

    /// Serve beyond this host without callers having to say who they are, or without TLS
    #[arg(long, env = "DYNDATA_INSECURE", default_value_t = false)]
    insecure: bool,
}

/// Which files say who gets in, and what those get who are not in any.
#[derive(Debug, Clone)]
pub(crate) struct SecurityConfig {
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) access_file: Option<PathBuf>,
    pub(crate) reflection: Reflection,
    pub(crate) insecure: bool,
}

impl SecurityConfig {
    /// Checks that the files make sense, and that they are enough for where the server listens.
    pub(super) fn check(args: SecurityArgs, listen: &ListenAddr) -> Result<Self, ConfigError> {
        let SecurityArgs {
            tls_cert,
            tls_key,
            tls_client_ca,
            access_file,
            reflection,
            insecure,
        } = args;
        let tls = tls_cert.zip(tls_key).map(|(cert, key)| TlsFiles {
            cert,
            key,
            client_ca: tls_client_ca,
        });
        if let Some(file) = &access_file {
            Access::load(file)
                .map_err(|error| invalid("access-file", format!("{} {error}", file.display())))?;
        }
        if let Some(tls) = &tls {
            tls.load(ClientCertificate::Required)
                .map_err(|error| invalid("tls-cert", error))?;
        }
        if let ListenAddr::Unix(_) = listen {
            check(
                "tls-client-ca",
                tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()),
                "a unix socket has no TLS, so nobody would be asked for a certificate",
            )?;
        }
        let knows_callers =
            access_file.is_some() || tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        check(
            "reflection",
            knows_callers || reflection != Some(Reflection::Authenticated),
            "there is neither --access-file nor --tls-client-ca, so nobody is authenticated",
        )?;
        let is_local = match listen {
            ListenAddr::Tcp(addr) => addr.ip().is_loopback(),
            ListenAddr::Unix(_) => true,
        };
        if !is_local && !insecure {
            check(
                "listen",
                knows_callers,
                "other hosts could read and write everything here; say who may with \
                 --access-file or --tls-client-ca (or allow it with --insecure)",
            )?;
            check(
                "listen",
                tls.is_some(),
                "tokens and values would cross the network in the clear; set --tls-cert and \
                 --tls-key (or allow it with --insecure)",
            )?;
        }
        Ok(Self {
            reflection: reflection.unwrap_or(match access_file {
                Some(_) => Reflection::Authenticated,
                None => Reflection::Open,
            }),
            tls,
            access_file,
            insecure,
        })
    }

    pub(super) fn summarize(&self, lines: &mut Lines) {
        let Self {
            tls,
            access_file,
            reflection,
            insecure,
        } = self;
        if let Some(TlsFiles {
            cert,
            key,
            client_ca,
        }) = tls
        {
            lines.add_file("tls-cert", Some(cert));
            lines.add_file("tls-key", Some(key));
            lines.add_file("tls-client-ca", client_ca.as_ref());
        }
        lines.add_file("access-file", access_file.as_ref());
        lines.add("reflection", reflection);
        lines.add("insecure", insecure);
    }
}

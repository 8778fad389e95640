//! The log lines for a person who starts the server.

use std::net::SocketAddr;

use super::listen::settings::{ListenAddr, ListenSettings};
use crate::{
    auth::settings::{AccessSettings, Reflection},
    store::settings::StoreSettings,
};

/// Logs the store, and the addresses that the listeners are bound to.
pub(super) fn announce(
    store: &StoreSettings,
    listen: &ListenSettings,
    access: &AccessSettings,
    addr: &ListenAddr,
    admin: Option<SocketAddr>,
) {
    match store {
        StoreSettings::Memory { max_entries, .. } => {
            tracing::info!(store = "embedded", max_entries, "store");
            tracing::warn!(
                "no REDIS_URL: the data belongs to this process only and is lost on exit"
            );
        }
        StoreSettings::Redis(redis) => {
            tracing::info!(store = "redis", mode = %redis.mode, url = %redis.urls, "store");
        }
    }
    if access.insecure {
        tracing::warn!("--insecure: callers need neither credentials nor encryption");
    }
    if let Some(admin) = admin {
        tracing::info!("serving /metrics, /livez and /readyz on http://{admin}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "serving gRPC on {addr}"
    );
    if let Some(target) = grpcurl_target(addr, listen, access) {
        tracing::info!(
            r#"try: grpcurl -plaintext -d '{{"id":"42","int_value":100}}' {target} dyndata.v1.DynData/Mark"#
        );
    }
}

/// The address for grpcurl, if a call works without TLS, without credentials and with reflection.
/// Otherwise the command would need names and files that only the caller knows.
fn grpcurl_target(
    addr: &ListenAddr,
    listen: &ListenSettings,
    access: &AccessSettings,
) -> Option<String> {
    if access.file.is_some() || access.reflection != Reflection::Open {
        return None;
    }
    match addr {
        ListenAddr::Tcp(_) if listen.tls.is_some() => None,
        ListenAddr::Tcp(addr) => Some(addr.to_string()),
        // Other characters have a meaning in a shell or in a URL.
        ListenAddr::Unix(path) => {
            let path = std::path::absolute(path)
                .ok()?
                .into_os_string()
                .into_string()
                .ok()?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            path.chars().all(is_plain).then(|| format!("unix://{path}"))
        }
    }
}

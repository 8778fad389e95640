//! The log lines for a person who starts the server.

use std::net::SocketAddr;

use crate::config::{Config, ListenAddr, Reflection, SecurityConfig, StoreConfig};

/// Logs the store, and the addresses that the listeners are bound to.
pub(super) fn announce(config: &Config, addr: &ListenAddr, admin: Option<SocketAddr>) {
    match &config.store {
        StoreConfig::Memory { max_entries } => {
            tracing::info!(store = "embedded", max_entries, "store");
            tracing::warn!(
                "no REDIS_URL: the data belongs to this process only and is lost on exit"
            );
        }
        StoreConfig::Redis(redis) => {
            tracing::info!(store = "redis", mode = %redis.mode, url = %redis.urls, "store");
        }
    }
    if config.security.insecure {
        tracing::warn!("--insecure: callers need neither credentials nor encryption");
    }
    if let Some(admin) = admin {
        tracing::info!("serving /metrics, /livez and /readyz on http://{admin}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "serving gRPC on {addr}"
    );
    if let Some(target) = grpcurl_target(addr, &config.security) {
        tracing::info!(
            r#"try: grpcurl -plaintext -d '{{"id":"42","int_value":100}}' {target} dyndata.v1.DynData/Mark"#
        );
    }
}

/// The address for grpcurl, if a call works without TLS, without credentials and with reflection.
/// Otherwise the command would need names and files that only the caller knows.
fn grpcurl_target(addr: &ListenAddr, security: &SecurityConfig) -> Option<String> {
    if security.access_file.is_some() || security.reflection != Reflection::Open {
        return None;
    }
    match addr {
        ListenAddr::Tcp(_) if security.tls.is_some() => None,
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

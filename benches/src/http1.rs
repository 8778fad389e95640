//! An HTTP/1.1 client for webdis: one request at a time on a connection with keep-alive.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// One connection.
pub struct Connection {
    socket: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    pub async fn open(target: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(target).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            received: Vec::with_capacity(1024),
        })
    }

    /// Sends a request and returns the body of its response.
    pub async fn call(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.socket.write_all(request).await?;
        self.received.clear();
        loop {
            let read = self.socket.read_buf(&mut self.received).await?;
            ensure!(read > 0, "the server closed a connection");
            if let Some(head) = self.received.windows(4).position(|end| end == b"\r\n\r\n") {
                let start = head + 4;
                let end = start + content_length(&self.received[..head])?;
                while self.received.len() < end {
                    let read = self.socket.read_buf(&mut self.received).await?;
                    ensure!(read > 0, "the server closed a connection within a reply");
                }
                return Ok(&self.received[start..end]);
            }
        }
    }
}

fn content_length(head: &[u8]) -> Result<usize> {
    let head = std::str::from_utf8(head)?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "status {status:?}");
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .with_context(|| format!("no content-length in {head:?}"))?
        .1;
    Ok(length.trim().parse()?)
}

//! A client's socket as HTTP/2 shall see it: without vectored writes.
//!
//! On a socket with vectored writes, h2 flushes after every DATA frame of 256 bytes or more; on
//! one without, it copies frames of up to 1,023 bytes into its buffer and sends many replies with
//! one system call. For values of 500 bytes that is half the CPU of a Get
//! (`docs/performance.md`); larger frames are written from where they are either way.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Passes everything on, but takes one buffer at a time.
#[derive(Debug)]
pub(super) struct Unvectored<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Unvectored<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

// `is_write_vectored` and `poll_write_vectored` are left at their defaults, which is the point.
impl<S: AsyncWrite + Unpin> AsyncWrite for Unvectored<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

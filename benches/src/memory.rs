//! Idle HTTP/2 connections, which need no generator.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

/// The client's preface with an empty SETTINGS frame (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The acknowledgement of the server's SETTINGS.
const SETTINGS_ACK: &[u8] = b"\0\0\0\x04\x01\0\0\0\0";

const FRAME_HEADER: usize = 9;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;

/// Opens `count` connections, and exchanges SETTINGS on each.
pub fn idle_connections(target: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let limit = Instant::now() + Duration::from_secs(30);
    let open = |number| {
        ensure!(
            Instant::now() < limit,
            "only {number} idle connections were opened in time"
        );
        idle_connection(target)
    };
    (0..count).map(open).collect()
}

fn idle_connection(target: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(target)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.write_all(PREFACE)?;
    let mut acknowledged = false;
    let mut received = false;
    while !(acknowledged && received) {
        let mut header = [0; FRAME_HEADER];
        socket.read_exact(&mut header)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        ensure!(length < 16_384, "a frame of {length} bytes");
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload)?;
        match (header[3], header[4] & ACK) {
            (SETTINGS, ACK) => acknowledged = true,
            (SETTINGS, _) => {
                socket.write_all(SETTINGS_ACK)?;
                received = true;
            }
            // GOAWAY.
            (7, _) => bail!("the server refused an idle connection"),
            _ => {}
        }
    }
    Ok(socket)
}

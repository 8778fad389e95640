//! Commands in the Redis protocol, RESP2, written straight into a connection's output buffer.
//!
//! Source: <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::time::Instant;

use super::clock::RedisClock;

/// Writes commands into a connection's output buffer and counts the replies that they will get.
#[derive(Debug)]
pub(crate) struct Commands<'a> {
    out: &'a mut Vec<u8>,
    replies: usize,
    /// The clock of the server that gets the commands.
    clock: Option<&'a RedisClock>,
}

impl<'a> Commands<'a> {
    /// Appends to `out`.
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            replies: 0,
            clock: None,
        }
    }

    /// Lets commands name times by the clock of the server.
    pub(crate) fn with_clock(mut self, clock: &'a RedisClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// What the clock of the server shows now at most, in milliseconds since the epoch, if that is
    /// known well enough.
    pub(crate) fn latest_server_millis(&self) -> Option<u64> {
        self.clock?.latest_millis(Instant::now())
    }

    /// Starts a command of `arguments` parts, the name included. The caller writes them into the
    /// buffer that this returns.
    pub(crate) fn command(&mut self, arguments: usize) -> &mut Vec<u8> {
        self.replies += 1;
        array_length(self.out, arguments);
        self.out
    }

    /// Starts a command as [`Commands::command`] does. `head` is its number of parts and its name,
    /// encoded.
    pub(crate) fn encoded(&mut self, head: &'static [u8]) -> &mut Vec<u8> {
        self.replies += 1;
        self.out.extend_from_slice(head);
        self.out
    }

    /// Writes a whole command.
    pub(crate) fn whole(&mut self, arguments: &[&[u8]]) {
        let out = self.command(arguments.len());
        for bytes in arguments {
            argument(out, bytes);
        }
    }

    /// Writes a transaction, which Redis executes in one step: MULTI, what `write` writes, and
    /// EXEC. [`Replies::executed`](super::resp::Replies::executed) reads the replies.
    pub(crate) fn transaction(&mut self, write: impl FnOnce(&mut Self)) {
        self.whole(&[b"MULTI"]);
        write(self);
        self.whole(&[b"EXEC"]);
    }

    /// How many replies there will be.
    pub(crate) fn replies(&self) -> usize {
        self.replies
    }
}

pub(super) fn array_length(out: &mut Vec<u8>, length: usize) {
    number_line(out, b'*', length);
}

/// Writes one part of a command.
pub(crate) fn argument(out: &mut Vec<u8>, bytes: &[u8]) {
    argument_length(out, bytes.len());
    out.extend_from_slice(bytes);
    argument_end(out);
}

/// Starts a part of a command. The caller then writes its `length` bytes.
pub(crate) fn argument_length(out: &mut Vec<u8>, length: usize) {
    number_line(out, b'$', length);
}

/// Ends a part of a command that [`argument_length`] started.
pub(crate) fn argument_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn number_line(out: &mut Vec<u8>, kind: u8, number: usize) {
    // Most numbers are lengths of up to two digits. Their lines are written in one piece.
    match number {
        0..10 => out.extend_from_slice(&[kind, digit(number), b'\r', b'\n']),
        10..100 => {
            let (tens, ones) = (digit(number / 10), digit(number % 10));
            out.extend_from_slice(&[kind, tens, ones, b'\r', b'\n']);
        }
        _ => {
            out.push(kind);
            out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn digit(number: usize) -> u8 {
    b'0' + number as u8
}

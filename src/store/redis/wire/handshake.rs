//! The first commands on a connection: credentials, database, PING, and questions about the server.
//!
//! The redis crate packs the commands. The replies are read over the socket itself with the reader
//! that calls use ([`Scanner`]). A reply may have [`MAX_REPLY_BYTES`]. Arrays may be nested as deep
//! as they like, because nothing that reads them recurses.
//!
//! There are no timeouts here: the caller's timeout covers the whole attempt to connect.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use redis::{Cmd, RedisConnectionInfo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    clock::Sample,
    failure::ConnectError,
    ping::{Challenge, ServerHealth},
    resp::{Replies, Reply, Scanner},
};

/// Maximum size of one reply. The largest is CLUSTER SLOTS: about 100 bytes for each range of slots
/// on each node.
const MAX_REPLY_BYTES: usize = 16 << 20;
/// Room for one read. Most replies are much smaller.
const READ_BYTES: usize = 4 * 1024;

/// A data node that has answered a handshake.
pub(super) struct Greeted<S, const N: usize> {
    pub(super) stream: S,
    /// Why the server cannot serve, if it answers and yet cannot.
    pub(super) unwell: Option<String>,
    /// The replies to the questions.
    pub(super) replies: [Bytes; N],
}

/// Introduces us on a new connection to a data node, and asks `questions` after a PING.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin, const N: usize>(
    stream: S,
    identity: &RedisConnectionInfo,
    questions: [Cmd; N],
) -> Result<Greeted<S, N>, ConnectError> {
    let mut handshake = Handshake::new(stream);
    handshake.log_in(identity).await?;
    let challenge = Challenge::new();
    let ping = redis::cmd("PING").arg(challenge.as_bytes()).to_owned();
    // In one piece, which saves round trips.
    let select = (identity.db() != 0).then(|| redis::cmd("SELECT").arg(identity.db()).to_owned());
    let commands = select.iter().chain([&ping]).chain(&questions);
    handshake.send(commands).await?;
    if select.is_some() {
        ConnectError::check(&handshake.reply().await?)?;
    }
    let unwell = match challenge.judge(&handshake.reply().await?) {
        ServerHealth::Serves => None,
        ServerHealth::Unwell(line) => Some(line),
        ServerHealth::Refuses(line) => return Err(ConnectError::refused(line.as_bytes())),
        ServerHealth::OutOfStep => return Err(ConnectError::OutOfStep),
    };
    let replies = handshake.replies().await?;
    Ok(Greeted {
        stream: handshake.finish()?,
        unwell,
        replies,
    })
}

/// Looks at the server's clock on a connection that [`greet`] has returned.
pub(super) async fn look_at_clock<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
) -> Result<(S, Option<Sample>), ConnectError> {
    let mut handshake = Handshake::new(stream);
    let asked = Instant::now();
    handshake.send([&redis::cmd("TIME")]).await?;
    let reply = handshake.reply().await?;
    let sample = Sample::read(asked, &mut Replies::new(&reply));
    Ok((handshake.finish()?, sample))
}

/// Logs in on a new connection, and asks `questions` and nothing else. Returns the replies.
pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin, const N: usize>(
    stream: S,
    identity: &RedisConnectionInfo,
    questions: &[Cmd; N],
) -> Result<[Bytes; N], ConnectError> {
    let mut handshake = Handshake::new(stream);
    handshake.log_in(identity).await?;
    handshake.send(questions).await?;
    handshake.replies().await
}

/// A connection that is not in use for calls yet.
struct Handshake<S> {
    stream: S,
    /// What has come and is not read yet.
    input: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
        }
    }

    /// Sends user and password, if there is a password.
    async fn log_in(&mut self, identity: &RedisConnectionInfo) -> Result<(), ConnectError> {
        let Some(password) = identity.password() else {
            return Ok(());
        };
        let with_user = identity
            .username()
            .map(|user| redis::cmd("AUTH").arg(user).arg(password).to_owned());
        let alone = redis::cmd("AUTH").arg(password).to_owned();
        self.send([with_user.as_ref().unwrap_or(&alone)]).await?;
        let mut reply = self.reply().await?;
        if with_user.is_some() && has_no_users(&reply) {
            self.send([&alone]).await?;
            reply = self.reply().await?;
        }
        match Replies::new(&reply).next() {
            Some(Reply::Status(b"OK")) => Ok(()),
            Some(Reply::Error(line)) => Err(ConnectError::authentication(line)),
            _ => Err(ConnectError::OutOfStep),
        }
    }

    async fn send(&mut self, commands: impl IntoIterator<Item = &Cmd>) -> Result<(), ConnectError> {
        let commands = commands.into_iter().map(Cmd::get_packed_command);
        let bytes: Vec<u8> = commands.flatten().collect();
        self.stream.write_all(&bytes).await?;
        // TLS may hold bytes back.
        Ok(self.stream.flush().await?)
    }

    /// Reads the next reply.
    async fn reply(&mut self) -> Result<Bytes, ConnectError> {
        let mut scanner = Scanner::new(1);
        loop {
            if let Some(length) = scanner.scan(&self.input)? {
                return Ok(self.input.split_to(length).freeze());
            }
            if self.input.len() > MAX_REPLY_BYTES {
                return Err(ConnectError::ReplyTooLarge);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(ConnectError::Closed);
            }
        }
    }

    async fn replies<const N: usize>(&mut self) -> Result<[Bytes; N], ConnectError> {
        let mut replies = [const { Bytes::new() }; N];
        for reply in &mut replies {
            *reply = self.reply().await?;
        }
        Ok(replies)
    }

    /// Returns the stream, on which every reply has been read.
    fn finish(self) -> Result<S, ConnectError> {
        match self.input.is_empty() {
            true => Ok(self.stream),
            false => Err(ConnectError::OutOfStep),
        }
    }
}

/// Whether a reply to AUTH comes from a Redis before version 6, where AUTH takes a password alone.
fn has_no_users(reply: &[u8]) -> bool {
    let wrong_number = b"wrong number of arguments for 'auth' command";
    memchr::memmem::find(reply, wrong_number).is_some()
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    /// A server that gives these answers, each after it has read something.
    fn server(answers: &'static [&'static [u8]]) -> DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut input = [0; 4096];
            for answer in answers {
                _ = theirs.read(&mut input).await;
                _ = theirs.write_all(answer).await;
            }
        });
        ours
    }

    fn identity() -> RedisConnectionInfo {
        RedisConnectionInfo::default()
            .set_username("user")
            .set_password("c4n4ry")
    }

    async fn asked(answers: &'static [&'static [u8]]) -> Result<Bytes, ConnectError> {
        let question = [redis::cmd("ROLE")];
        let replies = ask(server(answers), &identity(), &question).await;
        replies.map(|[reply]| reply)
    }

    #[tokio::test]
    async fn a_redis_without_users_is_given_the_password_alone() {
        let reply = asked(&[
            b"-ERR wrong number of arguments for 'auth' command\r\n",
            b"+OK\r\n",
            b"*1\r\n$6\r\nmaster\r\n",
        ]);
        let reply = reply.await.expect("is logged in");
        assert_eq!(&reply[..], b"*1\r\n$6\r\nmaster\r\n");
    }

    #[tokio::test]
    async fn an_error_reply_to_auth_is_not_quoted() {
        let failed = asked(&[b"-ERR unknown command 'AUTH', with args: 'user' 'c4n4ry'\r\n"]);
        let failed = failed.await.expect_err("is not logged in");
        assert_eq!(failed.to_string(), "authentication failed: ERR");
    }

    #[tokio::test]
    async fn a_reply_without_end_and_a_reply_too_many_are_refused() {
        static LONG: [u8; 1 << 20] = [b'x'; 1 << 20];
        static ENDLESS: [&[u8]; 19] = {
            let mut answers: [&[u8]; 19] = [&LONG; 19];
            answers[0] = b"+OK\r\n";
            answers[1] = b"$500000000\r\n";
            answers
        };
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            for answer in ENDLESS {
                _ = theirs.write_all(answer).await;
            }
            // Stays open.
            std::future::pending::<()>().await;
        });
        let question = [redis::cmd("ROLE")];
        let failed = ask(ours, &identity(), &question).await.map(drop);
        assert!(
            matches!(failed, Err(ConnectError::ReplyTooLarge)),
            "{failed:?}"
        );

        let stream = server(&[b"+OK\r\n", b"+PONG\r\n:1\r\n"]);
        let failed = greet(stream, &identity(), []).await.map(drop);
        assert!(matches!(failed, Err(ConnectError::OutOfStep)), "{failed:?}");
    }
}

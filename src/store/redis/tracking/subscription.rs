//! The connection on which Redis pushes the names of keys that change. It speaks RESP3.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use super::super::{
    layout::KeyLayout,
    wire::{
        commands::Commands,
        connect::Transport,
        failure::ConnectError,
        resp::{Replies, Reply, Scanner},
    },
};

/// Room for one read.
const READ_BYTES: usize = 16 * 1024;
/// The largest push. Redis closes the connection before.
const MAX_PUSH_BYTES: usize = 64 << 20;
/// How long Redis may take to take in a command.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that tracks.
pub(super) struct Subscription {
    stream: Box<dyn Transport>,
    layout: KeyLayout,
    input: BytesMut,
    scanner: Scanner,
    /// The questions without an answer, the oldest first.
    asked: VecDeque<(Question, Instant)>,
    /// The namespaces that Redis was asked to track.
    tracked: Arc<[String]>,
    /// Whether tracking has ended and not begun again.
    is_paused: bool,
}

/// What a reply answers.
enum Question {
    Hello,
    /// Tracking ends, so that it can begin with other prefixes.
    Untrack,
    /// These are all namespaces that are tracked then.
    Track(Arc<[String]>),
    Role,
}

/// What Redis says.
#[derive(Debug)]
pub(super) enum Heard {
    Changed(Vec<Bytes>),
    /// The database was flushed.
    AllChanged,
    Tracking {
        namespaces: Arc<[String]>,
        /// Whether changes may have been missed since the last time.
        after_pause: bool,
    },
    Role {
        is_master: bool,
    },
}

impl Subscription {
    /// Begins to track on a connection that has nothing else to do. What Redis says first is that it
    /// tracks, and then its role.
    pub(super) async fn start(
        stream: Box<dyn Transport>,
        layout: KeyLayout,
        namespaces: Arc<[String]>,
    ) -> Result<Self, ConnectError> {
        let mut subscription = Self {
            stream,
            layout,
            input: BytesMut::new(),
            scanner: Scanner::new(1),
            asked: VecDeque::new(),
            tracked: Arc::default(),
            is_paused: false,
        };
        let channel = format!("{}_watch", subscription.layout.prefix);
        let mut out = Vec::new();
        let mut commands = Commands::new(&mut out);
        commands.whole(&[b"HELLO", b"3"]);
        subscription.expect(Question::Hello);
        // Its answer is a push.
        commands.whole(&[b"SUBSCRIBE", channel.as_bytes()]);
        subscription.write_track(namespaces, &mut commands);
        subscription.write_role(&mut commands);
        subscription.send(&out).await?;
        Ok(subscription)
    }

    /// Tracks these namespaces and no others. There is always an answer, also if nothing changes: the
    /// lists in between may have been passed over, and whoever asks has forgotten what is tracked.
    pub(super) async fn track(&mut self, namespaces: Arc<[String]>) -> Result<(), ConnectError> {
        let mut out = Vec::new();
        let mut commands = Commands::new(&mut out);
        let is_more = self.tracked.iter().all(|name| namespaces.contains(name));
        if !is_more {
            // Redis has no command that ends one prefix.
            commands.whole(&[b"CLIENT", b"TRACKING", b"OFF"]);
            self.expect(Question::Untrack);
            self.tracked = Arc::default();
        }
        self.write_track(namespaces, &mut commands);
        self.send(&out).await
    }

    /// Asks for the role of the server.
    pub(super) async fn ask_role(&mut self) -> Result<(), ConnectError> {
        let mut out = Vec::new();
        self.write_role(&mut Commands::new(&mut out));
        self.send(&out).await
    }

    /// How long the oldest question has waited for its answer.
    pub(super) fn silence(&self) -> Duration {
        let oldest = self.asked.front();
        oldest.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    fn write_track(&mut self, namespaces: Arc<[String]>, commands: &mut Commands<'_>) {
        let new = namespaces
            .iter()
            .filter(|name| !self.tracked.contains(name));
        let prefixes: Vec<_> = new.map(|name| self.layout.prefix_of(name)).collect();
        if prefixes.is_empty() {
            // The answer comes after those to earlier questions.
            commands.whole(&[b"PING"]);
        } else {
            let mut words: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON", b"BCAST"];
            for prefix in &prefixes {
                words.extend([b"PREFIX".as_slice(), prefix]);
            }
            commands.whole(&words);
        }
        self.tracked = Arc::clone(&namespaces);
        self.expect(Question::Track(namespaces));
    }

    fn write_role(&mut self, commands: &mut Commands<'_>) {
        commands.whole(&[b"ROLE"]);
        self.expect(Question::Role);
    }

    fn expect(&mut self, question: Question) {
        self.asked.push_back((question, Instant::now()));
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ConnectError> {
        let sent = timeout(WRITE_TIMEOUT, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        let sent = sent.await;
        Ok(sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
    }

    /// What Redis says next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Heard, ConnectError> {
        loop {
            while let Some(length) = self.scanner.scan(&self.input)? {
                self.scanner = Scanner::new(1);
                let piece = self.input.split_to(length).freeze();
                if let Some(heard) = self.understand(&piece)? {
                    return Ok(heard);
                }
            }
            if self.input.len() > MAX_PUSH_BYTES {
                return Err(ConnectError::ReplyTooLarge);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(ConnectError::Closed);
            }
        }
    }

    fn understand(&mut self, piece: &Bytes) -> Result<Option<Heard>, ConnectError> {
        let mut replies = Replies::new(piece);
        match replies.next() {
            Some(Reply::Push(_)) => return Ok(pushed(piece, replies)),
            Some(Reply::Error(line)) => {
                return Err(ConnectError::refused(line));
            }
            _ => {}
        }
        let question = self.asked.pop_front();
        match question.ok_or(ConnectError::OutOfStep)?.0 {
            Question::Hello => Ok(None),
            Question::Untrack => {
                self.is_paused = true;
                Ok(None)
            }
            Question::Track(namespaces) => Ok(Some(Heard::Tracking {
                namespaces,
                after_pause: std::mem::take(&mut self.is_paused),
            })),
            Question::Role => match replies.next() {
                Some(Reply::Bulk(role)) => Ok(Some(Heard::Role {
                    is_master: role == b"master",
                })),
                _ => Err(ConnectError::OutOfStep),
            },
        }
    }
}

/// The keys in a push, or `None` if it is about something else.
fn pushed(piece: &Bytes, mut replies: Replies<'_>) -> Option<Heard> {
    let Some(Reply::Bulk(b"invalidate")) = replies.next() else {
        return None;
    };
    match replies.next() {
        Some(Reply::Array(_)) => {
            let keys = replies.filter_map(|key| match key {
                Reply::Bulk(key) => Some(piece.slice_ref(key)),
                _ => None,
            });
            Some(Heard::Changed(keys.collect()))
        }
        _ => Some(Heard::AllChanged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::IndexedNamespaces, store::redis::settings::KeyFormat};

    #[test]
    fn pushes_are_told_apart() {
        let heard = |text: &'static str| {
            let piece = Bytes::from_static(text.as_bytes());
            let mut replies = Replies::new(text.as_bytes());
            assert!(matches!(replies.next(), Some(Reply::Push(_))));
            pushed(&piece, replies)
        };
        let keys = heard(">2\r\n$10\r\ninvalidate\r\n*2\r\n$1\r\na\r\n$2\r\nbc\r\n");
        assert!(matches!(keys, Some(Heard::Changed(keys)) if keys == ["a", "bc"]));
        let all = heard(">2\r\n$10\r\ninvalidate\r\n_\r\n");
        assert!(matches!(all, Some(Heard::AllChanged)));
        let other = heard(">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
        assert!(other.is_none());
    }

    /// A list that comes again may be news to whoever asks, if the lists in between were passed over.
    #[tokio::test]
    async fn each_list_gets_an_answer() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let layout = KeyLayout {
            prefix: "p".to_owned(),
            format: KeyFormat::Plain,
            indexed: IndexedNamespaces::default(),
        };
        let list: Arc<[String]> = ["a".to_owned()].into();
        let started = Subscription::start(Box::new(ours), layout, Arc::clone(&list));
        let mut subscription = started.await.expect("starts");
        subscription.track(list).await.expect("asks");
        let replies = b"%0\r\n>3\r\n$9\r\nsubscribe\r\n$7\r\np_watch\r\n:1\r\n+OK\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n+PONG\r\n";
        theirs.write_all(replies).await.expect("writes");
        let mut heard = Vec::new();
        for _ in 0..3 {
            heard.push(subscription.next().await.expect("a reply"));
        }
        assert!(matches!(heard[0], Heard::Tracking { .. }), "{heard:?}");
        assert!(matches!(heard[1], Heard::Role { .. }), "{heard:?}");
        assert!(matches!(heard[2], Heard::Tracking { .. }), "{heard:?}");
    }
}

//! MOVED and ASK: replies with which a node sends us to another one.

use super::{
    super::super::wire::resp::{Replies, Reply},
    slots::NodeAddr,
};

/// Where a node sends us instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The other node owns the slot now.
    Moved(NodeAddr),
    /// The slot is on its way to the other node, which serves this one request.
    Ask(NodeAddr),
}

impl Redirect {
    /// Finds the redirect in the replies to a unit: `MOVED 3999 127.0.0.1:6381`. Only the first
    /// error counts. A later one says nothing about the unit as a whole: if MULTI was refused, each
    /// command after it ran alone.
    pub(super) fn find(replies: &[u8]) -> Option<Self> {
        let line = Replies::new(replies).find_map(|reply| match reply {
            Reply::Error(line) => Some(line),
            _ => None,
        })?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let kind = match words.next()? {
            "MOVED" => Self::Moved,
            "ASK" => Self::Ask,
            _ => return None,
        };
        let (host, port) = words.nth(1)?.rsplit_once(':')?;
        Some(kind(NodeAddr {
            // A node that does not know its own host name gives a question mark.
            host: if host == "?" { "" } else { host }.to_owned(),
            port: port.parse().ok()?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fuzz_redirect(line in "(MOVED|ASK)? ?[0-9]{0,6} ?.{0,20}") {
            _ = Redirect::find(format!("-{line}\r\n").as_bytes());
        }
    }

    #[test]
    fn redirects_are_found_among_replies() {
        let addr = |host: &str, port| NodeAddr {
            host: host.to_owned(),
            port,
        };
        for (replies, expected) in [
            ("$2\r\n42\r\n", None),
            ("-ERR MOVED 1 h:1\r\n", None),
            (
                "-MOVED 3999 10.0.0.1:6381\r\n",
                Some(Redirect::Moved(addr("10.0.0.1", 6381))),
            ),
            (
                "$-1\r\n-ASK 3999 ::1:6381\r\n",
                Some(Redirect::Ask(addr("::1", 6381))),
            ),
            (
                "-MOVED 3999 :6381\r\n",
                Some(Redirect::Moved(addr("", 6381))),
            ),
            ("-ASK 3999 ?:6381\r\n", Some(Redirect::Ask(addr("", 6381)))),
            ("-NOPERM MULTI\r\n-ASK 3999 h:1\r\n:5\r\n", None),
            ("$11\r\nMOVED 1 h:1\r\n", None),
        ] {
            assert_eq!(Redirect::find(replies.as_bytes()), expected, "{replies:?}");
        }
    }
}

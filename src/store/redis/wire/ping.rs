//! PINGs, and what their replies say about the server.

use super::{
    failure,
    resp::{Replies, Reply},
};

/// The argument of a PING, which Redis sends back. It proves that a reply belongs to this PING and
/// not to another command.
pub(crate) struct Challenge(String);

/// What the reply to a PING says about the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerHealth {
    /// The server answers calls.
    Serves,
    /// The server fails all calls at the moment. It says so in its reply to each of them, so the
    /// connection is good.
    Unwell(String),
    /// The server does not let us in.
    Refuses(String),
    /// The reply is not the one to this PING.
    OutOfStep,
}

impl Challenge {
    pub(crate) fn new() -> Self {
        Self(format!("{:016x}", fastrand::u64(..)))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Reads the reply to the PING.
    pub(crate) fn judge(&self, reply: &[u8]) -> ServerHealth {
        match Replies::new(reply).next() {
            Some(Reply::Error(line)) => of_error(&String::from_utf8_lossy(line)),
            // Some proxies answer PING themselves, and ignore its argument.
            Some(Reply::Bulk(text) | Reply::Status(text))
                if text == self.as_bytes() || text == b"PONG" =>
            {
                ServerHealth::Serves
            }
            _ => ServerHealth::OutOfStep,
        }
    }
}

/// Judges the error that a PING got.
fn of_error(line: &str) -> ServerHealth {
    match failure::split(line).0 {
        "LOADING" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN" => ServerHealth::Unwell(line.to_owned()),
        // We may not send PING, or the server refuses nothing but writes.
        "NOPERM" | "MISCONF" | "NOREPLICAS" | "READONLY" | "OOM" => ServerHealth::Serves,
        _ => ServerHealth::Refuses(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_tells_who_serves_from_who_does_not() {
        let challenge = Challenge("c".to_owned());
        let unwell = |line: &str| ServerHealth::Unwell(line.to_owned());
        let refuses = |line: &str| ServerHealth::Refuses(line.to_owned());
        for (reply, health) in [
            ("-LOADING", unwell("LOADING")),
            ("-BUSY", unwell("BUSY")),
            ("-MASTERDOWN no master", unwell("MASTERDOWN no master")),
            ("-MISCONF", ServerHealth::Serves),
            ("-NOPERM", ServerHealth::Serves),
            ("-NOAUTH", refuses("NOAUTH")),
            ("-ERR no", refuses("ERR no")),
            ("+PONG", ServerHealth::Serves),
            ("$1\r\nc", ServerHealth::Serves),
            ("$1\r\nd", ServerHealth::OutOfStep),
            (":1", ServerHealth::OutOfStep),
        ] {
            let health_of_reply = challenge.judge(format!("{reply}\r\n").as_bytes());
            assert_eq!(health_of_reply, health, "{reply}");
        }
    }
}

//! What a node says about its cluster: the answers to CLUSTER INFO and CLUSTER SLOTS.

use redis::Value;

use super::{Addr, SLOTS};

/// What a node says about the cluster.
pub(super) struct View {
    /// Masters, and the first and last of each range of slots that they have.
    pub(super) ranges: Vec<(Addr, u16, u16)>,
    /// Whether it serves.
    pub(super) ok: bool,
}

impl View {
    /// Reads the answers to CLUSTER INFO and CLUSTER SLOTS. `host` is whom we asked, which is
    /// what a node without a host of its own means.
    pub(super) fn read(info: Value, slots: Value, host: &str) -> Option<Self> {
        /// First and last slot, the master's host and port, and the rest of it; the replicas.
        type Master = (Option<String>, u16);
        let info: String = redis::from_redis_value(info).ok()?;
        let Value::Array(slots) = slots else {
            return None;
        };
        let mut ranges = Vec::with_capacity(slots.len());
        for range in slots {
            let Value::Array(range) = range else {
                return None;
            };
            let [
                Value::Int(first),
                Value::Int(last),
                Value::Array(master),
                ..,
            ] = &range[..]
            else {
                return None;
            };
            let master = Value::Array(master.get(..2)?.to_vec());
            let (name, port): Master = redis::from_redis_value(master).ok()?;
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS {
                return None;
            }
            let addr = Addr {
                host: name
                    .filter(|name| !name.is_empty() && name != "?")
                    .unwrap_or_else(|| host.to_owned()),
                port,
            };
            ranges.push((addr, first, last));
        }
        Some(Self {
            ranges,
            ok: info.lines().any(|line| line.trim() == "cluster_state:ok"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_makes_no_sense_is_refused() {
        let read = |slots: &str| {
            let slots = redis::parse_redis_value(slots.as_bytes()).expect("RESP");
            let info = Value::BulkString(b"cluster_state:ok\r\n".to_vec());
            View::read(info, slots, "asked").map(|view| view.ranges)
        };
        let addr = |host: &str| Addr {
            host: host.to_owned(),
            port: 7000,
        };
        assert_eq!(
            read("*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n$1\r\nh\r\n:7000\r\n"),
            Some(vec![(addr("h"), 0, 5)])
        );
        assert_eq!(
            read("*1\r\n*3\r\n:0\r\n:5\r\n*2\r\n$-1\r\n:7000\r\n"),
            Some(vec![(addr("asked"), 0, 5)])
        );
        for slots in [
            "*1\r\n*3\r\n:5\r\n:0\r\n*2\r\n$1\r\nh\r\n:7000\r\n",
            "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\nh\r\n:7000\r\n",
            "*1\r\n*2\r\n:0\r\n:5\r\n",
            ":1\r\n",
        ] {
            assert_eq!(read(slots), None, "{slots:?}");
        }
    }
}

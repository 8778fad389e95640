//! What a node says about its cluster: the answers to CLUSTER INFO and CLUSTER SLOTS.

use redis::Value;

use super::{Addr, SLOTS};

/// What a node says about the cluster. It always knows who has some of the slots.
pub(super) struct View {
    /// Masters, and the first and last of each range of slots that they have.
    pub(super) ranges: Vec<(Addr, u16, u16)>,
    /// Whether it serves.
    pub(super) ok: bool,
    /// The highest epoch that the node has heard of. Every failover and every move of a slot has a
    /// higher one than those before.
    epoch: u64,
}

/// The better view is the greater one: see [`View::worth`].
pub(super) type Worth = (bool, usize, u64);

impl View {
    /// Reads the answers to CLUSTER INFO and CLUSTER SLOTS. `host` is whom we asked, which is
    /// what a node without a host of its own means. None from a node that knows no slots, as after
    /// CLUSTER RESET, and if the answers make no sense.
    pub(super) fn read(info: Value, slots: Value, host: &str) -> Option<Self> {
        let info: String = redis::from_redis_value(info).ok()?;
        let Value::Array(slots) = slots else {
            return None;
        };
        let mut ranges = Vec::with_capacity(slots.len());
        for range in slots {
            ranges.extend(read_range(range, host)?);
        }
        if ranges.is_empty() {
            return None;
        }
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        };
        Some(Self {
            ranges,
            ok: field("cluster_state") == Some("ok"),
            epoch: field("cluster_current_epoch")
                .and_then(|epoch| epoch.parse().ok())
                .unwrap_or(0),
        })
    }

    /// How much this view is to be believed, compared with those of other nodes: one that serves
    /// first, then how many slots it knows the owner of, then its epoch. A node that was cut off
    /// has a lower epoch than those that went on without it.
    pub(super) fn worth(&self) -> Worth {
        let slots = self.ranges.iter();
        let known = slots.map(|(_, first, last)| usize::from(last - first) + 1);
        (self.ok, known.sum(), self.epoch)
    }
}

/// One range of CLUSTER SLOTS, if it has an owner that can be spoken to: `Some(None)` if not. An
/// owner whose address the node has lost has port 0.
fn read_range(range: Value, host: &str) -> Option<Option<(Addr, u16, u16)>> {
    /// Host and port, of a list that goes on.
    type Owner = (Option<String>, u16);
    let Value::Array(range) = range else {
        return None;
    };
    let [Value::Int(first), Value::Int(last), owners @ ..] = &range[..] else {
        return None;
    };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    if first > last || last >= SLOTS {
        return None;
    }
    let master = match owners.first() {
        Some(Value::Array(master)) => Value::Array(master.get(..2)?.to_vec()),
        Some(_) => return None,
        None => return Some(None),
    };
    let (name, port): Owner = redis::from_redis_value(master).ok()?;
    let addr = Addr {
        host: name
            .filter(|name| !name.is_empty() && name != "?")
            .unwrap_or_else(|| host.to_owned()),
        port,
    };
    Some((port != 0).then_some((addr, first, last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "cluster_state:ok\r\ncluster_current_epoch:7\r\n";
    const OWNER: &str = "*2\r\n$1\r\nh\r\n:7000\r\n";

    /// A range of CLUSTER SLOTS with these owners.
    fn range(first: u16, last: i32, owners: &[&str]) -> String {
        let length = 2 + owners.len();
        format!("*{length}\r\n:{first}\r\n:{last}\r\n{}", owners.concat())
    }

    fn view(info: &str, ranges: &[String]) -> Option<View> {
        let slots = format!("*{}\r\n{}", ranges.len(), ranges.concat());
        let slots = redis::parse_redis_value(slots.as_bytes()).expect("RESP");
        View::read(Value::BulkString(info.into()), slots, "asked")
    }

    #[test]
    fn ranges_are_read_and_those_without_a_reachable_owner_are_left_out() {
        let read = |ranges: &[String]| view(OK, ranges).map(|view| view.ranges);
        let addr = |host: &str| Addr {
            host: host.to_owned(),
            port: 7000,
        };
        let known = || range(0, 5, &[OWNER]);
        assert_eq!(read(&[known()]), Some(vec![(addr("h"), 0, 5)]));
        let unnamed = "*2\r\n$-1\r\n:7000\r\n";
        assert_eq!(
            read(&[range(0, 5, &[unnamed])]),
            Some(vec![(addr("asked"), 0, 5)])
        );
        let lost = "*2\r\n$0\r\n\r\n:0\r\n";
        for ownerless in [range(6, 9, &[lost]), range(6, 9, &[])] {
            assert_eq!(
                read(&[known(), ownerless.clone()]),
                Some(vec![(addr("h"), 0, 5)])
            );
            assert_eq!(read(&[ownerless]), None, "nobody has a slot");
        }
        assert_eq!(read(&[]), None, "an empty map is none");
    }

    #[test]
    fn a_map_that_makes_no_sense_is_refused() {
        for range in [
            range(5, 0, &[OWNER]),
            range(0, 16384, &[OWNER]),
            range(0, -1, &[OWNER]),
            range(0, 5, &[":1\r\n"]),
            range(0, 5, &["*1\r\n$1\r\nh\r\n"]),
            ":1\r\n".to_owned(),
        ] {
            assert!(
                view(OK, std::slice::from_ref(&range)).is_none(),
                "{range:?}"
            );
        }
        assert!(View::read(Value::Nil, Value::Array(Vec::new()), "asked").is_none());
        assert!(View::read(Value::BulkString(OK.into()), Value::Nil, "asked").is_none());
    }

    #[test]
    fn the_best_view_serves_then_knows_most_then_is_newest() {
        let worth = |info: &str, last: i32| {
            let view = view(info, &[range(0, last, &[OWNER])]);
            view.expect("a view").worth()
        };
        let state = |state: &str, epoch: u64| {
            format!("cluster_state:{state}\r\ncluster_current_epoch:{epoch}\r\n")
        };
        let worst_to_best = [
            worth("", 5),
            worth(&state("fail", 1), 5),
            worth(&state("fail", 9), 5),
            worth(&state("fail", 1), 16383),
            worth(&state("ok", 9), 5),
            worth(&state("ok", 9), 9),
            worth(&state("ok", 1), 16383),
            worth(&state("ok", 10), 16383),
        ];
        assert!(worst_to_best.is_sorted(), "{worst_to_best:?}");
    }
}

//! What a node says about its cluster: its replies to CLUSTER INFO and CLUSTER SLOTS.

use super::{
    super::super::wire::resp::{Replies, Reply},
    slots::{NodeAddr, SLOTS},
};

/// The cluster as one node sees it. The node knows the owner of some of the slots at least.
pub(super) struct View {
    /// Masters, and the first and last slot of each range that they own.
    pub(super) ranges: Vec<Range>,
    /// Whether the cluster serves.
    pub(super) ok: bool,
    /// The highest epoch that the node has heard of. Every failover and every move of a slot gets a
    /// higher one than those before.
    epoch: u64,
}

/// The master of a range of slots, the first slot and the last.
pub(super) type Range = (NodeAddr, u16, u16);

/// How much a view is to be believed; see [`View::worth`]. The greater is the better.
pub(super) type Worth = (bool, usize, u64);

impl View {
    /// Reads the replies to CLUSTER INFO and CLUSTER SLOTS. `host` is the host that was asked,
    /// which a node means when it gives no host. Returns `None` if the node knows no slots, as
    /// after CLUSTER RESET, and if the replies make no sense.
    pub(super) fn read(
        info: Option<Reply<'_>>,
        mut slots: Replies<'_>,
        host: &str,
    ) -> Option<Self> {
        let info = info?.text()?;
        let Some(Reply::Array(length)) = slots.next() else {
            return None;
        };
        let mut ranges = Vec::new();
        for _ in 0..length {
            ranges.extend(read_range(&mut slots, host)?);
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

    /// How much to believe this view, compared with those of other nodes. A view in which the
    /// cluster serves is best, then one that knows the owners of more slots, then one with a higher
    /// epoch. A node that was cut off has a lower epoch than those that went on without it.
    pub(super) fn worth(&self) -> Worth {
        let slots = self.ranges.iter();
        let known = slots.map(|(_, first, last)| usize::from(last - first) + 1);
        (self.ok, known.sum(), self.epoch)
    }
}

/// Reads one range of CLUSTER SLOTS: first, last, and the nodes that have it, the master first.
/// Each node is a list of host, port and more. Returns `Some(None)` for a range without an owner
/// that we can connect to: if the node has lost the owner's address, the port is 0.
fn read_range(replies: &mut Replies<'_>, host: &str) -> Option<Option<Range>> {
    let Some(Reply::Array(parts @ 2..)) = replies.next() else {
        return None;
    };
    let mut slot = || match replies.next() {
        Some(Reply::Int(slot)) => u16::try_from(slot).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    };
    let (first, last) = (slot()?, slot()?);
    if first > last {
        return None;
    }
    if parts == 2 {
        return Some(None);
    }
    let Some(Reply::Array(fields @ 2..)) = replies.next() else {
        return None;
    };
    let name = match replies.next()? {
        Reply::Nil => None,
        name => Some(name.text()?),
    };
    let port = u16::try_from(replies.next()?.number()?).ok()?;
    // The rest of the master's list, and its replicas.
    replies.pass(fields - 2 + parts - 3);
    let name = name.filter(|name| !name.is_empty() && *name != "?");
    let addr = NodeAddr {
        host: name.unwrap_or(host).to_owned(),
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
        let info = Some(Reply::Bulk(info.as_bytes()));
        View::read(info, Replies::new(slots.as_bytes()), "asked")
    }

    #[test]
    fn ranges_are_read_and_those_without_a_reachable_owner_are_left_out() {
        let read = |ranges: &[String]| view(OK, ranges).map(|view| view.ranges);
        let addr = |host: &str| NodeAddr {
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
        let read = |info, slots| View::read(Some(info), Replies::new(slots), "asked");
        assert!(read(Reply::Nil, b"*0\r\n").is_none());
        assert!(read(Reply::Bulk(OK.as_bytes()), b"$-1\r\n").is_none());
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

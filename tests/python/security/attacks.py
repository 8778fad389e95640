"""The list of attacks: what each does, its expected end, and the settings of its server."""

from collections.abc import Callable
from dataclasses import dataclass

from security import (
    admin,
    bodies,
    crowds,
    floods,
    health,
    holders,
    malformed,
    tls_attacks,
    watches,
    writes,
)
from security.attacker import Attacker

Report = dict
# Judges the ends of the attacker's connections: what is wrong with them, or None.
Fate = Callable[[Report], str | None]


def goaway(*codes: str) -> Fate:
    """The server closes every connection, and says GOAWAY with one of these codes. A GOAWAY may be
    lost when the attacker's own bytes are still on their way; not every time."""

    def complaint(report: Report) -> str | None:
        said = 0
        for fate, count in report["fates"].items():
            if fate == "closed":
                continue
            if fate in ("open", "stalled") and count == 1:
                # The one that was under way when the attack's time was over.
                continue
            words = fate.split()
            if words[0] != "GOAWAY" or words[1] not in codes or fate.endswith("but not closed"):
                return f"{count} connections: {fate}, not GOAWAY {' or '.join(codes)}"
            said += count
        return None if said else "no connection got a GOAWAY"

    return complaint


def closed(report: Report) -> str | None:
    """The server closes every connection, with or without a word."""
    for fate, count in report["fates"].items():
        if fate in ("open", "stalled") or fate.endswith("but not closed"):
            return f"{count} connections left {fate}"
    return None


def bounded(report: Report) -> str | None:
    """Connections may stay: what they can do is bounded, as the row's figures and the attack's own
    checks show."""
    for fate, count in report["fates"].items():
        if fate.endswith("but not closed"):
            return f"{count} connections: {fate}"
    return None


@dataclass(frozen=True)
class Attack:
    """One attack: what it does, what becomes of it, and on what server."""

    run: Callable[[Attacker], None]
    fate: Fate
    expected: str
    processes: int = 1
    # The least time that it takes.
    seconds: float = 0
    # Flags of the server.
    settings: tuple[str, ...] = ()
    # The server has a certificate, and the good clients speak TLS.
    tls: bool = False
    # The server has an access file. The good clients have a token, and the attackers have none.
    anonymous: bool = False
    # The limit for the growth of the server's memory.
    growth_mebibytes: int = 64
    # False if the attack fills the limit of connections, so that there is no room for others.
    lets_others_connect: bool = True


CALM = "ENHANCE_YOUR_CALM"
SLOW = ("--send-timeout=2s",)
# How much memory an attack by callers without credentials may take.
LITTLE_MEBIBYTES = 32
NOBODY = {"anonymous": True, "growth_mebibytes": LITTLE_MEBIBYTES}
INDEXED = (*SLOW, f"--indexed-namespaces={watches.INDEXED}")
OPEN_REFLECTION = ("--reflection=open",)
# The attackers have one address. This keeps the limit for each peer out of the way.
ANY_PEER = ("--max-connections-per-peer=10000",)

ATTACKS: dict[str, Attack] = {
    "rapid-reset": Attack(floods.rapid_reset, goaway(CALM), f"GOAWAY {CALM}", processes=2),
    "paced-reset": Attack(floods.paced_reset, bounded, "bounded: 256 streams"),
    "continuation-flood": Attack(
        floods.continuation_flood,
        goaway(CALM, "COMPRESSION_ERROR", "PROTOCOL_ERROR"),
        f"GOAWAY {CALM} or COMPRESSION_ERROR",
    ),
    "made-you-reset": Attack(floods.made_you_reset, bounded, "GOAWAY, or at most 1,024 resets"),
    "empty-data": Attack(floods.empty_data, goaway(CALM), f"GOAWAY {CALM}"),
    "settings-flood": Attack(floods.settings_flood, bounded, "bounded: one ack at a time"),
    "ping-flood": Attack(floods.ping_flood, bounded, "bounded: one pong at a time"),
    "unread-acks": Attack(floods.unread_acks, bounded, "bounded: the server stops reading"),
    "ignored-frames": Attack(floods.ignored_frames, bounded, "bounded: nothing is kept"),
    "stream-flood": Attack(floods.stream_flood, goaway(CALM), f"256 streams, GOAWAY {CALM}"),
    "window-0-gets": Attack(holders.window_0_gets, bounded, "bounded", settings=SLOW),
    "window-0-batches": Attack(
        holders.window_0_batches, bounded, "bounded", settings=SLOW
    ),
    "window-1-dribble": Attack(
        holders.window_1_dribble, bounded, "bounded", settings=SLOW
    ),
    "slow-socket": Attack(holders.slow_socket, bounded, "bounded", settings=SLOW),
    "slow-socket-batches": Attack(
        holders.slow_socket_batches, bounded, "bounded", settings=SLOW
    ),
    "unfinished-bodies": Attack(
        bodies.unfinished_bodies, bounded, "bounded: 3 s", processes=4
    ),
    "slow-bodies": Attack(
        bodies.slow_bodies, bounded, "DEADLINE_EXCEEDED after 3 s", seconds=7.5
    ),
    "header-bomb": Attack(holders.header_bomb, bounded, f"HTTP 431, reset or GOAWAY {CALM}"),
    "hpack-bomb": Attack(holders.hpack_bomb, goaway(CALM, "COMPRESSION_ERROR"), f"GOAWAY {CALM}"),
    "gzip-bomb": Attack(holders.gzip_bomb, bounded, "UNIMPLEMENTED"),
    "open-watches": Attack(health.open_watches, bounded, "bounded"),
    "small-replies": Attack(
        holders.small_replies, bounded, "bounded", 2, growth_mebibytes=LITTLE_MEBIBYTES
    ),
    "unfinished-heads": Attack(
        bodies.unfinished_heads, bounded, "bounded", growth_mebibytes=LITTLE_MEBIBYTES
    ),
    "unfinished-heads-everywhere": Attack(
        bodies.unfinished_heads_everywhere, bounded, "bounded", growth_mebibytes=LITTLE_MEBIBYTES
    ),
    "unfinished-bodies-everywhere": Attack(
        bodies.unfinished_bodies_everywhere,
        bounded,
        "bounded",
        processes=4,
        growth_mebibytes=LITTLE_MEBIBYTES,
    ),
    "unfinished-batch-marks": Attack(writes.unfinished_batch_marks, bounded, "bounded: 3 s", 2),
    "unfinished-batch-marks-anonymous": Attack(
        writes.anonymous_batch_marks, bounded, "UNAUTHENTICATED", 2, **NOBODY
    ),
    "largest-batch-marks": Attack(writes.largest_batch_marks, bounded, "OK"),
    "increment-flood": Attack(writes.increment_flood, bounded, "OK", 2),
    "mark-ifs-of-large-values": Attack(
        writes.mark_ifs_of_large_values,
        bounded,
        "bounded",
        settings=SLOW,
        growth_mebibytes=LITTLE_MEBIBYTES,
    ),
    "too-many-watches": Attack(
        watches.too_many_watches, bounded, "1,000 stay, the rest refused", settings=INDEXED
    ),
    "watches-anonymous": Attack(watches.anonymous_watches, bounded, "UNAUTHENTICATED", **NOBODY),
    "watches-unread": Attack(
        watches.unread_watches, bounded, "reset after 2 s", seconds=4, settings=INDEXED
    ),
    "watches-of-all-unread": Attack(
        watches.unread_watches_of_all, bounded, "bounded", seconds=4, settings=INDEXED
    ),
    "watches-of-all-reopened": Attack(
        watches.reopened_watches_of_all, bounded, "bounded", settings=INDEXED
    ),
    # 100,000 watched ids, and several requests of 4 MiB.
    "watches-huge-lists": Attack(
        watches.huge_lists, bounded, "statuses", settings=INDEXED, growth_mebibytes=96
    ),
    "watches-reopened": Attack(watches.reopened_watches, bounded, "bounded", settings=INDEXED),
    "lists-and-counts": Attack(watches.lists_and_counts, bounded, "statuses", settings=INDEXED),
    "endless-bodies": Attack(
        bodies.endless_bodies, bounded, "reset within 2 s and 4 MiB", seconds=7, **NOBODY
    ),
    "health-unfinished": Attack(health.unfinished_checks, bounded, "refused", **NOBODY),
    "health-unfinished-everywhere": Attack(
        health.unfinished_everywhere, bounded, "bounded", processes=2, **NOBODY
    ),
    "health-lengths": Attack(
        health.lying_lengths, bounded, "statuses", settings=OPEN_REFLECTION, **NOBODY
    ),
    "health-check-flood": Attack(health.check_flood, bounded, "bounded", **NOBODY),
    # Below 64 MiB, not 32: up to 51 were seen. Each of the 200 connections keeps some 100 KiB of HTTP/2 state.
    "health-watch-flood": Attack(health.watch_flood, bounded, "bounded", anonymous=True),
    "health-window-0": Attack(
        health.window_0_checks, bounded, "reset within 2 s", settings=SLOW, **NOBODY
    ),
    "not-grpc-window-0": Attack(
        health.window_0_not_grpc, bounded, "reset within 2 s", settings=SLOW, **NOBODY
    ),
    "errors-window-0": Attack(
        health.window_0_errors, bounded, "over within 2 s", settings=SLOW, **NOBODY
    ),
    "unread-errors": Attack(
        health.unread_errors, bounded, "closed after 2 s", settings=SLOW, **NOBODY
    ),
    "reflection-unfinished": Attack(
        health.unfinished_reflection,
        bounded,
        "refused",
        processes=2,
        settings=OPEN_REFLECTION,
        **NOBODY,
    ),
    "admin-silent": Attack(admin.silent, bounded, "closed for others", **NOBODY),
    "admin-slow-heads": Attack(admin.slow_heads, bounded, "closed for others", **NOBODY),
    "admin-unread": Attack(admin.unread_replies, bounded, "closed for others", **NOBODY),
    "admin-flood": Attack(admin.request_flood, bounded, "served", **NOBODY),
    "unfinished-preface": Attack(crowds.unfinished_preface, closed, "closed within 5 s", seconds=8),
    "silent-connections": Attack(crowds.silent_after_preface, bounded, "bounded: keepalive"),
    "reconnects": Attack(crowds.reconnects, bounded, "bounded"),
    "idle-5000": Attack(
        crowds.idle_5000,
        bounded,
        "1,000 stay, the rest closed at once",
        seconds=6,
        settings=("--max-connections=1000", *ANY_PEER),
        lets_others_connect=False,
    ),
    "idle-5000-one-peer": Attack(
        crowds.idle_5000_one_peer,
        bounded,
        "1,000 stay, the rest closed at once",
        seconds=6,
        settings=("--max-connections-per-peer=1000",),
    ),
    "http-1": Attack(malformed.http_1, closed, "HTTP/1.1 505 and closed"),
    "other-protocols": Attack(malformed.other_protocols, closed, "closed at once"),
    "lying-lengths": Attack(
        malformed.lying_lengths, goaway("FRAME_SIZE_ERROR"), "statuses; GOAWAY FRAME_SIZE_ERROR"
    ),
    "random-frames": Attack(malformed.random_frames, bounded, "served, reset or GOAWAY"),
    "wrong-calls": Attack(malformed.wrong_calls, bounded, "UNIMPLEMENTED, HTTP 415, …"),
    "malformed-requests": Attack(malformed.malformed_requests, bounded, "reset or GOAWAY"),
    "tls-half-open": Attack(
        tls_attacks.half_open_handshakes, closed, "closed within 5 s", seconds=8, tls=True
    ),
    "tls-silent": Attack(
        tls_attacks.silent_handshakes,
        bounded,
        "closed after 5 s",
        seconds=8,
        tls=True,
        growth_mebibytes=LITTLE_MEBIBYTES,
    ),
    "tls-half-hello": Attack(
        tls_attacks.half_hellos,
        bounded,
        "closed after 5 s",
        seconds=8,
        tls=True,
        growth_mebibytes=LITTLE_MEBIBYTES,
    ),
    "tls-unfinished": Attack(
        tls_attacks.unfinished_handshakes, closed, "closed within 5 s", tls=True
    ),
    "tls-dripping": Attack(
        tls_attacks.dripping_handshakes, closed, "closed within 5 s", seconds=7, tls=True
    ),
    "tls-handshake-flood": Attack(tls_attacks.handshake_flood, bounded, "bounded", tls=True),
    "tls-plaintext": Attack(tls_attacks.plaintext_on_tls, closed, "closed", tls=True),
    "tls-garbage": Attack(tls_attacks.garbage_after_handshake, closed, "closed", tls=True),
    "tls-renegotiation": Attack(tls_attacks.renegotiation, bounded, "refused", tls=True),
    "tls-wrong-alpn": Attack(tls_attacks.wrong_alpn, bounded, "refused", tls=True),
    "tls-rapid-reset": Attack(
        tls_attacks.rapid_reset_tls, goaway(CALM), f"GOAWAY {CALM}", tls=True
    ),
}

//! The API as callers see it. Each case runs once on the embedded store and once on a real
//! redis-server.

mod support;

use std::time::Duration;

use dyndata::proto::{BatchGetRequest, GetRequest, MarkRequest, entry};
use support::{
    Client, assert_error, batch, blamed_field, bytes, int, mark, millis, now, on_every_store, read,
    seconds_since_epoch, text,
};
use tonic::Code::{InvalidArgument, ResourceExhausted};

on_every_store![
    an_int_reads_back,
    ints_at_the_edges_read_back,
    text_reads_back,
    text_that_looks_like_a_number_stays_text,
    text_that_looks_like_a_tag_stays_text,
    bytes_read_back,
    empty_values_are_values,
    a_value_of_the_largest_size_reads_back,
    a_value_beyond_the_largest_size_is_refused,
    an_absent_id_is_an_entry_without_value,
    a_mark_replaces_value_and_type,
    a_mark_without_ttl_lives_sixty_seconds,
    mark_says_when_the_value_expires,
    a_value_is_gone_when_its_ttl_has_passed,
    a_mark_before_expiry_keeps_a_value_alive,
    a_mark_with_a_shorter_ttl_shortens,
    one_millisecond_is_a_ttl,
    a_ttl_of_24_hours_is_taken,
    ttls_out_of_range_are_refused,
    a_missing_value_is_refused,
    an_empty_id_is_refused,
    the_longest_id_is_accepted,
    a_longer_id_is_refused,
    control_characters_in_ids_are_refused,
    ids_of_any_other_characters_read_back,
    namespaces_keep_ids_apart,
    invalid_namespaces_are_refused_by_every_rpc,
    get_has_expire_time_only_when_asked,
    get_expire_time_is_never_later_than_the_expiry,
    an_absent_id_has_no_expire_time,
    batch_get_answers_in_order_with_duplicates,
    batch_get_takes_a_thousand_ids,
    batch_get_of_more_ids_is_refused,
    an_empty_batch_is_refused,
    an_invalid_id_in_a_batch_is_named_by_its_place,
    batch_get_has_expire_times_only_when_asked,
    batch_get_reads_every_type,
    batch_get_reads_one_namespace,
    concurrent_calls_each_get_their_own_answer,
    a_message_beyond_any_valid_one_is_refused,
    an_error_names_lengths_and_never_the_value,
];

async fn round_trip(client: &mut Client, value: dyndata::proto::mark_request::Value) {
    client.mark(mark("id", value.clone())).await.expect("marks");
    assert_eq!(client.get("id").await.expect("gets"), read(value));
}

async fn an_int_reads_back(mut client: Client) {
    round_trip(&mut client, int(100)).await;
}

async fn ints_at_the_edges_read_back(mut client: Client) {
    for value in [0, 1, -1, i64::MAX, i64::MIN] {
        round_trip(&mut client, int(value)).await;
    }
}

async fn text_reads_back(mut client: Client) {
    round_trip(&mut client, text("away, back at 5 ☕")).await;
}

async fn text_that_looks_like_a_number_stays_text(mut client: Client) {
    for value in ["100", "-1", "0", "007", "9223372036854775808"] {
        round_trip(&mut client, text(value)).await;
    }
}

async fn text_that_looks_like_a_tag_stays_text(mut client: Client) {
    for value in ["s:x", "b:x", "s:", "b:"] {
        round_trip(&mut client, text(value)).await;
    }
}

async fn bytes_read_back(mut client: Client) {
    let all: Vec<u8> = (0..=255).collect();
    for value in [&all[..], b"100", b"s:text", b"\r\n$-1\r\n"] {
        round_trip(&mut client, bytes(value)).await;
    }
}

async fn empty_values_are_values(mut client: Client) {
    round_trip(&mut client, text("")).await;
    round_trip(&mut client, bytes(b"")).await;
}

async fn a_value_of_the_largest_size_reads_back(mut client: Client) {
    round_trip(&mut client, text(&"x".repeat(65_536))).await;
    round_trip(&mut client, bytes(&[0xff; 65_536])).await;
}

async fn a_value_beyond_the_largest_size_is_refused(mut client: Client) {
    for (value, field) in [
        (text(&"x".repeat(65_537)), "string_value"),
        (bytes(&[0; 65_537]), "bytes_value"),
    ] {
        let result = client.mark(mark("id", value)).await;
        let status = assert_error(result, InvalidArgument, "VALUE_TOO_LARGE");
        assert_eq!(blamed_field(&status), field);
        assert!(status.message().contains("65537") && status.message().contains("65536"));
    }
    assert_eq!(client.get("id").await.expect("gets"), None);
}

async fn an_absent_id_is_an_entry_without_value(mut client: Client) {
    let request = GetRequest {
        id: "nobody".to_owned(),
        ..GetRequest::default()
    };
    let entry = client
        .get_request(request)
        .await
        .expect("OK, not NOT_FOUND");
    assert_eq!((entry.id.as_str(), entry.value), ("nobody", None));
}

async fn a_mark_replaces_value_and_type(mut client: Client) {
    round_trip(&mut client, int(1)).await;
    round_trip(&mut client, text("two")).await;
    round_trip(&mut client, bytes(b"three")).await;
    round_trip(&mut client, int(4)).await;
}

async fn a_mark_without_ttl_lives_sixty_seconds(mut client: Client) {
    let before = now();
    let expires = client.mark(mark("id", int(1))).await.expect("marks");
    let lives = seconds_since_epoch(&expires.expect("expire_time")) - before;
    assert!((59.9..60.1 + (now() - before)).contains(&lives), "{lives}");
}

async fn mark_says_when_the_value_expires(mut client: Client) {
    let before = now();
    let request = MarkRequest {
        ttl: Some(millis(5_500)),
        ..mark("id", int(1))
    };
    let expires = client.mark(request).await.expect("marks");
    let expires = seconds_since_epoch(&expires.expect("expire_time"));
    // Never later than the real expiry, which is 5.5 s after the store got the value.
    assert!(
        expires >= before + 5.499 && expires <= now() + 5.5,
        "{expires}"
    );
}

async fn a_value_is_gone_when_its_ttl_has_passed(mut client: Client) {
    let request = MarkRequest {
        ttl: Some(millis(300)),
        ..mark("id", int(1))
    };
    let start = tokio::time::Instant::now();
    client.mark(request).await.expect("marks");
    let marked = tokio::time::Instant::now();
    tokio::time::sleep_until(start + Duration::from_millis(250)).await;
    let value = client.get("id").await.expect("gets");
    // If the machine stalled in between, the answer proves nothing.
    if start.elapsed() < Duration::from_millis(300) {
        assert_eq!(value, read(int(1)), "there at 250 ms");
    }
    // The value was marked some time before this.
    tokio::time::sleep_until(marked + Duration::from_millis(350)).await;
    assert_eq!(
        client.get("id").await.expect("gets"),
        None,
        "gone after 350 ms"
    );
}

async fn a_mark_before_expiry_keeps_a_value_alive(mut client: Client) {
    for value in 0..4 {
        let request = MarkRequest {
            ttl: Some(millis(2_000)),
            ..mark("id", int(value))
        };
        client.mark(request).await.expect("marks");
        assert_eq!(client.get("id").await.expect("gets"), read(int(value)));
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    assert_eq!(client.get("id").await.expect("gets"), read(int(3)));
}

async fn a_mark_with_a_shorter_ttl_shortens(mut client: Client) {
    client.mark(mark("id", int(1))).await.expect("marks");
    let request = MarkRequest {
        ttl: Some(millis(50)),
        ..mark("id", int(2))
    };
    client.mark(request).await.expect("marks");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(client.get("id").await.expect("gets"), None);
}

async fn one_millisecond_is_a_ttl(mut client: Client) {
    let request = MarkRequest {
        ttl: Some(millis(1)),
        ..mark("id", int(1))
    };
    client.mark(request).await.expect("marks");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(client.get("id").await.expect("gets"), None);
}

async fn a_ttl_of_24_hours_is_taken(mut client: Client) {
    let request = MarkRequest {
        ttl: Some(millis(86_400_000)),
        ..mark("id", int(1))
    };
    let expires = client
        .mark(request)
        .await
        .expect("marks")
        .expect("expire_time");
    assert!(seconds_since_epoch(&expires) > now() + 86_390.0);
}

async fn ttls_out_of_range_are_refused(mut client: Client) {
    for (seconds, nanos) in [
        (0, 0),
        (0, 999_999),
        (-1, 0),
        (86_400, 1),
        (i64::MAX, 0),
        (i64::MIN, 0),
        (1, -1),
        (1, i32::MAX),
    ] {
        let request = MarkRequest {
            ttl: Some(prost_types::Duration { seconds, nanos }),
            ..mark("id", int(1))
        };
        let result = client.mark(request).await;
        let status = assert_error(result, InvalidArgument, "TTL_OUT_OF_RANGE");
        assert_eq!(blamed_field(&status), "ttl");
        assert!(status.message().contains("1ms") && status.message().contains("1day"));
    }
    assert_eq!(client.get("id").await.expect("gets"), None);
}

async fn a_missing_value_is_refused(mut client: Client) {
    let request = MarkRequest {
        value: None,
        ..mark("id", int(1))
    };
    let status = assert_error(client.mark(request).await, InvalidArgument, "VALUE_MISSING");
    assert_eq!(blamed_field(&status), "value");
}

async fn an_empty_id_is_refused(mut client: Client) {
    let status = assert_error(client.get("").await, InvalidArgument, "ID_INVALID");
    assert_eq!(blamed_field(&status), "id");
    let status = assert_error(
        client.mark(mark("", int(1))).await,
        InvalidArgument,
        "ID_INVALID",
    );
    assert_eq!(blamed_field(&status), "id");
}

async fn the_longest_id_is_accepted(mut client: Client) {
    for id in ["x".repeat(256), "é".repeat(128)] {
        client.mark(mark(&id, int(1))).await.expect("marks");
        assert_eq!(client.get(&id).await.expect("gets"), read(int(1)));
    }
}

async fn a_longer_id_is_refused(mut client: Client) {
    for id in ["x".repeat(257), "é".repeat(129)] {
        let status = assert_error(client.get(&id).await, InvalidArgument, "ID_INVALID");
        assert!(status.message().contains("256"), "{}", status.message());
    }
}

async fn control_characters_in_ids_are_refused(mut client: Client) {
    for id in ["\0", "a\nb", "tab\t", "\u{7f}", "c1\u{85}"] {
        assert_error(client.get(id).await, InvalidArgument, "ID_INVALID");
        assert_error(
            client.mark(mark(id, int(1))).await,
            InvalidArgument,
            "ID_INVALID",
        );
    }
}

async fn ids_of_any_other_characters_read_back(mut client: Client) {
    let ids = [
        "42",
        " ",
        "a b",
        "é",
        "日本",
        "👩‍👩‍👧",
        "a/b",
        "../x",
        "{tag}",
        "'",
        "\"",
        "\\",
        "*",
        "b'42'",
    ];
    for (number, id) in ids.iter().enumerate() {
        client
            .mark(mark(id, int(number as i64)))
            .await
            .expect("marks");
    }
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(
            client.get(id).await.expect("gets"),
            read(int(number as i64)),
            "{id}"
        );
    }
}

async fn namespaces_keep_ids_apart(mut client: Client) {
    let namespaces = ["", "a", "b", "a-b", &"n".repeat(63)].map(ToOwned::to_owned);
    for (number, namespace) in namespaces.iter().enumerate() {
        let request = MarkRequest {
            namespace: namespace.clone(),
            ..mark("id", int(number as i64))
        };
        client.mark(request).await.expect("marks");
    }
    for (number, namespace) in namespaces.iter().enumerate() {
        let request = GetRequest {
            namespace: namespace.clone(),
            id: "id".to_owned(),
            ..GetRequest::default()
        };
        let entry = client.get_request(request).await.expect("gets");
        assert_eq!(entry.value, read(int(number as i64)), "{namespace}");
    }
}

async fn invalid_namespaces_are_refused_by_every_rpc(mut client: Client) {
    for namespace in ["A", "-a", "_a", "a/b", "a:b", "a b", "é", &"n".repeat(64)] {
        let namespace = namespace.to_owned();
        let marked = client
            .mark(MarkRequest {
                namespace: namespace.clone(),
                ..mark("id", int(1))
            })
            .await;
        let got = client
            .get_request(GetRequest {
                namespace: namespace.clone(),
                id: "id".to_owned(),
                ..GetRequest::default()
            })
            .await;
        let batched = client
            .batch_get(BatchGetRequest {
                namespace,
                ..batch(["id"])
            })
            .await;
        for status in [
            assert_error(marked, InvalidArgument, "NAMESPACE_INVALID"),
            assert_error(got, InvalidArgument, "NAMESPACE_INVALID"),
            assert_error(batched, InvalidArgument, "NAMESPACE_INVALID"),
        ] {
            assert_eq!(blamed_field(&status), "namespace");
        }
    }
}

async fn expire_time(client: &mut Client, id: &str, include: bool) -> Option<f64> {
    let request = GetRequest {
        id: id.to_owned(),
        include_expire_time: include,
        ..GetRequest::default()
    };
    let entry = client.get_request(request).await.expect("gets");
    entry.expire_time.as_ref().map(seconds_since_epoch)
}

async fn get_has_expire_time_only_when_asked(mut client: Client) {
    client.mark(mark("id", int(1))).await.expect("marks");
    assert_eq!(expire_time(&mut client, "id", false).await, None);
    let expires = expire_time(&mut client, "id", true).await.expect("asked");
    assert!(
        (now() + 50.0..=now() + 60.0).contains(&expires),
        "{expires}"
    );
}

async fn get_expire_time_is_never_later_than_the_expiry(mut client: Client) {
    let request = MarkRequest {
        ttl: Some(millis(1_000)),
        ..mark("id", int(1))
    };
    client.mark(request).await.expect("marks");
    let latest_expiry = now() + 1.0;
    let mut read = 0;
    while let Some(expires) = expire_time(&mut client, "id", true).await {
        assert!(
            expires <= latest_expiry + 0.001,
            "{expires} > {latest_expiry}"
        );
        read += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(read > 0 && now() >= latest_expiry - 1.0);
}

async fn an_absent_id_has_no_expire_time(mut client: Client) {
    assert_eq!(expire_time(&mut client, "nobody", true).await, None);
}

async fn batch_get_answers_in_order_with_duplicates(mut client: Client) {
    client.mark(mark("a", int(1))).await.expect("marks");
    client.mark(mark("b", text("two"))).await.expect("marks");
    let entries = client
        .batch_get(batch(["b", "absent", "a", "b"]))
        .await
        .expect("gets");
    let got: Vec<_> = entries
        .into_iter()
        .map(|entry| (entry.id, entry.value))
        .collect();
    let two = read(text("two"));
    assert_eq!(
        got,
        [
            ("b".to_owned(), two.clone()),
            ("absent".to_owned(), None),
            ("a".to_owned(), read(int(1))),
            ("b".to_owned(), two),
        ]
    );
}

async fn batch_get_takes_a_thousand_ids(mut client: Client) {
    for id in (0..500).step_by(2) {
        client
            .mark(mark(&id.to_string(), int(id)))
            .await
            .expect("marks");
    }
    // Every id twice, odd ones absent.
    let ids: Vec<i64> = (0..1000).map(|place| place * 7 % 500).collect();
    let entries = client.batch_get(batch(&ids)).await.expect("gets");
    assert_eq!(entries.len(), 1000);
    for (id, entry) in ids.iter().zip(entries) {
        let expected = (id % 2 == 0).then_some(entry::Value::IntValue(*id));
        assert_eq!((entry.id, entry.value), (id.to_string(), expected));
    }
}

async fn batch_get_of_more_ids_is_refused(mut client: Client) {
    let result = client.batch_get(batch(0..1001)).await;
    let status = assert_error(result, InvalidArgument, "BATCH_TOO_LARGE");
    assert_eq!(blamed_field(&status), "ids");
    assert!(status.message().contains("1000"), "{}", status.message());
}

async fn an_empty_batch_is_refused(mut client: Client) {
    let result = client.batch_get(BatchGetRequest::default()).await;
    let status = assert_error(result, InvalidArgument, "BATCH_EMPTY");
    assert_eq!(blamed_field(&status), "ids");
}

async fn an_invalid_id_in_a_batch_is_named_by_its_place(mut client: Client) {
    let result = client.batch_get(batch(["a", "b", "", "d"])).await;
    let status = assert_error(result, InvalidArgument, "ID_INVALID");
    assert_eq!(blamed_field(&status), "ids[2]");
}

async fn batch_get_has_expire_times_only_when_asked(mut client: Client) {
    for (id, ttl) in [("a", 5_000), ("b", 50_000)] {
        let request = MarkRequest {
            ttl: Some(millis(ttl)),
            ..mark(id, int(1))
        };
        client.mark(request).await.expect("marks");
    }
    let plain = client.batch_get(batch(["a", "b"])).await.expect("gets");
    assert!(plain.iter().all(|entry| entry.expire_time.is_none()));
    let asked = BatchGetRequest {
        include_expire_time: true,
        ..batch(["b", "absent", "a"])
    };
    let entries = client.batch_get(asked).await.expect("gets");
    let left: Vec<_> = entries
        .iter()
        .map(|entry| {
            entry
                .expire_time
                .as_ref()
                .map(|time| seconds_since_epoch(time) - now())
        })
        .collect();
    assert!(
        matches!(left[..], [Some(40.0..=50.0), None, Some(0.1..=5.0)]),
        "{left:?}"
    );
}

async fn batch_get_reads_every_type(mut client: Client) {
    let values = [int(-7), text("seven"), bytes(b"\x00\xff")];
    for (number, value) in values.iter().enumerate() {
        client
            .mark(mark(&number.to_string(), value.clone()))
            .await
            .expect("marks");
    }
    let entries = client.batch_get(batch(0..3)).await.expect("gets");
    let got: Vec<_> = entries.into_iter().map(|entry| entry.value).collect();
    assert_eq!(got, values.map(read));
}

async fn batch_get_reads_one_namespace(mut client: Client) {
    let request = MarkRequest {
        namespace: "orders".to_owned(),
        ..mark("id", int(1))
    };
    client.mark(request).await.expect("marks");
    let orders = BatchGetRequest {
        namespace: "orders".to_owned(),
        ..batch(["id"])
    };
    assert_eq!(
        client.batch_get(orders).await.expect("gets")[0].value,
        read(int(1))
    );
    assert_eq!(
        client.batch_get(batch(["id"])).await.expect("gets")[0].value,
        None
    );
}

async fn concurrent_calls_each_get_their_own_answer(client: Client) {
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..200 {
        let mut client = client.clone();
        calls.spawn(async move {
            let id = format!("id-{number}");
            for round in 0..5 {
                let value = number * 10 + round;
                client.mark(mark(&id, int(value))).await.expect("marks");
                assert_eq!(client.get(&id).await.expect("gets"), read(int(value)));
            }
        });
    }
    assert_eq!(calls.join_all().await.len(), 200);
}

async fn a_message_beyond_any_valid_one_is_refused(mut client: Client) {
    let result = client.mark(mark("id", text(&"x".repeat(1 << 20)))).await;
    let status = assert_error(result, ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert!(status.message().contains("bytes"), "{}", status.message());
}

async fn an_error_names_lengths_and_never_the_value(mut client: Client) {
    let secret = "secret".repeat(20_000);
    let marked = client.mark(mark("id", text(&secret))).await;
    let got = client.get(&secret[..300]).await;
    for message in [
        marked.expect_err("too large").message().to_owned(),
        got.expect_err("too long").message().to_owned(),
    ] {
        assert!(
            !message.contains("secret") && message.len() < 200,
            "{message}"
        );
    }
}

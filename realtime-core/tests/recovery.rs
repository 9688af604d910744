//! Clients that come back: they get what they have missed, all of it and once, or are told that they cannot.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use realtime_core::config::{ChannelPolicy, HistoryPolicy};
use realtime_core::history::Query;
use realtime_core::hub::HubBuilder;
use realtime_core::{Config, Hub, Payload, Position, Publish, QueryError, User};
use realtime_testkit::bus::begin_to_join;
use realtime_testkit::hub::history;
use realtime_testkit::{Client, DEADLINE, Delayed, Received, config, eventually, start};
use serde_json::{Value, json};

fn publish(hub: &Hub, channel: &str, text: &str) -> Position {
    hub.publish(&Publish::new(channel, "e", Payload::Text(text))).unwrap().position
}

fn recover(channel: &str, epoch: impl ToString, offset: u64) -> Value {
    json!({"action": "subscribe", "channel": channel, "recover": {"epoch": epoch.to_string(), "offset": offset}})
}

fn last_value(pattern: &str) -> ChannelPolicy {
    ChannelPolicy { pattern: pattern.into(), last_value: true, ..ChannelPolicy::default() }
}

fn delayed(change: impl FnOnce(&mut Config)) -> (Arc<Delayed>, Hub) {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let hub = HubBuilder::new(config(change)).broker(broker.clone()).start().unwrap();
    (broker, hub)
}

/// The memory broker, which answers at once, and one that answers later.
fn hubs(change: impl Fn(&mut Config)) -> [Hub; 2] {
    [start(&change), delayed(&change).1]
}

async fn offsets(client: &mut Client, count: usize) -> Vec<u64> {
    let mut offsets = Vec::new();
    for _ in 0..count {
        offsets.push(client.expect("message").await["offset"].as_u64().unwrap());
    }
    offsets
}

#[tokio::test]
async fn what_can_be_recovered_is_known_at_every_edge() {
    // Case R04, invariants I2 and I5: 24 positions with a window of 10 below the top of 30, on a channel of which nobody had
    // received anything, and around a publication that is not kept. Each is asked for twice, without new messages between.
    for hub in hubs(|config| config.channels = vec![history("h", 10), history("fresh", 10), history("gap", 10)]) {
        // Who has never received anything has a position all the same.
        let mut client = Client::connect(&hub).await;
        let fresh = client.subscribe("fresh").await;
        assert_eq!(fresh["offset"], 0);
        client.close().await;
        let fresh = fresh["epoch"].as_str().unwrap().to_owned();
        publish(&hub, "fresh", "1");
        let gap = publish(&hub, "gap", "1").epoch.to_string();
        let mut volatile = Publish::new("gap", "e", Payload::Text("2"));
        volatile.history = false;
        hub.publish(&volatile).unwrap();
        publish(&hub, "gap", "3");
        let epoch = publish(&hub, "h", "1").epoch;
        for number in 2..=30 {
            publish(&hub, "h", &number.to_string());
        }
        let other = realtime_core::Epoch(epoch.0 ^ 1).to_string();
        let upper = epoch.to_string().to_uppercase();
        let own = epoch.to_string();
        let table: [(&str, &str, Value, Option<&[u64]>); 24] = [
            // One less than the window, the window, one more.
            ("h", &own, json!(21), Some(&[22, 23, 24, 25, 26, 27, 28, 29, 30])),
            ("h", &own, json!(20), Some(&[21, 22, 23, 24, 25, 26, 27, 28, 29, 30])),
            ("h", &own, json!(19), None),
            ("h", &own, json!(25), Some(&[26, 27, 28, 29, 30])),
            ("h", &own, json!(0), None),
            ("h", &own, json!(29), Some(&[30])),
            ("h", &own, json!(30), Some(&[])),
            ("h", &own, json!(31), None),
            ("h", &own, json!(u64::MAX), None),
            ("h", &upper, json!(29), Some(&[30])),
            ("h", &other, json!(29), None),
            ("h", &other, json!(30), None),
            ("h", "", json!(29), None),
            ("h", "text", json!(29), None),
            ("h", &format!("{own}0"), json!(29), None),
            // No positions at all: a fault of the request.
            ("h", &own, json!("29"), None),
            ("h", &own, json!(-1), None),
            ("h", &own, json!(null), None),
            ("fresh", &fresh, json!(0), Some(&[1])),
            ("fresh", &own, json!(0), None),
            ("gap", &gap, json!(0), Some(&[1, 3])),
            ("gap", &gap, json!(1), Some(&[3])),
            ("gap", &gap, json!(2), Some(&[3])),
            ("gap", &gap, json!(3), Some(&[])),
        ];
        for (channel, epoch, offset, expected) in table {
            let top = match channel {
                "h" => 30,
                "gap" => 3,
                _ => 1,
            };
            let request = json!({"action": "subscribe", "channel": channel, "recover": {"epoch": epoch, "offset": offset}});
            for _ in 0..2 {
                let mut client = Client::connect(&hub).await;
                let answer = client.ask(request.clone()).await;
                if !offset.is_u64() {
                    assert_eq!(answer["type"], "error", "{request}: {answer}");
                } else {
                    let start = if expected.is_some() { offset.clone() } else { json!(top) };
                    assert_eq!(
                        (&answer["type"], &answer["recovered"], &answer["offset"]),
                        (&json!("subscribed"), &json!(expected.is_some()), &start),
                        "{request}"
                    );
                    let expected = expected.unwrap_or_default();
                    assert_eq!(offsets(&mut client, expected.len()).await, expected, "{request}");
                }
                client.expect_nothing().await;
                client.reset();
            }
        }
        // The same connection asks again, and what follows is live.
        let mut client = Client::connect(&hub).await;
        for _ in 0..2 {
            assert_eq!(client.ask(recover("fresh", &fresh, 0)).await["recovered"], true);
            assert_eq!(offsets(&mut client, 1).await, [1]);
            client.expect_nothing().await;
        }
        publish(&hub, "fresh", "2");
        assert_eq!(offsets(&mut client, 1).await, [2]);
    }
}

#[tokio::test]
async fn what_has_grown_too_old_is_recovered_by_nobody_and_never_in_part() {
    // Case R04, the edges of an age: all of it, or a word that it is gone.
    for hub in hubs(|config| {
        let aged =
            |pattern, ttl_ms| ChannelPolicy { history: Some(HistoryPolicy { ttl_ms, ..HistoryPolicy::default() }), ..history(pattern, 1) };
        config.channels = vec![aged("short", 1_000), aged("long", 3_600_000)];
    }) {
        for channel in ["short", "long"] {
            for number in 1..=3 {
                publish(&hub, channel, &number.to_string());
            }
        }
        let position = publish(&hub, "long", "4");
        let mut client = Client::connect(&hub).await;
        assert_eq!(client.ask(recover("long", position.epoch, 0)).await["recovered"], true);
        assert_eq!(offsets(&mut client, 4).await, [1, 2, 3, 4]);
        let epoch = publish(&hub, "short", "4").epoch;
        let (mut recovered, mut lost) = (0, 0);
        let begun = std::time::Instant::now();
        while lost < 3 {
            assert!(begun.elapsed() < DEADLINE, "{recovered} recovered");
            let mut client = Client::connect(&hub).await;
            let answer = client.ask(recover("short", epoch, 0)).await;
            if answer["recovered"] == true {
                assert_eq!((offsets(&mut client, 4).await, lost), (vec![1, 2, 3, 4], 0));
                recovered += 1;
            } else {
                lost += 1;
            }
            client.expect_nothing().await;
            client.reset();
        }
        // Nothing was missed since the newest, however old that is.
        let mut client = Client::connect(&hub).await;
        assert_eq!(client.ask(recover("short", epoch, 4)).await["recovered"], true);
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn what_was_not_kept_is_not_missed_and_reaches_who_is_there() {
    for hub in hubs(|config| config.channels = vec![history("h", 10)]) {
        let mut live = Client::subscribed(&hub, "h").await;
        let epoch = publish(&hub, "h", "1").epoch;
        let mut volatile = Publish::new("h", "e", Payload::Text("2"));
        volatile.history = false;
        assert_eq!(hub.publish(&volatile).unwrap().position.offset, 2);
        publish(&hub, "h", "3");
        assert_eq!(offsets(&mut live, 3).await, [1, 2, 3]);
        for (offset, expected) in [(0, vec![1, 3]), (1, vec![3]), (2, vec![3])] {
            let mut client = Client::connect(&hub).await;
            assert_eq!(client.ask(recover("h", epoch, offset)).await["recovered"], true);
            assert_eq!(offsets(&mut client, expected.len()).await, expected);
            client.expect_nothing().await;
        }
    }
}

#[tokio::test]
async fn a_channel_without_history_recovers_nothing() {
    let hub = start(|_| {});
    let position = publish(&hub, "plain", "x");
    let mut client = Client::connect(&hub).await;
    let answer = client.ask(recover("plain", position.epoch, 0)).await;
    assert_eq!((&answer["recovered"], &answer["offset"]), (&json!(false), &json!(1)));
}

#[tokio::test]
async fn apps_have_histories_of_their_own() {
    let hub = start(|config| {
        config.channels = vec![history("h", 10)];
        config.apps = vec![realtime_core::config::AppConfig { name: "shop".into(), ..Default::default() }];
    });
    let mut shop = Publish::new("h", "e", Payload::Text("of the shop"));
    shop.app = Some("shop");
    let epoch = hub.publish(&shop).unwrap().position.epoch;
    let mut client = Client::connect_to(&hub, "/ws?app=shop").await;
    assert_eq!(client.ask(recover("h", epoch, 0)).await["recovered"], true);
    let message = client.expect("message").await;
    assert_eq!((&message["channel"], &message["data"]), (&json!("h"), &json!("of the shop")));
    let mut stranger = Client::connect(&hub).await;
    assert_eq!(stranger.ask(recover("h", epoch, 0)).await["recovered"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_under_traffic_has_no_hole_and_no_repeat() {
    // Case R02, invariant I2: whoever recovers while others publish gets everything since its position, once.
    let all_kept = |config: &mut Config| {
        config.channels = vec![history("hot", 100_000)];
        // However long it takes on this machine.
        config.channels[0].history.as_mut().unwrap().bytes = 256 << 20;
        config.limits.history_bytes = 256 << 20;
    };
    for hub in hubs(all_kept) {
        let epoch = publish(&hub, "hot", "x").epoch;
        let stop = Arc::new(AtomicBool::new(false));
        let publishers: Vec<_> = (0..2)
            .map(|_| {
                let (hub, stop) = (hub.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        publish(&hub, "hot", "x");
                        std::thread::sleep(Duration::from_micros(200));
                    }
                })
            })
            .collect();
        let mut position = 0;
        for round in 0..60 {
            let mut client = Client::connect(&hub).await;
            // Every third position is from long ago: more than one step of a cursor.
            let from = if round % 3 == 0 { 0 } else { position };
            let answer = client.ask(recover("hot", epoch, from)).await;
            assert_eq!((&answer["recovered"], &answer["offset"]), (&json!(true), &json!(from)));
            let wanted = (position - from) as usize + 40;
            assert_eq!(offsets(&mut client, wanted).await, (from + 1..=from + wanted as u64).collect::<Vec<_>>());
            position = from + wanted as u64;
            client.reset();
        }
        stop.store(true, Ordering::Relaxed);
        for publisher in publishers {
            publisher.join().unwrap();
        }
        assert!(hub.stop(Duration::from_secs(20)).complete);
    }
}

#[tokio::test]
async fn a_long_history_never_overflows_an_outbox() {
    // 8 MiB through outboxes of 64 KiB, to a client that reads nothing for a while.
    for hub in hubs(|config| {
        config.channels = vec![ChannelPolicy {
            history: Some(realtime_core::config::HistoryPolicy { size: 1_000, bytes: 64 << 20, ..Default::default() }),
            ..history("long", 1)
        }];
        config.limits.outbox_bytes = 64 << 10;
        config.limits.publication_bytes = 16 << 10;
    }) {
        let text = "x".repeat(8 << 10);
        let epoch = publish(&hub, "long", &text).epoch;
        for _ in 1..1_000 {
            publish(&hub, "long", &text);
        }
        let mut client = Client::connect(&hub).await;
        assert_eq!(client.ask(recover("long", epoch, 0)).await["recovered"], true);
        assert_eq!(offsets(&mut client, 1_000).await, (1..=1_000).collect::<Vec<_>>());
        publish(&hub, "long", "live");
        assert_eq!(client.expect("message").await["data"], "live");
        assert_eq!(hub.stats().closed_slow, 0);
    }
}

#[tokio::test]
async fn a_cursor_that_its_history_runs_away_from_ends_with_a_word() {
    // Invariant I2: never what follows a hole.
    for hub in hubs(|config| {
        config.channels = vec![history("fast", 200)];
        config.limits.outbox_bytes = 64 << 10;
        config.limits.publication_bytes = 16 << 10;
    }) {
        let text = "x".repeat(4 << 10);
        let mut epoch = publish(&hub, "fast", &text).epoch;
        for _ in 1..200 {
            epoch = publish(&hub, "fast", &text).epoch;
        }
        // It reads its answer and no more: what it has not taken by then is overtaken.
        let mut client = Client::connect(&hub).await;
        assert_eq!(client.ask(recover("fast", epoch, 0)).await["recovered"], true);
        for _ in 0..1_000 {
            publish(&hub, "fast", &text);
        }
        let mut expected = 1;
        let end = loop {
            let message = client.json().await;
            if message["type"] != "message" {
                break message;
            }
            assert_eq!(message["offset"], expected);
            expected += 1;
            if expected == 1_201 {
                break json!({"type": "all"});
            }
        };
        // How much the sockets between took is the system's affair.
        if end["type"] != "all" {
            assert_eq!(end, json!({"type": "unsubscribed", "channel": "fast", "code": "interrupted"}));
            let answer = client.ask(recover("fast", epoch, expected - 1)).await;
            assert_eq!(answer["recovered"], false);
        }
    }
}

#[tokio::test]
async fn the_last_value_comes_with_the_subscription() {
    for hub in hubs(|config| config.channels = vec![last_value("price"), ChannelPolicy { last_value: true, ..history("both", 10) }]) {
        let mut early = Client::connect(&hub).await;
        assert_eq!(early.subscribe("price").await["offset"], 0);
        let epoch = publish(&hub, "price", "1").epoch;
        assert_eq!(early.expect("message").await["data"], "1");
        publish(&hub, "price", "2");
        assert_eq!(early.expect("message").await["data"], "2");

        let mut late = Client::connect(&hub).await;
        assert_eq!(late.subscribe("price").await["offset"], 2);
        let message = late.expect("message").await;
        assert_eq!((&message["data"], &message["offset"]), (&json!("2"), &json!(2)));
        late.expect_nothing().await;
        publish(&hub, "price", "3");
        assert_eq!(late.expect("message").await["data"], "3");
        late.expect_nothing().await;

        // It is nothing that one recovers, but it is there after a reconnect.
        for (offset, expected) in [(3, vec![3]), (0, vec![3])] {
            let mut back = Client::connect(&hub).await;
            let answer = back.ask(recover("price", epoch, offset)).await;
            assert_eq!(answer["recovered"], false);
            assert_eq!(offsets(&mut back, expected.len()).await, expected);
            back.expect_nothing().await;
        }
        // A raw client, and a path that subscribes, get it too.
        let mut raw = Client::open(&hub, "/ws/price?envelope=raw").await;
        assert_eq!(raw.text().await, "3");

        // With a history one or the other.
        let epoch = publish(&hub, "both", "1").epoch;
        publish(&hub, "both", "2");
        for (offset, recovered, expected) in [(0, true, vec![1, 2]), (2, true, vec![]), (9, false, vec![2])] {
            let mut back = Client::connect(&hub).await;
            assert_eq!(back.ask(recover("both", epoch, offset)).await["recovered"], recovered);
            assert_eq!(offsets(&mut back, expected.len()).await, expected);
            back.expect_nothing().await;
        }
    }
}

#[tokio::test]
async fn a_lost_delivery_interrupts_who_could_have_had_it() {
    // Invariant I2, and the reconnect of case R23: a gap is told, and what was missed is there.
    let (broker, hub) = delayed(|config| config.channels = vec![history("h", 10)]);
    let mut client = Client::subscribed(&hub, "h").await;
    let mut plain = Client::subscribed(&hub, "plain").await;
    let mut raw = Client::open(&hub, "/ws/h?envelope=raw").await;
    let epoch = publish(&hub, "h", "1").epoch;
    assert_eq!((offsets(&mut client, 1).await, raw.text().await), (vec![1], "1".to_owned()));
    broker.lose_deliveries(1);
    publish(&hub, "h", "2");
    publish(&hub, "h", "3");
    assert_eq!(client.json().await, json!({"type": "unsubscribed", "channel": "h", "code": "interrupted"}));
    assert_eq!(client.ask(recover("h", epoch, 1)).await["recovered"], true);
    assert_eq!(offsets(&mut client, 2).await, [2, 3]);
    // Who has no word for it is closed with a code that lets it come back at once.
    assert_eq!(raw.next().await, Received::Closed { code: 4202, reason: "publications were missed".into() });
    // A plain channel promises less.
    broker.lose_deliveries(1);
    publish(&hub, "plain", "1");
    publish(&hub, "plain", "2");
    assert_eq!(offsets(&mut plain, 1).await, [2]);
    plain.expect_nothing().await;
}

#[tokio::test]
async fn a_new_epoch_interrupts_and_is_never_recovered_into() {
    // Invariant I5.
    let (broker, hub) = delayed(|config| {
        config.channels = vec![history("h", 10)];
        config.shards = 1;
    });
    let mut client = Client::subscribed(&hub, "h").await;
    let old = publish(&hub, "h", "1").epoch;
    assert_eq!(offsets(&mut client, 1).await, [1]);
    broker.forget();
    let new = publish(&hub, "h", "other 1").epoch;
    assert_ne!(old, new);
    assert_eq!(client.json().await["code"], "interrupted");
    let answer = client.ask(recover("h", old, 1)).await;
    assert_eq!((&answer["recovered"], &answer["epoch"]), (&json!(false), &json!(new.to_string())));

    // Somebody who asks learns of it before anything is delivered.
    broker.forget();
    let mut other = Client::connect(&hub).await;
    assert_eq!(other.ask(recover("h", new, 0)).await["recovered"], false);
    assert_eq!(client.json().await["code"], "interrupted");
    publish(&hub, "h", "third 1");
    assert_eq!(other.expect("message").await["data"], "third 1");
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_broker_that_cannot_read_is_an_error_of_the_request() {
    let (broker, hub) = delayed(|config| config.channels = vec![history("h", 10), last_value("l")]);
    let epoch = publish(&hub, "h", "1").epoch;
    broker.fail_reads(true);
    let mut client = Client::connect(&hub).await;
    client.send_json(recover("h", epoch, 0)).await;
    client.expect_error("unavailable").await;
    client.send_json(json!({"action": "subscribe", "channel": "l", "id": 7})).await;
    assert_eq!(client.expect_error("unavailable").await["id"], 7);
    broker.fail_reads(false);
    assert_eq!(client.ask(recover("h", epoch, 0)).await["recovered"], true);
    assert_eq!(offsets(&mut client, 1).await, [1]);
}

#[tokio::test]
async fn whoever_leaves_or_closes_while_it_recovers_leaves_nothing_behind() {
    let (broker, hub) = delayed(|config| {
        config.channels = vec![history("*", 10)];
        config.shards = 1;
    });
    for ends in ["unsubscribe", "subscribe", "close"] {
        let epoch = publish(&hub, ends, "1").epoch;
        publish(&hub, ends, "2");
        let mut keeper = Client::subscribed(&hub, ends).await;
        let mut client = Client::connect(&hub).await;
        eventually("the broker has answered", || broker.backlog() == 0);
        broker.pause();
        client.send_json(recover(ends, epoch, 1)).await;
        eventually("the broker is asked", || broker.backlog() == 1);
        match ends {
            "unsubscribe" => {
                client.send_json(json!({"action": "unsubscribe", "channel": ends})).await;
                client.expect("unsubscribed").await;
                broker.resume();
                client.expect_nothing().await;
            }
            "subscribe" => {
                // The newest request counts.
                assert_eq!(client.subscribe(ends).await["offset"], 2);
                broker.resume();
                publish(&hub, ends, "3");
                assert_eq!(offsets(&mut client, 1).await, [3]);
                client.expect_nothing().await;
            }
            _ => {
                client.reset();
                eventually("the line is cut", || hub.stats().connections == 1);
                broker.resume();
                publish(&hub, ends, "3");
                assert_eq!(offsets(&mut keeper, 1).await, [3]);
                continue;
            }
        }
        client.close().await;
        keeper.close().await;
        eventually("everybody has left", || hub.stats().connections == 0);
        assert_eq!((hub.stats().subscriptions, hub.channels().len()), (0, 0));
    }
}

#[tokio::test]
async fn a_publication_excepts_its_sender_in_the_past_too() {
    let hub = start(|config| config.channels = vec![ChannelPolicy { client_events: true, ..history("h", 10) }]);
    let mut client = Client::connect(&hub).await;
    let epoch = client.subscribe("h").await["epoch"].as_str().unwrap().to_owned();
    client.send_json(json!({"action": "publish", "channel": "h", "event": "mine", "data": 1})).await;
    eventually("it is published", || hub.stats().published == 1);
    publish(&hub, "h", "2");
    assert_eq!(offsets(&mut client, 1).await, [2]);
    assert_eq!(client.ask(recover("h", &epoch, 0)).await["recovered"], true);
    assert_eq!(offsets(&mut client, 1).await, [2]);
    let mut other = Client::connect(&hub).await;
    assert_eq!(other.ask(recover("h", &epoch, 0)).await["recovered"], true);
    assert_eq!(offsets(&mut other, 2).await, [1, 2]);
}

fn messages(answer: &Value) -> Vec<u64> {
    answer["messages"].as_array().unwrap().iter().map(|message| message["offset"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_subscriber_reads_the_history_in_parts_from_either_end() {
    for hub in hubs(|config| config.channels = vec![history("h", 10)]) {
        let epoch = publish(&hub, "h", "1").epoch.to_string();
        hub.publish(&Publish::new("h", "json", Payload::Json(r#"{"a":1.0}"#))).unwrap();
        hub.publish(&Publish::new("h", "bytes", Payload::Binary(b"\xff\0"))).unwrap();
        let mut client = Client::subscribed(&hub, "h").await;
        let answer = client.ask(json!({"action": "history", "channel": "h", "id": 1})).await;
        assert_eq!(
            answer,
            json!({"type": "history", "channel": "h", "id": 1, "epoch": epoch, "offset": 3, "complete": true, "more": false, "messages": [
                {"event": "e", "data": "1", "offset": 1},
                {"event": "json", "data": {"a": 1.0}, "offset": 2},
                {"event": "bytes", "base64": "/wA=", "offset": 3},
            ]})
        );
        for number in 4..=12 {
            publish(&hub, "h", &number.to_string());
            assert_eq!(offsets(&mut client, 1).await, [number]);
        }
        let since = |epoch: &str, offset: u64| json!({"epoch": epoch, "offset": offset});
        for (more, expected, complete, has_more) in [
            (json!({}), (3..=12).collect::<Vec<_>>(), true, false),
            (json!({"limit": 2}), vec![3, 4], true, true),
            (json!({"limit": 2, "reverse": true}), vec![12, 11], true, true),
            (json!({"since": since(&epoch, 10)}), vec![11, 12], true, false),
            (json!({"since": since(&epoch, 2)}), (3..=12).collect(), true, false),
            (json!({"since": since(&epoch, 1)}), (3..=12).collect(), false, false),
            (json!({"since": since(&epoch, 12)}), vec![], true, false),
            (json!({"since": since(&epoch, 13)}), vec![], false, false),
            (json!({"since": since("text", 11)}), vec![], false, false),
        ] {
            let mut request = json!({"action": "history", "channel": "h"});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = client.ask(request).await;
            assert_eq!((messages(&answer), &answer["complete"], &answer["more"]), (expected, &json!(complete), &json!(has_more)), "{more}");
        }
        for (limit, ok) in [(0, false), (1, true), (1_000, true), (1_001, false)] {
            let answer = client.ask(json!({"action": "history", "channel": "h", "limit": limit})).await;
            assert_eq!(answer["type"] == "history", ok, "{answer}");
            assert!(ok || answer["code"] == "invalid_limit", "{answer}");
        }
    }
}

#[tokio::test]
async fn a_history_is_for_subscribers_of_channels_that_have_one() {
    let (broker, hub) = delayed(|config| config.channels = vec![history("h", 10)]);
    let mut client = Client::subscribed(&hub, "plain").await;
    client.send_json(json!({"action": "history", "channel": "h"})).await;
    client.expect_error("not_subscribed").await;
    client.send_json(json!({"action": "history", "channel": "plain", "id": "x"})).await;
    assert_eq!(client.expect_error("no_history").await["id"], "x");
    client.subscribe("h").await;
    broker.fail_reads(true);
    client.send_json(json!({"action": "history", "channel": "h", "id": "y"})).await;
    assert_eq!(client.expect_error("unavailable").await["id"], "y");
}

#[test]
fn hosts_read_histories_and_an_answer_is_bounded() {
    for hub in hubs(|config| {
        config.channels = vec![history("h", 100)];
        config.limits.outbox_bytes = 64 << 10;
        config.limits.publication_bytes = 16 << 10;
    }) {
        let query = Query::default();
        assert_eq!(hub.history("h", &query).unwrap().publications.len(), 0);
        let position = publish(&hub, "h", &"x".repeat(5_000));
        for _ in 0..9 {
            publish(&hub, "h", &"x".repeat(5_000));
        }
        // An eighth of an outbox, and what passes it.
        let part = hub.history("h", &query).unwrap();
        assert_eq!((part.publications.len(), part.more, part.complete, part.position.offset), (2, true, true, 10));
        let rest = hub.history("h", &Query { since: Some(Position { offset: 9, ..position }), ..query }).unwrap();
        assert_eq!((rest.publications.len(), rest.more, rest.complete), (1, false, true));
        assert!(matches!(hub.history("plain", &query), Err(QueryError::NoHistory { .. })));
        assert!(matches!(hub.history("#h", &query), Err(QueryError::InvalidChannel(_))));
        assert!(matches!(hub.history("h", &Query { limit: 1_001, ..query }), Err(QueryError::Limit { .. })));
        assert!(hub.stop(Duration::from_secs(20)).complete);
    }
}

#[test]
fn histories_together_stay_within_their_bytes_and_the_silent_ones_go_first() {
    let hub = start(|config| {
        config.channels = vec![history("*", 1_000)];
        config.limits.history_bytes = 1 << 20;
    });
    let text = "x".repeat(1_000);
    let kept = |channel: &str| hub.history(channel, &Query { limit: 1_000, ..Query::default() }).unwrap().publications.len();
    // Twice as much as there is room for, on channels that fall silent one after the other.
    for channel in 0..200 {
        for _ in 0..10 {
            publish(&hub, &channel.to_string(), &text);
        }
    }
    let counts: Vec<usize> = (0..200).map(|channel| kept(&channel.to_string())).collect();
    let total: usize = counts.iter().sum();
    assert!((400..=1 << 10).contains(&total), "{total}");
    let (old, new) = (counts[..100].iter().sum::<usize>(), counts[100..].iter().sum::<usize>());
    assert!(new > 2 * old, "{old} of the silent ones, {new} of the others");
    // One channel alone may have more than its share.
    let hub = start(|config| {
        config.channels = vec![history("*", 1_000)];
        config.limits.history_bytes = 1 << 20;
    });
    for _ in 0..500 {
        publish(&hub, "alone", &text);
    }
    assert_eq!(hub.history("alone", &Query { limit: 1_000, ..Query::default() }).unwrap().position.offset, 500);
    assert_eq!(hub.stats().history_bytes, 500 * 1_161);
}

#[tokio::test]
async fn who_recovers_learns_who_has_come_and_gone_meanwhile() {
    let (broker, hub) = delayed(|config| {
        config.channels = vec![ChannelPolicy { presence: true, presence_grace_ms: Some(0), ..history("room", 10) }];
        config.shards = 1;
    });
    let as_user = async |id: &str| {
        let client = Client::connect(&hub).await;
        assert!(hub.set_user(client.socket_id(), Some(User::new(id, None).unwrap())).unwrap());
        client
    };
    let mut ada = as_user("ada").await;
    let epoch = ada.subscribe("room").await["epoch"].as_str().unwrap().to_owned();
    publish(&hub, "room", "1");
    publish(&hub, "room", "2");
    assert_eq!(offsets(&mut ada, 2).await, [1, 2]);

    let mut bob = as_user("bob").await;
    let mut eve = as_user("eve").await;
    eventually("the broker has answered", || broker.backlog() == 0);
    broker.pause();
    bob.send_json(recover("room", &epoch, 1)).await;
    assert_eq!(ada.expect("joined").await["user"]["id"], "bob");
    eventually("the broker is asked", || broker.backlog() == 1);
    // The channel is live: who asks for nothing of the past is there at once.
    eve.subscribe("room").await;
    eve.close().await;
    assert_eq!(ada.expect("joined").await["user"]["id"], "eve");
    assert_eq!(ada.expect("left").await["user"]["id"], "eve");
    broker.resume();
    let answer = bob.json().await;
    assert_eq!((&answer["recovered"], answer["users"].as_array().map(Vec::len)), (&json!(true), Some(2)), "{answer}");
    assert_eq!(offsets(&mut bob, 1).await, [2]);
    bob.expect_nothing().await;
    let mut cid = as_user("cid").await;
    cid.subscribe("room").await;
    assert_eq!(bob.expect("joined").await["user"]["id"], "cid");
    bob.reset();
    assert_eq!([ada.expect("joined").await["user"]["id"].clone(), ada.expect("left").await["user"]["id"].clone()], ["cid", "bob"]);
}

#[tokio::test]
async fn a_program_that_subscribes_a_connection_leaves_its_recovery_alone() {
    // While the channel is opened, while the first part of the history is read, and while the second one is.
    for steps in [&[][..], &[3], &[3, 2]] {
        let (broker, hub) = delayed(|config| config.channels = vec![history("h", 100)]);
        let text = "x".repeat(30 << 10);
        let epoch = publish(&hub, "h", &text).epoch;
        for _ in 2..=10 {
            publish(&hub, "h", &text);
        }
        let mut client = Client::connect(&hub).await;
        broker.pause();
        client.send_json(recover("h", epoch, 0)).await;
        eventually("it is on its way", || broker.backlog() == 1);
        for steps in steps {
            broker.advance(*steps);
            eventually("the next part is asked for", || broker.backlog() == 1);
        }
        begin_to_join(&hub, client.socket_id(), "h");
        broker.resume();
        let answer = client.expect("subscribed").await;
        assert_eq!((&answer["recovered"], &answer["offset"]), (&json!(true), &json!(0)), "{steps:?}");
        assert_eq!(offsets(&mut client, 10).await, (1..=10).collect::<Vec<_>>(), "{steps:?}");
        publish(&hub, "h", "live");
        assert_eq!(offsets(&mut client, 1).await, [11]);
        client.expect_nothing().await;
        assert_eq!(hub.stats().subscriptions, 1);
    }
}

#[tokio::test]
async fn a_slow_recovery_is_told_of_users_behind_what_it_has_missed() {
    let hub = start(|config| {
        config.channels = vec![ChannelPolicy { presence: true, presence_grace_ms: Some(0), ..history("room", 1_000) }];
        config.limits.outbox_bytes = 64 << 10;
        config.limits.publication_bytes = 16 << 10;
        config.shards = 1;
    });
    let text = "x".repeat(12 << 10);
    let epoch = publish(&hub, "room", &text).epoch;
    for _ in 1..80 {
        publish(&hub, "room", &text);
    }
    // It reads its answer and no more, until somebody has come and gone.
    let mut slow = Client::connect(&hub).await;
    let answer = slow.ask(recover("room", epoch, 0)).await;
    assert_eq!((&answer["recovered"], &answer["users"]), (&json!(true), &json!([])));
    let mut eve = Client::connect(&hub).await;
    hub.set_user(eve.socket_id(), Some(User::new("eve", None).unwrap())).unwrap();
    eve.subscribe("room").await;
    eve.close().await;
    eventually("she has left", || hub.channel_users("room").unwrap().is_empty());
    assert_eq!(offsets(&mut slow, 80).await, (1..=80).collect::<Vec<_>>());
    assert_eq!([slow.expect("joined").await["user"]["id"].clone(), slow.expect("left").await["user"]["id"].clone()], ["eve", "eve"]);
    publish(&hub, "room", "live");
    assert_eq!(offsets(&mut slow, 1).await, [81]);
}

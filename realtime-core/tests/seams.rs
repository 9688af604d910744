//! Other protocols, another framing and another broker than the hub's own: the shards know none of them.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use realtime_core::hub::HubBuilder;
use realtime_core::transport::websocket::WebSocket;
use realtime_core::{BrokerError, Config, Hub, Payload, Publish, PublishError, QueryError, User};
use realtime_testkit::hub::client_events;
use realtime_testkit::netstring::netstring;
use realtime_testkit::raw::{self, RawClient, upgrade};
use realtime_testkit::{Client, DEADLINE, Delayed, Message, Netstring, Pipes, Received, config, eventually};
use serde_json::json;

/// The native protocol, pipes over WebSocket, and pipes over netstrings.
fn three_protocols(change: impl FnOnce(&mut Config)) -> Hub {
    let builder = HubBuilder::new(config(change)).protocol(Pipes::default(), WebSocket);
    builder.protocol(Pipes { prefix: "/net" }, Netstring).start().unwrap()
}

fn delayed(broker: &Arc<Delayed>, change: impl FnOnce(&mut Config)) -> Hub {
    HubBuilder::new(config(change)).broker(broker.clone()).start().unwrap()
}

async fn pipes(hub: &Hub, path: &str) -> Client {
    let mut client = Client::open(hub, path).await;
    assert!(client.text().await.starts_with("hi|"));
    client
}

#[tokio::test]
async fn a_second_protocol_shares_channels_with_the_first() {
    let hub = three_protocols(|config| config.channels = vec![client_events("room")]);
    let mut native = Client::subscribed(&hub, "room").await;
    let mut one = pipes(&hub, "/pipes").await;
    let mut loud = pipes(&hub, "/pipes/loud").await;
    one.send_text("sub|room").await;
    assert_eq!(one.text().await, "on|room|0");
    loud.send_text("both|room|other").await;
    assert_eq!([loud.text().await, loud.text().await], ["on|room|0", "on|other|0"]);

    hub.publish(&Publish::new("room", "news", Payload::Text("to all"))).unwrap();
    assert_eq!(native.expect("message").await["data"], "to all");
    assert_eq!([one.text().await, loud.text().await], ["room|1|news|to all", "room|1|news|TO ALL"]);
    hub.publish(&Publish::new("room", "news", Payload::Binary(b"b\xff"))).unwrap();
    assert!(matches!(native.next().await, Received::Binary(_)));
    assert_eq!(one.next().await, Received::Binary(b"room|2|news|b\xff".to_vec()));
    assert_eq!(loud.next().await, Received::Binary(b"room|2|news|B\xff".to_vec()));

    // What a connection's protocol remembers is its own.
    one.send_text("nick|ada").await;
    one.send_text("say|room|[1]").await;
    assert_eq!(loud.text().await, "room|3|client-ada|[1]");
    loud.send_text(r#"say|room|"x""#).await;
    assert_eq!(one.text().await, r#"room|4|client-anon|"x""#);
    for data in [json!([1]), json!("x")] {
        assert_eq!(native.expect("message").await["data"], data);
    }
    for client in [&mut one, &mut loud] {
        client.send_text("unsub|room").await;
        assert_eq!(client.text().await, "off|room");
    }
    native.expect_nothing().await;
}

#[tokio::test]
async fn a_protocol_has_its_own_words_for_faults_and_ends() {
    let hub = three_protocols(|_| {});
    let refused = Client::request(&hub, "/pipes/closed", &[]).await.err().unwrap();
    assert_eq!((refused.status, refused.code.as_str()), (410, "closed"));
    assert_eq!(Client::request(&hub, "/pipes/unknown", &[]).await.err().unwrap().status, 404);
    let mut client = pipes(&hub, "/pipes").await;
    client.send_text("sub|private-x").await;
    assert_eq!(client.text().await, "bad|unauthorized");
    client.send(Message::binary(&b"x"[..])).await;
    assert_eq!(client.text().await, "bad|no_binary");
    for _ in 0..9 {
        client.send_text("dance").await;
        assert_eq!(client.text().await, "bad|what");
    }
    assert_eq!(client.closed().await, (4400, "enough".into()));
    let mut client = pipes(&hub, "/pipes").await;
    let stop = thread::spawn(move || hub.stop(DEADLINE));
    assert_eq!(client.closed().await, (4503, "closing time".into()));
    while client.next().await != Received::Lost {}
    assert!(stop.join().unwrap().complete);
}

#[test]
fn a_second_framing_carries_the_same_protocol() {
    let hub = three_protocols(|config| {
        config.heartbeat.ping_interval_ms = 100;
        config.limits.max_message_bytes = 100;
    });
    let mut client = RawClient::tcp(hub.local_addr());
    client.write(upgrade("/net/pipes", "").as_bytes());
    assert_eq!(client.response().status, 101);
    let ping = netstring(b'p', b"");
    // A machine that stands still for a moment makes the hub ping between any two.
    let next = |client: &mut RawClient| loop {
        let next = client.until(b',');
        if next != netstring(b'p', b"") {
            break next;
        }
    };
    let greeting = next(&mut client);
    assert!(greeting.starts_with(b"4") && greeting.windows(5).any(|window| window == b":thi|"), "{greeting:?}");
    // In pieces, and two at once.
    for byte in netstring(b't', b"sub|a") {
        client.write(&[byte]);
    }
    client.write(&[netstring(b't', b"sub|b"), netstring(b'p', b"?")].concat());
    for answer in [netstring(b't', b"on|a|0"), netstring(b't', b"on|b|0"), netstring(b'o', b"?")] {
        assert_eq!(next(&mut client), answer);
    }
    for (channel, payload) in [("a", Payload::Text("1")), ("b", Payload::Binary(b"\0")), ("a", Payload::Text("2"))] {
        hub.publish(&Publish::new(channel, "e", payload)).unwrap();
    }
    let mut messages = Vec::new();
    for _ in 0..3 {
        messages.push(next(&mut client));
    }
    // Between channels there is no order.
    messages.sort();
    assert_eq!(messages, [netstring(b'b', b"b|1|e|\0"), netstring(b't', b"a|1|e|1"), netstring(b't', b"a|2|e|2")]);
    // Its ping, and its close.
    assert_eq!(client.until(b','), ping);
    client.write(&netstring(b'o', b""));
    client.write(&netstring(b't', &[b'x'; 101]));
    assert!(next(&mut client).ends_with(b":c1009 message passes 100 bytes,"));
    client.finish();
    client.expect_end();
}

#[tokio::test]
async fn a_broker_that_answers_later_changes_nothing_for_clients() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(2)));
    let hub = delayed(&broker, |config| {
        config.shards = 3;
        config.channels = vec![client_events("*")];
    });
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::subscribed(&hub, "c").await);
    }
    let except = [clients[3].socket_id()];
    thread::scope(|scope| {
        for thread in 0..4 {
            let hub = &hub;
            scope.spawn(move || {
                for number in 0..25 {
                    let receipt = hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{thread} {number}")))).unwrap();
                    assert_eq!(receipt.matched, 0);
                }
            });
        }
    });
    let mut publish = Publish::new("c", "excepted", Payload::Text("x"));
    publish.except = &except;
    assert_eq!(hub.publish(&publish).unwrap().position.offset, 101);
    clients[5].send_json(json!({"action": "publish", "channel": "c", "event": "last"})).await;
    let mut sequences = Vec::new();
    for (index, client) in clients.iter_mut().enumerate() {
        let mut sequence = Vec::new();
        for offset in 1..=102 {
            if (offset, index) == (101, 3) || (offset, index) == (102, 5) {
                continue;
            }
            let message = client.expect("message").await;
            assert_eq!(message["offset"], offset);
            sequence.push(message["data"].to_string());
        }
        sequence.truncate(100);
        sequences.push(sequence);
    }
    assert!(sequences.iter().all(|sequence| *sequence == sequences[0]));
}

#[tokio::test]
async fn everybody_who_subscribes_under_traffic_hears_all_that_follows_the_answer() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let hub = delayed(&broker, |config| config.shards = 3);
    let publisher = hub.clone();
    let traffic = thread::spawn(move || {
        let mut published = 0;
        while let Ok(receipt) = publisher.publish(&Publish::new("c", "e", Payload::Text("x"))) {
            published = receipt.position.offset;
        }
        published
    });
    for round in 0..30 {
        let mut client = Client::connect(&hub).await;
        client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
        if round % 3 == 0 {
            // Gone and back before the first answer has come.
            client.send_json(json!({"action": "unsubscribe", "channel": "c"})).await;
            client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
            while client.json().await["type"] != "unsubscribed" {}
        }
        let start = client.expect("subscribed").await["offset"].as_u64().unwrap();
        for offset in start + 1..start + 20 {
            assert_eq!(client.expect("message").await["offset"], offset, "round {round}, subscribed at {start}");
        }
        if round % 2 == 0 {
            client.close().await;
        } else {
            client.reset();
        }
    }
    hub.stop(DEADLINE);
    assert!(traffic.join().unwrap() > 0);
}

#[tokio::test]
async fn a_channel_left_and_joined_again_starts_where_the_second_answer_says() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |_| {});
    let mut client = Client::connect(&hub).await;
    broker.pause();
    client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
    eventually("the request is with the broker", || broker.backlog() == 1);
    // It takes effect, and its position, 0, is read; the answer is on its way when the client changes its mind.
    broker.advance(2);
    client.ask(json!({"action": "unsubscribe", "channel": "c"})).await;
    eventually("so is the leave", || broker.backlog() == 2);
    // These come between the two subscriptions: the first answer knows of none of them.
    let publishers: Vec<_> = (0..5)
        .map(|_| {
            let hub = hub.clone();
            thread::spawn(move || hub.publish(&Publish::new("c", "e", Payload::Text("unheard"))))
        })
        .collect();
    eventually("so are the publications", || broker.backlog() == 7);
    client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
    eventually("so is the second request", || broker.backlog() == 8);
    broker.resume();
    for publisher in publishers {
        publisher.join().unwrap().unwrap();
    }
    let start = client.expect("subscribed").await["offset"].as_u64().unwrap();
    assert_eq!(start, 5, "a client that is told less waits for what never comes");
    hub.publish(&Publish::new("c", "e", Payload::Text("heard"))).unwrap();
    assert_eq!(client.expect("message").await["offset"], 6);
}

#[tokio::test]
async fn a_broker_that_fails_is_an_error_that_names_the_request() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let hub = delayed(&broker, |config| config.channels = vec![client_events("*")]);
    let mut client = Client::subscribed(&hub, "c").await;
    broker.fail_publishes(true);
    let error = hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap_err();
    assert!(matches!(error, PublishError::Broker(BrokerError::Unavailable { .. })) && error.is_retryable(), "{error}");
    client.send_json(json!({"action": "publish", "channel": "c", "event": "e", "id": 7})).await;
    assert_eq!(client.expect_error("unavailable").await["id"], 7);
    broker.fail_publishes(false);

    broker.fail_subscribes(true);
    for id in 1..=3 {
        client.send_json(json!({"action": "subscribe", "channel": "d", "id": id})).await;
        assert_eq!(client.expect_error("unavailable").await["id"], id);
    }
    // Faults of the hub are not held against the client, and leave nothing behind.
    assert_eq!(hub.stats().protocol_errors, 0);
    broker.fail_subscribes(false);
    client.subscribe("d").await;
    hub.publish(&Publish::new("d", "e", Payload::Text("x"))).unwrap();
    assert_eq!(client.expect("message").await["channel"], "d");
}

#[tokio::test]
async fn a_broker_that_is_silent_is_a_timeout_and_holds_up_nobody() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |config| config.publish_timeout_ms = 1_000);
    let mut client = Client::subscribed(&hub, "c").await;
    broker.pause();
    assert!(matches!(hub.publish(&Publish::new("c", "e", Payload::Text("x"))), Err(PublishError::Timeout { .. })));
    client.send_json(json!({"action": "subscribe", "channel": "d"})).await;
    client.expect_nothing().await;
    // Somebody who asks, leaves, and is gone when the answer comes.
    let mut gone = Client::connect(&hub).await;
    gone.send_json(json!({"action": "subscribe", "channel": "d"})).await;
    gone.expect_nothing().await;
    gone.reset();
    eventually("one is left", || hub.stats().connections == 1);
    let mut changed = Client::connect(&hub).await;
    changed.send_json(json!({"action": "subscribe", "channel": "d"})).await;
    let answer = changed.ask(json!({"action": "unsubscribe", "channel": "d"})).await;
    assert_eq!(answer["type"], "unsubscribed");
    broker.resume();
    // The late publication may have come first.
    let mut seen = [client.json().await["type"].clone(), client.json().await["type"].clone()];
    seen.sort_by_key(ToString::to_string);
    assert_eq!(seen, ["message", "subscribed"]);
    assert_eq!(hub.publish(&Publish::new("d", "e", Payload::Text("x"))).unwrap().position.offset, 1);
    assert_eq!(client.expect("message").await["channel"], "d");
    changed.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 2);
}

#[tokio::test]
async fn a_connection_that_changes_hands_while_the_broker_thinks_hears_its_new_user_only() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |_| {});
    let mut client = Client::connect(&hub).await;
    let user = |id| Some(User::new(id, None).unwrap());
    broker.pause();
    let mut answers = Vec::new();
    for owner in [user("ada"), user("bob"), None, user("cy"), user("bob")] {
        if owner.is_none() {
            assert!(hub.set_user(client.socket_id(), None).unwrap());
            continue;
        }
        // Who gives it to somebody waits until that somebody's messages would come.
        let (hub, socket, before) = (hub.clone(), client.socket_id(), broker.backlog());
        answers.push(std::thread::spawn(move || hub.set_user(socket, owner).unwrap()));
        eventually("the broker is asked", || broker.backlog() > before);
    }
    broker.resume();
    let answers: Vec<bool> = answers.into_iter().map(|answer| answer.join().unwrap()).collect();
    assert_eq!(answers, [false, false, false, true]);
    eventually("the broker has nothing to do", || broker.backlog() == 0);
    client.expect_nothing().await;
    for id in ["ada", "cy", "bob"] {
        hub.publish_to_user(id, id, Payload::Text(""), &[]).unwrap();
    }
    assert_eq!(client.expect("message").await["event"], "bob");
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 1);
    assert_eq!(hub.disconnect_user("ada", 1000, "").unwrap(), 0);
    assert_eq!(hub.disconnect_user("bob", 1000, "").unwrap(), 1);
    assert_eq!(client.closed().await.0, 1000);
}

#[tokio::test]
async fn a_user_whose_channel_could_not_be_heard_may_still_subscribe() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |_| {});
    let mut client = Client::connect(&hub).await;
    broker.fail_subscribes(true);
    assert!(!hub.set_user(client.socket_id(), Some(User::new("ada", None).unwrap())).unwrap());
    client.expect_nothing().await;
    eventually("the broker has failed", || broker.backlog() == 0);
    client.expect_nothing().await;
    broker.fail_subscribes(false);
    client.subscribe("c").await;
    assert_eq!(hub.stats().panics, 0);
}

#[test]
fn subscribers_that_vanish_as_they_are_admitted_take_nobody_with_them() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |config| config.shards = 1);
    for round in 0..60 {
        let channel = format!("channel {round}");
        broker.pause();
        let mut clients: Vec<_> = (0..4).map(|_| RawClient::connect(&hub, "/ws").0).collect();
        for client in &mut clients {
            client.send_text(&json!({"action": "subscribe", "channel": channel}).to_string());
        }
        eventually("all are waiting", || hub.stats().received == (round + 1) * 4);
        thread::scope(|scope| {
            scope.spawn(|| broker.resume());
            for client in clients {
                client.reset();
            }
        });
        eventually("all are gone", || hub.stats().connections == 0);
    }
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    client.subscribe("channel 1");
    assert_eq!((hub.stats().panics, hub.stats().channels), (0, 1));
}

#[tokio::test]
async fn a_move_that_a_broker_keeps_waiting_leaves_the_connection_where_it_is() {
    let broker = Arc::new(Delayed::new(Duration::ZERO));
    let hub = delayed(&broker, |_| {});
    let mut client = Client::subscribed(&hub, "c").await;
    broker.pause();
    for _ in 0..2 {
        for shard in 0..2 {
            // One of the two is where it is.
            let moved = hub.move_connection(client.socket_id(), shard);
            assert!(matches!(moved, Ok(true) | Err(QueryError::Timeout { .. }) | Err(QueryError::Stopped)), "{moved:?}");
        }
    }
    client.expect_nothing().await;
    broker.resume();
    for offset in 1..=5 {
        hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
        assert_eq!(client.expect("message").await["offset"], offset);
    }
    for shard in [0, 1, 0, 1] {
        assert!(hub.move_connection(client.socket_id(), shard).unwrap());
    }
    hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
    assert_eq!(client.expect("message").await["offset"], 6);
    client.close().await;
    eventually("nothing is kept", || hub.stats().connections == 0 && hub.stats().channels == 0);
}

#[test]
fn a_stop_hands_out_what_a_slow_broker_had_accepted() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(5)));
    let hub = delayed(&broker, |_| {});
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    client.subscribe("c");
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let hub = hub.clone();
            thread::spawn(move || {
                let mut accepted = 0;
                loop {
                    match hub.publish(&Publish::new("c", "e", Payload::Text("x"))) {
                        Ok(receipt) => accepted = receipt.position.offset,
                        Err(PublishError::Stopped) => return accepted,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    assert_eq!(client.next_message().json()["offset"], 1);
    let stop = thread::spawn(move || hub.stop(DEADLINE));
    let mut last = 1;
    let code = loop {
        let frame = client.next_message();
        if frame.first == raw::CLOSE {
            break u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
        }
        last += 1;
        assert_eq!(frame.json()["offset"], last);
    };
    client.finish();
    let accepted = publishers.into_iter().map(|publisher| publisher.join().unwrap()).max().unwrap();
    assert_eq!((code, last), (1001, accepted));
    assert!(stop.join().unwrap().complete);
}

//! The native protocol, end to end: what `docs/protocol/native.md` says, over a real socket.

use realtime_core::{Payload, Publish};
use realtime_testkit::hub::client_events;
use realtime_testkit::{Client, Message, RawClient, Received, eventually, raw, start};
use serde_json::{Value, json};

#[tokio::test]
async fn a_connection_is_greeted_with_its_id_and_the_ping_interval() {
    let hub = start(|config| config.heartbeat.ping_interval_ms = 12_345);
    let (mut one, mut other) = (Client::open(&hub, "/ws").await, Client::open(&hub, "/ws/").await);
    let (greeting, other) = (one.json().await, other.json().await);
    assert_eq!((&greeting["type"], &greeting["ping_interval_ms"]), (&json!("connected"), &json!(12_345)));
    assert_ne!(greeting["socket_id"], other["socket_id"]);
    let id = greeting["socket_id"].as_str().unwrap();
    assert_eq!(id.parse::<realtime_core::SocketId>().unwrap().to_string(), id);
}

#[tokio::test]
async fn a_subscriber_hears_what_is_published_until_it_unsubscribes() {
    let hub = start(|_| {});
    let mut client = Client::connect(&hub).await;
    let answer = client.ask(json!({"action": "subscribe", "channel": "news", "id": 1})).await;
    let epoch = answer["epoch"].as_str().unwrap().to_owned();
    assert_eq!(answer, json!({"type": "subscribed", "channel": "news", "id": 1, "epoch": epoch, "offset": 0}));

    let receipt = hub.publish(&Publish::new("news", "flash", Payload::Text("a \"b\"\n\u{e9}"))).unwrap();
    assert_eq!((receipt.position.epoch.to_string(), receipt.position.offset, receipt.matched), (epoch.clone(), 1, 1));
    let message = json!({"type": "message", "channel": "news", "event": "flash", "data": "a \"b\"\n\u{e9}", "offset": 1});
    assert_eq!(client.json().await, message);
    hub.publish(&Publish::new("news", "message", Payload::Json(r#"{"n":[1.0,null]}"#))).unwrap();
    assert_eq!(client.text().await, r#"{"type":"message","channel":"news","event":"message","data":{"n":[1.0,null]},"offset":2}"#);

    // Again: not an error, no second subscription, and the position of now.
    let again = client.ask(json!({"action": "subscribe", "channel": "news", "id": "again"})).await;
    assert_eq!(again, json!({"type": "subscribed", "channel": "news", "id": "again", "epoch": epoch, "offset": 2}));
    assert_eq!(hub.publish(&Publish::new("news", "e", Payload::Text("once"))).unwrap().matched, 1);
    assert_eq!(client.expect("message").await["offset"], 3);
    client.expect_nothing().await;

    let answer = client.ask(json!({"action": "unsubscribe", "channel": "news", "id": 2})).await;
    assert_eq!(answer, json!({"type": "unsubscribed", "channel": "news", "id": 2}));
    assert_eq!(hub.publish(&Publish::new("news", "e", Payload::Text("unheard"))).unwrap().matched, 0);
    client.expect_nothing().await;
    client.send_json(json!({"action": "unsubscribe", "channel": "news", "id": 3})).await;
    assert_eq!(client.expect_error("not_subscribed").await["id"], 3);
    client.send_json(json!({"action": "unsubscribe", "channel": "never heard of"})).await;
    client.expect_error("not_subscribed").await;

    // The channel went on counting.
    let answer = client.subscribe("news").await;
    assert_eq!((answer["epoch"].as_str(), &answer["offset"]), (Some(epoch.as_str()), &json!(4)));
}

#[tokio::test]
async fn a_channel_in_the_path_is_subscribed_at_once() {
    let hub = start(|_| {});
    let mut client = Client::connect_to(&hub, "/ws/a%2Fb%20%C3%A9?unknown=1").await;
    assert_eq!(client.expect("subscribed").await["channel"], "a/b \u{e9}");
    hub.publish(&Publish::new("a/b \u{e9}", "e", Payload::Json("1"))).unwrap();
    assert_eq!(client.expect("message").await["data"], 1);

    let mut refused = Client::connect_to(&hub, "/ws/private-x").await;
    refused.expect_error("unauthorized").await;
    for (path, code) in [("/ws/%23internal", "invalid_channel"), ("/ws/%ff", "invalid_channel"), ("/ws?envelope=xml", "unknown_envelope")] {
        let error = Client::request(&hub, path, &[]).await.err().unwrap();
        assert_eq!((error.status, error.code.as_str()), (400, code), "{path}");
    }
}

#[tokio::test]
async fn the_raw_envelope_is_nothing_but_payloads() {
    let hub = start(|_| {});
    let mut raw = Client::open(&hub, "/ws/news?envelope=raw").await;
    eventually("the raw client is subscribed", || hub.stats().subscriptions == 1);
    // Requests are carried out without an answer, faults included.
    raw.send_text(r#"{"action":"subscribe","channel":"more"}"#).await;
    raw.send_text(r#"{"action":"subscribe","channel":"private-x"}"#).await;
    raw.send_text(r#"{"action":"ping","id":1}"#).await;
    eventually("the second subscription is there", || hub.stats().subscriptions == 2);
    hub.publish(&Publish::new("news", "ignored", Payload::Text("bare \u{e9}"))).unwrap();
    assert_eq!(raw.text().await, "bare \u{e9}");
    hub.publish(&Publish::new("more", "ignored", Payload::Json(r#"{"a": 1}"#))).unwrap();
    assert_eq!(raw.text().await, r#"{"a": 1}"#);
    hub.publish(&Publish::new("news", "ignored", Payload::Binary(&[0, 255]))).unwrap();
    assert_eq!(raw.next().await, Received::Binary(vec![0, 255]));
}

#[tokio::test]
async fn client_events_are_prefixed_and_reach_everybody_but_their_sender() {
    let hub = start(|config| config.channels = vec![client_events("room-*")]);
    let mut sender = Client::subscribed(&hub, "room-1").await;
    let mut receiver = Client::subscribed(&hub, "room-1").await;
    hub.set_user(sender.socket_id(), Some(realtime_core::User::new("ada", None).unwrap())).unwrap();
    for (event, seen) in [("typing", "client-typing"), ("client-typing", "client-typing")] {
        sender.send_json(json!({"action": "publish", "channel": "room-1", "event": event, "data": {"x": [1]}})).await;
        let message = receiver.expect("message").await;
        assert_eq!((&message["event"], &message["data"], &message["user_id"]), (&json!(seen), &json!({"x": [1]}), &json!("ada")));
    }
    sender.send_json(json!({"action": "publish", "channel": "room-1", "event": "no data"})).await;
    assert_eq!(receiver.expect("message").await["data"], Value::Null);
    sender.expect_nothing().await;

    // The longest event name, and one more.
    for (length, ok) in [(192, true), (193, true), (194, false), (0, false)] {
        let request = json!({"action": "publish", "channel": "room-1", "event": "e".repeat(length), "id": length});
        sender.send_json(request).await;
        match ok {
            true => assert_eq!(receiver.expect("message").await["event"].as_str().unwrap().len(), length + 7),
            false => assert_eq!(sender.expect_error("invalid_event").await["id"], length),
        }
    }
    // Where no policy allows it, and where the sender is not subscribed.
    sender.subscribe("lobby").await;
    sender.send_json(json!({"action": "publish", "channel": "lobby", "event": "e", "id": "p"})).await;
    assert_eq!(sender.expect_error("client_events_disabled").await["id"], "p");
    sender.send_json(json!({"action": "publish", "channel": "room-2", "event": "e"})).await;
    sender.expect_error("not_subscribed").await;
    sender.send_json(json!({"action": "publish", "channel": "#user:ada", "event": "e"})).await;
    sender.expect_error("reserved_channel").await;
    receiver.expect_nothing().await;
}

#[tokio::test]
async fn raw_messages_are_relayed_to_the_others_where_that_is_allowed() {
    let hub = start(|config| config.channels = vec![client_events("room")]);
    let mut sender = Client::open(&hub, "/ws/room?envelope=raw").await;
    let mut raw = Client::open(&hub, "/ws/room?envelope=raw").await;
    let mut json = Client::subscribed(&hub, "room").await;
    eventually("all are subscribed", || hub.stats().subscriptions == 3);
    for text in ["offer", r#"{"sdp": "v=0"}"#, r#"{"action":"dance"}"#, "{", ""] {
        sender.send_text(text).await;
        assert_eq!(raw.text().await, text);
        let message = json.expect("message").await;
        assert_eq!((&message["event"], &message["data"]), (&json!("client-message"), &json!(text)));
    }
    sender.send(Message::binary(vec![0, 159])).await;
    assert_eq!(raw.next().await, Received::Binary(vec![0, 159]));
    assert!(matches!(json.next().await, Received::Binary(bytes) if bytes.ends_with(b"\"offset\":6}\n\x00\x9f")));
    // The sender got none of it: the next thing it hears is this.
    hub.publish(&Publish::new("room", "e", Payload::Text("end"))).unwrap();
    assert_eq!(sender.text().await, "end");

    let mut muted = Client::open(&hub, "/ws/elsewhere?envelope=raw").await;
    muted.send_text("hello").await;
    eventually("the refused relay is counted", || hub.stats().relays_refused == 1);
}

#[tokio::test]
async fn pings_of_the_protocol_and_of_the_transport_are_answered() {
    let hub = start(|_| {});
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    client.send_text(r#"{"action":"ping"}"#);
    assert_eq!(client.next_frame().json(), json!({"type": "pong"}));
    client.send_text(r#"{"action":"ping","id":"x"}"#);
    assert_eq!(client.next_frame().json(), json!({"type": "pong", "id": "x"}));
    for payload in [&b""[..], b"p", &[255; 125]] {
        client.write(&raw::frame(raw::PING, payload));
        assert_eq!(client.next_frame(), raw::Frame { first: raw::PONG, payload: payload.to_vec() });
    }
    // A pong that nobody asked for is no fault.
    client.write(&raw::frame(raw::PONG, b"?"));
    client.send_text(r#"{"action":"ping","id":2}"#);
    assert_eq!(client.next_frame().json()["id"], 2);
}

#[tokio::test]
async fn every_fault_is_named_and_carries_the_id() {
    let hub = start(|config| config.limits.max_protocol_errors = 255);
    let mut client = Client::connect(&hub).await;
    for (request, code, id) in [
        ("", "bad_json", Value::Null),
        ("{", "bad_json", Value::Null),
        (r#"{"id":1,"action":"ping"} x"#, "bad_json", Value::Null),
        ("[]", "not_an_object", Value::Null),
        (r#"{"id":1}"#, "missing_field", json!(1)),
        (r#"{"id":1.5,"action":7}"#, "wrong_type", json!(1.5)),
        (r#"{"id":[],"action":"ping"}"#, "wrong_type", Value::Null),
        (r#"{"id":"a","action":"subscrbe","channel":"c"}"#, "unknown_action", json!("a")),
        (r#"{"id":"a","action":"subscribe"}"#, "missing_field", json!("a")),
        (r#"{"id":"a","action":"subscribe","channel":""}"#, "invalid_channel", json!("a")),
        (r#"{"id":"a","action":"subscribe","channel":"a\u0000"}"#, "invalid_channel", json!("a")),
        (r##"{"id":"a","action":"subscribe","channel":"#user:1"}"##, "reserved_channel", json!("a")),
        (r##"{"id":"a","action":"unsubscribe","channel":"#user:1"}"##, "reserved_channel", json!("a")),
        (r#"{"id":"a","action":"subscribe","channel":"private-x"}"#, "unauthorized", json!("a")),
        (r#"{"id":"a","action":"subscribe","channel":"presence-x"}"#, "unauthorized", json!("a")),
        (r#"{"id":"a","action":"presence","channel":"c"}"#, "not_subscribed", json!("a")),
        (r#"{"id":"a","action":"history","channel":"c"}"#, "not_subscribed", json!("a")),
        (r#"{"id":"a","action":"auth","token":"t"}"#, "not_available", json!("a")),
        (r#"{"id":"a","action":"message","event":"e"}"#, "not_available", json!("a")),
    ] {
        client.send_text(request).await;
        assert_eq!(client.expect_error(code).await["id"], id, "{request}");
    }
    client.send(Message::binary(&b"{}"[..])).await;
    client.expect_error("bad_json").await;
    // The last six in the table were in order and not granted.
    eventually("all faults are counted", || hub.stats().protocol_errors == 14);
    client.expect_nothing().await;
    assert_eq!(hub.stats().protocol_errors, 14);
    client.subscribe("still fine").await;
    let answer = client.ask(json!({"action": "subscribe", "channel": "r", "recover": {"epoch": "e", "offset": 3}})).await;
    assert_eq!(answer["recovered"], false);
}

#[tokio::test]
async fn the_tenth_protocol_error_closes_with_4000() {
    let hub = start(|_| {});
    for (errors, closed) in [(9, false), (10, true), (11, true)] {
        let mut client = Client::connect(&hub).await;
        for _ in 0..errors {
            client.send_text("nonsense").await;
        }
        for _ in 0..errors.min(10) {
            client.expect_error("bad_json").await;
        }
        match closed {
            true => assert_eq!(client.closed().await.0, 4000, "{errors}"),
            false => client.expect_nothing().await,
        }
    }
    assert_eq!(hub.stats().closed_protocol, 2);
    // What is refused without being wrong does not count.
    let mut client = Client::connect(&hub).await;
    for _ in 0..30 {
        client.send_json(json!({"action": "subscribe", "channel": "private-x"})).await;
        client.expect_error("unauthorized").await;
    }
    client.subscribe("c").await;
}

#[tokio::test]
async fn channel_names_end_at_200_bytes() {
    let hub = start(|_| {});
    let mut client = Client::connect(&hub).await;
    for (length, ok) in [(199, true), (200, true), (201, false)] {
        let channel = "c".repeat(length);
        client.send_json(json!({"action": "subscribe", "channel": channel, "id": length})).await;
        match ok {
            true => assert_eq!(client.expect("subscribed").await["channel"], channel),
            false => assert_eq!(client.expect_error("invalid_channel").await["id"], length),
        }
        let path = format!("/ws/{channel}");
        assert_eq!(Client::request(&hub, &path, &[]).await.is_ok(), ok, "{length} in the path");
        assert_eq!(hub.publish(&Publish::new(&channel, "e", Payload::Text(""))).is_ok(), ok, "{length} published");
        if ok {
            assert_eq!(client.expect("message").await["channel"], channel);
        }
    }
}

#[tokio::test]
async fn subscriptions_end_at_their_limit_and_a_users_own_is_not_counted() {
    let hub = start(|config| config.limits.max_subscriptions = 20);
    let mut client = Client::connect(&hub).await;
    hub.set_user(client.socket_id(), Some(realtime_core::User::new("ada", None).unwrap())).unwrap();
    for number in 1..=20 {
        client.subscribe(&format!("channel {number}")).await;
    }
    for _ in 0..2 {
        client.send_json(json!({"action": "subscribe", "channel": "one more", "id": 21})).await;
        assert_eq!(client.expect_error("too_many_subscriptions").await["id"], 21);
    }
    // One that it has costs nothing; one that it gives back makes room.
    client.subscribe("channel 20").await;
    client.ask(json!({"action": "unsubscribe", "channel": "channel 7"})).await;
    client.subscribe("one more").await;
    client.send_json(json!({"action": "subscribe", "channel": "channel 7"})).await;
    client.expect_error("too_many_subscriptions").await;
    assert_eq!(hub.channels().len(), 20);
    for number in (1..=20).filter(|number| *number != 7) {
        hub.publish(&Publish::new(&format!("channel {number}"), "e", Payload::Text(""))).unwrap();
        assert_eq!(client.expect("message").await["channel"], format!("channel {number}"));
    }
}

//! The Pusher protocol as its clients see it, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use realtime_core::auth::signature::sign;
use realtime_core::config::AppConfig;
use realtime_core::{Hub, Payload, Publish};
use realtime_testkit::client::{Message, Received};
use realtime_testkit::hub::client_events;
use realtime_testkit::pusher::{KEY, PusherClient, SECRET, app, path};
use realtime_testkit::{Client, eventually, start};
use serde_json::json;

fn hub() -> Hub {
    start(|config| config.apps.push(app()))
}

fn publish(hub: &Hub, channel: &str, json: &str) {
    hub.publish(&Publish::new(channel, "order.shipped", Payload::Json(json))).unwrap();
}

#[tokio::test]
async fn every_kind_of_channel_is_heard_by_who_may_hear_it() {
    let hub = hub();
    let mut client = PusherClient::connect(&hub).await;
    for channel in ["news", "private-a", "private-encrypted-a", "privateer", "cache", "private-acache-"] {
        client.subscribe(channel).await;
        publish(&hub, channel, r#"{"id":1}"#);
        let event = client.raw().await;
        assert_eq!(event, json!({"event": "order.shipped", "channel": channel, "data": r#"{"id":1}"#}));
    }
    // Without the field at all, and again on the same connection.
    client.send("pusher:subscribe", json!({"channel": "news"})).await;
    client.expect("pusher_internal:subscription_succeeded").await;
    publish(&hub, "news", "2");
    assert_eq!(client.expect("order.shipped").await["data"], 2);
    client.send("pusher:unsubscribe", json!({"channel": "news"})).await;
    client.expect_nothing().await;
    publish(&hub, "news", "3");
    client.expect_nothing().await;
}

#[tokio::test]
async fn both_protocols_share_a_channel() {
    let hub = hub();
    let mut pusher = PusherClient::subscribed(&hub, "news").await;
    let mut native = Client::subscribed(&hub, "news").await;
    hub.publish(&Publish::new("news", "tick", Payload::Text("5"))).unwrap();
    assert_eq!(pusher.raw().await, json!({"event": "tick", "channel": "news", "data": "\"5\""}));
    assert_eq!(native.expect("message").await["data"], "5");
    let except = [pusher.socket_id];
    let mut publish = Publish::new("news", "tick", Payload::Text("6"));
    publish.except = &except;
    hub.publish(&publish).unwrap();
    assert_eq!(native.expect("message").await["data"], "6");
    pusher.expect_nothing().await;
}

#[tokio::test]
async fn a_subscription_that_is_refused_leaves_the_connection_open() {
    let hub = hub();
    let mut client = PusherClient::connect(&hub).await;
    let good = client.auth("private-a", None);
    let other_socket = format!("{KEY}:{}", sign(SECRET, "1.2:private-a"));
    for auth in [
        "".to_owned(),
        KEY.to_owned(),
        format!("{KEY}:"),
        good.replace(KEY, "another-key"),
        format!("{}0", &good[..good.len() - 1]),
        format!("{KEY}:{}", sign("another secret", &format!("{}:private-a", client.socket_id))),
        other_socket,
    ] {
        if auth == good {
            continue;
        }
        client.send("pusher:subscribe", json!({"auth": auth, "channel": "private-a"})).await;
        client.expect_refusal("private-a", 401, Some(4009)).await;
    }
    // Signed without what comes with it.
    client.send("pusher:subscribe", json!({"auth": good, "channel_data": "{\"user_id\":\"7\"}", "channel": "private-a"})).await;
    client.expect_refusal("private-a", 401, Some(4009)).await;
    for channel in ["a b", "", "a/b", "#user", "#anything", &"x".repeat(201)] {
        client.send("pusher:subscribe", json!({"channel": channel})).await;
        client.expect_refusal(channel, 400, None).await;
    }
    client.subscribe("private-a").await;
    publish(&hub, "private-a", "1");
    client.expect("order.shipped").await;
}

#[tokio::test]
async fn who_may_not_connect_is_told_after_the_upgrade() {
    let hub = start(|config| {
        config.apps =
            vec![app(), AppConfig { name: "off".into(), key: "off".into(), secret: "s".into(), disabled: true, ..AppConfig::default() }];
    });
    for (path, code) in [
        (path("unknown"), 4001),
        (path("off"), 4003),
        (format!("/app/{KEY}/more?protocol=7"), 4005),
        (format!("/app/{KEY}?protocol=3"), 4007),
        (format!("/app/{KEY}?protocol=8"), 4007),
        (format!("/app/{KEY}?protocol=x"), 4007),
    ] {
        let mut client = Client::open(&hub, &path).await;
        let error = client.json().await;
        assert_eq!((&error["event"], &error["data"]["code"]), (&json!("pusher:error"), &json!(code)), "{path}");
        assert_eq!(client.closed().await.0, code, "{path}");
    }
    for version in 4..=7 {
        let mut client = Client::open(&hub, &format!("/app/{KEY}?protocol={version}")).await;
        assert_eq!(client.json().await["event"], "pusher:connection_established");
    }
    assert_eq!(Client::request(&hub, "/app", &[]).await.err().map(|refused| refused.status), Some(404));
}

#[tokio::test]
async fn pages_of_any_host_may_connect_unless_a_list_says_which() {
    let evil = [("Origin", "https://evil.test")];
    let hub = hub();
    let mut client = Client::request(&hub, &path(KEY), &evil).await.unwrap();
    assert_eq!(client.json().await["event"], "pusher:connection_established");
    let hub = start(|config| {
        config.apps.push(app());
        config.allowed_origins = vec!["https://app.test".into()];
    });
    let mut client = Client::request(&hub, &path(KEY), &evil).await.unwrap();
    assert_eq!(client.json().await["data"]["code"], 4009);
    assert_eq!(client.closed().await.0, 4009);
    let mut client = Client::request(&hub, &path(KEY), &[("Origin", "https://app.test")]).await.unwrap();
    assert_eq!(client.json().await["event"], "pusher:connection_established");
}

#[tokio::test]
async fn an_app_has_so_many_connections_and_no_more() {
    let hub = start(|config| {
        config.apps = vec![
            AppConfig { max_connections: 2, ..app() },
            AppConfig { name: "b".into(), key: "kb".into(), secret: "s".into(), ..AppConfig::default() },
        ];
    });
    let refused = async || {
        let mut client = Client::open(&hub, &path(KEY)).await;
        assert_eq!(client.json().await["data"]["code"], 4004);
        assert_eq!(client.closed().await.0, 4004);
    };
    let first = PusherClient::connect(&hub).await;
    let second = PusherClient::connect(&hub).await;
    // However often it is tried.
    for _ in 0..5 {
        refused().await;
    }
    let mut other = Client::open(&hub, &path("kb")).await;
    assert_eq!(other.json().await["event"], "pusher:connection_established");
    // One that ends makes room for one; one that has moved still counts.
    assert!(hub.move_connection(second.socket_id, 0).unwrap() && hub.move_connection(second.socket_id, 1).unwrap());
    refused().await;
    first.client.close().await;
    eventually("a free place", || hub.stats().connections == 2);
    let _third = PusherClient::connect(&hub).await;
    refused().await;
}

#[tokio::test]
async fn client_events_reach_the_others_as_they_were_sent() {
    let hub = hub();
    let mut sender = PusherClient::subscribed(&hub, "private-a").await;
    let mut other = PusherClient::subscribed(&hub, "private-a").await;
    let mut stranger = PusherClient::subscribed(&hub, "private-b").await;
    for data in [json!({"a": [1]}), json!("5"), json!("{\"a\":1}"), json!(null), json!("text")] {
        let message = json!({"event": "client-typing", "channel": "private-a", "data": data, "user_id": "9", "socket_id": "1.1"});
        sender.client.send_json(message).await;
        assert_eq!(other.raw().await, json!({"event": "client-typing", "channel": "private-a", "data": data}));
    }
    sender.expect_nothing().await;
    stranger.expect_nothing().await;
}

#[tokio::test]
async fn a_client_event_that_breaks_a_rule_is_refused_and_the_connection_stays() {
    let hub = start(|config| config.apps.push(AppConfig { client_events_per_second: 0, ..app() }));
    let mut client = PusherClient::subscribed(&hub, "private-a").await;
    client.subscribe("news").await;
    let mut other = PusherClient::subscribed(&hub, "private-a").await;
    let long = "x".repeat(201 - "client-".len());
    for (event, channel, data) in [
        ("client-e", "news", json!(1)),
        ("client-e", "private-b", json!(1)),
        ("client-e", "privateer", json!(1)),
        ("client-", "private-a", json!(1)),
        ("client-a\u{7}", "private-a", json!(1)),
        (&format!("client-{long}"), "private-a", json!(1)),
        ("client-e", "private-a", json!("x".repeat(10 * 1024 - 1))),
    ] {
        client.client.send_json(json!({"event": event, "channel": channel, "data": data})).await;
        client.expect_error(Some(4301)).await;
    }
    // The limit counts the JSON text: quotes included.
    for bytes in [10 * 1024 - 3, 10 * 1024 - 2] {
        let data = "x".repeat(bytes);
        client.client.send_json(json!({"event": "client-e", "channel": "private-a", "data": data})).await;
        assert_eq!(other.expect("client-e").await["data"], data);
    }
    for event in ["order.shipped", "pusher:anything", "pusher_internal:member_added"] {
        client.client.send_json(json!({"event": event, "channel": "private-a", "data": {}})).await;
        client.expect_error(None).await;
    }
    other.expect_nothing().await;
}

#[tokio::test]
async fn client_events_have_a_rate_and_a_switch() {
    let hub = start(|config| {
        config.apps = vec![
            AppConfig { client_events_per_second: 1, ..app() },
            AppConfig { name: "b".into(), key: "kb".into(), secret: "sb".into(), client_events: false, ..AppConfig::default() },
        ];
        config.channels.push(client_events("private-policy"));
    });
    let mut client = PusherClient::subscribed(&hub, "private-a").await;
    let mut other = PusherClient::subscribed(&hub, "private-a").await;
    let mut refused = 0;
    for round in 0.. {
        assert!(round < 100, "100 client events were never more than one a second");
        client.client.send_json(json!({"event": "client-e", "channel": "private-a", "data": round})).await;
        client.client.send(Message::text(r#"{"event":"pusher:ping"}"#)).await;
        let answer = client.raw().await;
        if answer["event"] == "pusher:error" {
            assert_eq!(answer["data"]["code"], 4301);
            refused += 1;
            client.expect("pusher:pong").await;
        } else {
            assert_eq!(other.expect("client-e").await["data"], round);
        }
        if refused > 3 {
            break;
        }
    }
    let mut off = Client::open(&hub, &path("kb")).await;
    let greeting = off.json().await;
    let socket = greeting["data"].as_str().unwrap().split('"').nth(3).unwrap().to_owned();
    for (channel, allowed) in [("private-a", false), ("private-policy", true)] {
        let auth = format!("kb:{}", sign("sb", &format!("{socket}:{channel}")));
        off.send_json(json!({"event": "pusher:subscribe", "data": {"auth": auth, "channel": channel}})).await;
        assert_eq!(off.json().await["event"], "pusher_internal:subscription_succeeded");
        off.send_json(json!({"event": "client-e", "channel": channel, "data": 1})).await;
        off.send_text(r#"{"event":"pusher:ping"}"#).await;
        let answer = off.json().await;
        assert_eq!(answer["data"]["code"] == 4301, !allowed, "{channel}: {answer}");
        if !allowed {
            assert_eq!(off.json().await["event"], "pusher:pong");
        }
    }
}

#[tokio::test]
async fn who_signs_in_hears_what_is_sent_to_the_user() {
    let hub = hub();
    let mut client = PusherClient::connect(&hub).await;
    // Not before signing in, and never as somebody else.
    client.send("pusher:subscribe", json!({"auth": "", "channel": "#server-to-user-u1"})).await;
    client.expect_refusal("#server-to-user-u1", 401, Some(4009)).await;
    client.sign_in(r#"{"id":"u1","user_info":{"name":"Ann"}}"#).await;
    client.send("pusher:subscribe", json!({"auth": "", "channel": "#server-to-user-u1"})).await;
    let answer = client.expect("pusher_internal:subscription_succeeded").await;
    assert_eq!(answer["channel"], "#server-to-user-u1");
    client.send("pusher:subscribe", json!({"auth": "", "channel": "#server-to-user-u2"})).await;
    client.expect_refusal("#server-to-user-u2", 401, Some(4009)).await;

    hub.publish_to_user("u1", "note", Payload::Json("[1]"), &[]).unwrap();
    assert_eq!(client.raw().await, json!({"event": "note", "channel": "#server-to-user-u1", "data": "[1]"}));
    hub.publish_to_user("u2", "note", Payload::Json("2"), &[]).unwrap();
    client.expect_nothing().await;

    // The same user again is in order, another one is not.
    client.sign_in(r#"{"id":"u1"}"#).await;
    let other = r#"{"id":"u2"}"#;
    let auth = format!("{KEY}:{}", sign(SECRET, &format!("{}::user::{other}", client.socket_id)));
    client.send("pusher:signin", json!({"auth": auth, "user_data": other})).await;
    client.expect_error(Some(4009)).await;
    for (auth, data) in [
        (auth.replace(KEY, "k"), other),
        (format!("{KEY}:{}", sign(SECRET, &format!("{}::user::{{\"id\":7}}", client.socket_id))), r#"{"id":7}"#),
        (format!("{KEY}:{}", sign(SECRET, r#"1.2::user::{"id":"u1"}"#)), r#"{"id":"u1"}"#),
    ] {
        client.send("pusher:signin", json!({"auth": auth, "user_data": data})).await;
        client.expect_error(Some(4009)).await;
    }
    assert_eq!(hub.disconnect_user("u1", 4009, "terminated").unwrap(), 1);
    assert_eq!(client.client.closed().await, (4009, "terminated".into()));
}

#[tokio::test]
async fn liveness_goes_both_ways() {
    let hub = start(|config| {
        config.apps.push(app());
        config.heartbeat.ping_interval_ms = 60;
        config.heartbeat.activity_timeout_ms = 119_001;
    });
    let mut quiet = Client::open(&hub, &path(KEY)).await;
    assert!(quiet.text().await.contains(r#"\"activity_timeout\":120}"#));
    let mut client = PusherClient::connect(&hub).await;
    for ping in
        [json!({"event": "pusher:ping", "data": {}}), json!({"event": "pusher:ping"}), json!({"event": "pusher:ping", "data": "{}"})]
    {
        client.client.send_json(ping).await;
        assert_eq!(client.raw().await, json!({"event": "pusher:pong", "data": {}}));
    }
    client.client.send(Message::Ping("a".into())).await;
    client.client.send_json(json!({"event": "pusher:pong", "data": {}})).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn faults_are_answered_and_end_the_connection_in_the_end() {
    let hub = start(|config| {
        config.apps.push(app());
        config.limits.max_protocol_errors = 5;
    });
    let mut client = PusherClient::connect(&hub).await;
    for bad in ["", "[]", "{", r#"{"event":"pusher:subscribe","data":5}"#] {
        client.client.send_text(bad).await;
        client.expect_error(None).await;
    }
    client.expect_nothing().await;
    client.client.send(Message::Binary(vec![1].into())).await;
    client.expect_error(None).await;
    // Not 4000: to clients that would mean "only with TLS".
    assert_eq!(client.client.next().await, Received::Closed { code: 4009, reason: "too many errors".into() });
}

#[tokio::test]
async fn a_stop_tells_clients_to_come_back() {
    let hub = hub();
    let mut client = PusherClient::subscribed(&hub, "news").await;
    publish(&hub, "news", "1");
    let stopping = tokio::task::spawn_blocking({
        let hub = hub.clone();
        move || hub.stop(std::time::Duration::from_secs(10))
    });
    client.expect("order.shipped").await;
    assert_eq!(client.client.closed().await.0, 4100);
    assert!(stopping.await.unwrap().complete);
}

/// Subscribes to a presence channel as this user; gives what it is told of those present.
async fn enter(client: &mut PusherClient, channel: &str, channel_data: &str) -> serde_json::Value {
    let auth = client.auth(channel, Some(channel_data));
    client.send("pusher:subscribe", json!({"auth": auth, "channel_data": channel_data, "channel": channel})).await;
    let answer = client.expect("pusher_internal:subscription_succeeded").await;
    assert_eq!(answer["channel"], channel);
    answer["data"]["presence"].clone()
}

#[tokio::test]
async fn members_see_each_other_come_and_go() {
    let hub = start(|config| {
        config.apps.push(app());
        config.presence_grace_ms = 0;
    });
    let channel = "presence-room";
    let mut ann = PusherClient::connect(&hub).await;
    let present = enter(&mut ann, channel, r#"{"user_id": 10, "user_info": {"name": "Ann"}}"#).await;
    assert_eq!(present, json!({"count": 1, "ids": ["10"], "hash": {"10": {"name": "Ann"}}}));
    let mut bo = PusherClient::connect(&hub).await;
    let present = enter(&mut bo, channel, r#"{"user_id":"b"}"#).await;
    assert_eq!(present, json!({"count": 2, "ids": ["10", "b"], "hash": {"10": {"name": "Ann"}, "b": null}}));
    assert_eq!(ann.expect("pusher_internal:member_added").await["data"], json!({"user_id": "b", "user_info": null}));

    // The same user again is nobody's news, and neither is the first of two to go.
    let mut again = PusherClient::connect(&hub).await;
    let present = enter(&mut again, channel, r#"{"user_id":"b","user_info":{"name":"Other"}}"#).await;
    assert_eq!((&present["count"], &present["hash"]["b"]), (&json!(2), &json!(null)));
    again.send("pusher:unsubscribe", json!({"channel": channel})).await;
    again.expect_nothing().await;
    ann.expect_nothing().await;

    // Who speaks is who the application has signed, whatever the client claims.
    bo.client.send_json(json!({"event": "client-hi", "channel": channel, "data": 1, "user_id": "10"})).await;
    assert_eq!(ann.raw().await, json!({"event": "client-hi", "channel": channel, "data": 1, "user_id": "b"}));

    bo.client.close().await;
    assert_eq!(ann.expect("pusher_internal:member_removed").await["data"], json!({"user_id": "b"}));
}

#[tokio::test]
async fn a_presence_channel_needs_somebody() {
    let hub = hub();
    let channel = "presence-room";
    let mut client = PusherClient::connect(&hub).await;
    let good = r#"{"user_id":"7"}"#;
    for (data, signed) in [
        (None, None),
        (Some("{}"), Some("{}")),
        (Some("[]"), Some("[]")),
        (Some(r#"{"user_id":""}"#), Some(r#"{"user_id":""}"#)),
        (Some(r#"{"user_id":null}"#), Some(r#"{"user_id":null}"#)),
        (Some(r#"{"user_id":"8"}"#), Some(good)),
        (Some(r#"{"user_id": "7"}"#), Some(good)),
        (None, Some(good)),
    ] {
        let auth = client.auth(channel, signed);
        client.send("pusher:subscribe", json!({"auth": auth, "channel_data": data, "channel": channel})).await;
        client.expect_refusal(channel, 401, Some(4009)).await;
    }
    enter(&mut client, channel, good).await;

    // Who has signed in need not say it again.
    let mut signed_in = PusherClient::connect(&hub).await;
    signed_in.sign_in(r#"{"id":"u1","user_info":{"name":"Ann"}}"#).await;
    let auth = signed_in.auth(channel, None);
    signed_in.send("pusher:subscribe", json!({"auth": auth, "channel": channel})).await;
    let answer = signed_in.expect("pusher_internal:subscription_succeeded").await;
    assert_eq!(answer["data"]["presence"]["hash"]["u1"], json!({"name": "Ann"}));
}

#[tokio::test]
async fn a_cache_channel_gives_its_newest_event_to_who_comes_later() {
    let hub = hub();
    for channel in ["cache-news", "private-cache-a", "private-encrypted-cache-a"] {
        let mut first = PusherClient::subscribed(&hub, channel).await;
        assert_eq!(first.raw().await, json!({"event": "pusher:cache_miss", "channel": channel}));
        publish(&hub, channel, "1");
        first.expect("order.shipped").await;
        // What clients say is not kept, and with nobody there everything still is.
        if channel != "cache-news" {
            first.client.send_json(json!({"event": "client-e", "channel": channel, "data": 9})).await;
        }
        first.client.close().await;
        for round in 2..4 {
            publish(&hub, channel, &round.to_string());
            let mut client = PusherClient::connect(&hub).await;
            client.subscribe(channel).await;
            assert_eq!(client.raw().await, json!({"event": "order.shipped", "channel": channel, "data": round.to_string()}));
            if channel != "cache-news" {
                client.client.send_json(json!({"event": "client-e", "channel": channel, "data": 9})).await;
                client.expect_nothing().await;
            }
            let mut later = PusherClient::connect(&hub).await;
            later.subscribe(channel).await;
            assert_eq!(later.expect("order.shipped").await["data"], round);
            publish(&hub, channel, "9");
            assert_eq!(later.expect("order.shipped").await["data"], 9);
        }
    }
    let mut client = PusherClient::connect(&hub).await;
    let present = enter(&mut client, "presence-cache-a", r#"{"user_id":"7"}"#).await;
    assert_eq!(present["count"], 1);
    client.expect("pusher:cache_miss").await;
}

#[tokio::test]
async fn a_cache_channel_without_a_keyed_app_is_a_channel_like_any_other() {
    let hub = start(|_| {});
    let mut first = Client::subscribed(&hub, "cache-news").await;
    publish(&hub, "cache-news", "1");
    first.expect("message").await;
    let mut later = Client::subscribed(&hub, "cache-news").await;
    later.expect_nothing().await;
}

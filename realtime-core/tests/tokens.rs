//! Connections that say who they are with a token.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::sync::Arc;
use std::time::{Duration, Instant};

use application::{now_ms, sign, token};
use realtime_core::config::{Access, AuthMode, AuthModes, ChannelPolicy};
use realtime_core::hub::HubBuilder;
use realtime_core::{Config, Hub, Payload};
use realtime_testkit::Delayed;
use realtime_testkit::client::{Client, Received};
use realtime_testkit::hub::{config, start};
use realtime_testkit::wait::{DEADLINE, eventually};
use serde_json::json;

fn hub(change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
        change(config);
    })
}

/// Connects with a token in the query and takes the greeting.
async fn connect(hub: &Hub, user: &str) -> Client {
    Client::connect_to(hub, &format!("/ws?token={}", token(user))).await
}

/// Connects when there is a place: one is free once the hub has seen that somebody needs it no longer.
async fn let_in(hub: &Hub, path: &str) -> Client {
    let begun = Instant::now();
    loop {
        let mut client = Client::open(hub, path).await;
        match client.next().await {
            Received::Text(_) => return client,
            refused => assert!(begun.elapsed() < DEADLINE, "{refused:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long tokens and bans last that end while a test looks: long enough for all that comes before, however busy the
/// machine is.
const SHORT: Duration = Duration::from_secs(6);

/// In seconds since 1970.
fn soon() -> f64 {
    now_ms() as f64 / 1000.0 + SHORT.as_secs_f64()
}

/// What a client is told that is let in or turned away.
async fn outcome(hub: &Hub, path: &str, headers: &[(&str, &str)]) -> Result<String, (u16, String)> {
    let mut client = Client::request(hub, path, headers).await.unwrap();
    match client.next().await {
        Received::Text(text) => Ok(serde_json::from_str::<serde_json::Value>(&text).unwrap()["user_id"].to_string()),
        Received::Closed { code, reason } => Err((code, reason)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_is_taken_from_query_header_and_subprotocol() {
    let hub = hub(|_| {});
    let ada = token("ada");
    let ada_says = Ok("\"ada\"".to_owned());
    assert_eq!(outcome(&hub, &format!("/ws?token={ada}"), &[]).await, ada_says);
    assert_eq!(outcome(&hub, "/ws", &[("authorization", &format!("Bearer {ada}"))]).await, ada_says);
    assert_eq!(outcome(&hub, "/ws", &[("sec-websocket-protocol", &format!("realtime, bearer.{ada}"))]).await, ada_says);
    let forged = format!("{}x", &ada[..ada.len() - 1]);
    let refused = Err((4009, "the token's signature does not fit".to_owned()));
    for (path, header) in [(format!("/ws?token={forged}"), None), ("/ws".into(), Some(format!("Bearer {forged}")))] {
        let headers: Vec<_> = header.iter().map(|value| ("authorization", value.as_str())).collect();
        let outcome = outcome(&hub, &path, &headers).await;
        // The last character holds bits that belong to no byte.
        assert!(outcome == refused || outcome == Err((4009, "the token is not three parts in base64url".into())), "{outcome:?}");
    }
    let expired = sign(&json!({"sub": "ada", "exp": now_ms() / 1000 - 1}));
    assert_eq!(outcome(&hub, &format!("/ws?token={expired}"), &[]).await, Err((4009, "the token has expired".into())));
    let twice = Client::request(&hub, &format!("/ws?token={ada}&token={ada}"), &[]).await.err().unwrap();
    assert_eq!((twice.status, twice.code.as_str()), (400, "bad_credential"));
    assert!(hub.stats().refused >= 3);
}

#[tokio::test]
async fn a_client_may_authenticate_by_a_command_and_do_nothing_before() {
    let hub = hub(|_| {});
    let mut client = Client::connect_to(&hub, "/ws/news").await;
    client.send_json(json!({"action": "subscribe", "channel": "other", "id": 1})).await;
    assert_eq!(client.expect_error("unauthenticated").await["id"], 1);
    client.send_json(json!({"action": "auth", "token": token("ada"), "id": 2})).await;
    let answer = client.expect("authenticated").await;
    assert_eq!((&answer["user_id"], &answer["id"]), (&json!("ada"), &json!(2)));
    assert!(answer["expires_at_ms"].as_u64().unwrap() > now_ms());
    // What its path asked for was kept for it.
    assert_eq!(client.expect("subscribed").await["channel"], "news");
    hub.publish_to_user("ada", "hello", Payload::Text("x"), &[]).unwrap();
    assert_eq!(client.expect("message").await["event"], "hello");
}

#[tokio::test]
async fn a_client_that_is_refused_or_silent_is_closed() {
    let patient = hub(|_| {});
    let mut client = Client::connect(&patient).await;
    client.send_json(json!({"action": "auth", "token": "nonsense"})).await;
    client.expect_error("unauthorized").await;
    assert_eq!(client.closed().await, (4009, "the token is not three parts in base64url".into()));
    let impatient = hub(|config| config.auth.timeout_ms = 200);
    let mut silent = Client::connect(&impatient).await;
    assert_eq!(silent.closed().await, (4009, "not authenticated in time".into()));
}

#[tokio::test]
async fn a_flood_before_authentication_ends_the_connection() {
    let hub = hub(|_| {});
    let mut client = Client::connect(&hub).await;
    for _ in 0..9 {
        client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
        client.expect_error("unauthenticated").await;
    }
    client.send_json(json!({"action": "subscribe", "channel": "c"})).await;
    assert_eq!(client.closed().await.0, 4000);
    for (bytes, ok) in [(9 * 1024 - 30, true), (9 * 1024 + 1, false)] {
        let mut client = Client::connect(&hub).await;
        client.send_text(&format!(r#"{{"action":"ping","id":"{}"}}"#, "x".repeat(bytes - 25))).await;
        let answer = client.next().await;
        let too_large = matches!(answer, Received::Closed { code: 1009, .. });
        assert_eq!(!too_large, ok, "{bytes}");
    }
    assert_eq!(hub.stats().subscriptions, 0);
}

#[tokio::test]
async fn connections_that_have_yet_to_authenticate_are_bounded() {
    let hub = hub(|config| config.auth.max_pending = 3);
    let mut pending = Vec::new();
    for _ in 0..3 {
        pending.push(Client::connect(&hub).await);
    }
    let refused = outcome(&hub, "/ws", &[]).await.unwrap_err();
    assert_eq!(refused, (4101, "3 connections have yet to authenticate, and that is the limit".into()));
    // Who brings a credential does not wait.
    connect(&hub, "ada").await;
    pending[0].send_json(json!({"action": "auth", "token": token("bob")})).await;
    pending[0].expect("authenticated").await;
    pending.push(let_in(&hub, "/ws").await);
    pending.remove(1).close().await;
    pending.push(let_in(&hub, "/ws").await);
    assert_eq!(outcome(&hub, "/ws", &[]).await.unwrap_err().0, 4101);
}

#[tokio::test]
async fn the_bound_by_address_sees_through_a_trusted_proxy_only() {
    let per_address = |proxies: &[&str]| {
        let proxies = proxies.iter().map(|&proxy| proxy.to_owned()).collect();
        hub(|config| (config.auth.max_pending_per_address, config.trusted_proxies) = (2, proxies))
    };
    let through_proxy = per_address(&["127.0.0.1"]);
    let mut open = Vec::new();
    for client in ["198.51.100.1", "198.51.100.1", "198.51.100.2", "198.51.100.2"] {
        open.push(Client::request(&through_proxy, "/ws", &[("x-forwarded-for", client)]).await.unwrap());
        open.last_mut().unwrap().expect("connected").await;
    }
    assert_eq!(outcome(&through_proxy, "/ws", &[("x-forwarded-for", "198.51.100.1")]).await.unwrap_err().0, 4101);
    let direct = per_address(&[]);
    for spoofed in ["198.51.100.1", "198.51.100.2"] {
        open.push(Client::request(&direct, "/ws", &[("x-forwarded-for", spoofed)]).await.unwrap());
        open.last_mut().unwrap().expect("connected").await;
    }
    assert_eq!(outcome(&direct, "/ws", &[("x-forwarded-for", "198.51.100.3")]).await.unwrap_err().0, 4101);
}

#[tokio::test]
async fn a_connection_ends_with_its_token_unless_that_is_renewed() {
    let hub = hub(|_| {});
    let token_for_now = sign(&json!({"sub": "ada", "exp": soon()}));
    let mut ends = Client::connect_to(&hub, &format!("/ws?token={token_for_now}")).await;
    let mut goes_on = Client::connect_to(&hub, &format!("/ws?token={token_for_now}")).await;
    goes_on.subscribe("news").await;
    goes_on.send_json(json!({"action": "auth", "token": token("bob")})).await;
    goes_on.expect_error("unauthorized").await;
    goes_on.send_json(json!({"action": "auth", "token": token("ada")})).await;
    goes_on.expect("authenticated").await;
    assert_eq!(ends.closed().await, (4203, "the credential has expired".into()));
    // The other one's token ended at the same time.
    goes_on.expect_nothing().await;
    eventually("only one is left", || hub.stats().connections == 1);
}

#[tokio::test]
async fn two_hundred_connections_end_with_their_tokens_and_those_renewed_miss_nothing() {
    let hub = hub(|_| {});
    let mut renewed = Vec::new();
    let mut ending = Vec::new();
    for at in 0..200u64 {
        let expires = soon() + at as f64 / 100.0;
        let first = sign(&json!({"sub": format!("u{at}"), "exp": expires}));
        let mut client = Client::connect_to(&hub, &format!("/ws?token={first}")).await;
        client.subscribe("news").await;
        if at % 2 == 0 {
            client.send_json(json!({"action": "auth", "token": token(&format!("u{at}"))})).await;
            renewed.push(client);
        } else {
            ending.push(client);
        }
    }
    for client in &mut ending {
        assert_eq!(client.closed().await.0, 4203);
    }
    let publish = |text| hub.publish(&realtime_core::Publish::new("news", "e", Payload::Text(text))).unwrap();
    publish("a");
    publish("b");
    for client in &mut renewed {
        client.expect("authenticated").await;
        assert_eq!(
            (client.expect("message").await["offset"].clone(), client.expect("message").await["offset"].clone()),
            (json!(1), json!(2))
        );
    }
}

#[tokio::test]
async fn channels_of_a_token_are_all_that_it_is_good_for() {
    let hub = hub(|config| {
        config.channels = vec![ChannelPolicy { pattern: "open".into(), access: Some(Access::Public), ..ChannelPolicy::default() }];
    });
    let with = |channels: serde_json::Value| sign(&json!({"sub": "ada", "exp": now_ms() / 1000 + 60, "channels": channels}));
    let mut client = Client::connect_to(&hub, &format!("/ws?token={}", with(json!(["news", "room-*", "private-x"])))).await;
    for channel in ["news", "room-1", "room-2"] {
        client.subscribe(channel).await;
    }
    // The last one is in the list, and needs a signature all the same.
    for channel in ["open", "room", "other", "private-x"] {
        client.send_json(json!({"action": "subscribe", "channel": channel})).await;
        client.expect_error("unauthorized").await;
    }
    client.send_json(json!({"action": "auth", "token": with(json!(["news", "room-2", "open"]))})).await;
    let ended = client.expect("unsubscribed").await;
    assert_eq!(ended["channel"], "room-1");
    client.expect("authenticated").await;
    client.subscribe("open").await;
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 4);
}

#[tokio::test]
async fn a_renewed_token_stops_what_waits_for_the_broker_and_is_not_covered_any_more() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let settings = config(|config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
    });
    let hub = HubBuilder::new(settings).broker(broker.clone()).start().unwrap();
    let with = |channels: serde_json::Value| sign(&json!({"sub": "ada", "exp": now_ms() / 1000 + 60, "channels": channels}));
    let mut client = Client::connect_to(&hub, &format!("/ws?token={}", with(json!(["news", "room"])))).await;
    eventually("it hears what is sent to its user", || hub.stats().subscriptions == 1);
    broker.pause();
    for channel in ["news", "room"] {
        client.send_json(json!({"action": "subscribe", "channel": channel, "id": channel})).await;
    }
    client.send_json(json!({"action": "auth", "token": with(json!(["news"]))})).await;
    let refused = client.expect_error("unauthorized").await;
    assert_eq!(refused["id"], "room");
    client.expect("authenticated").await;
    broker.resume();
    assert_eq!(client.expect("subscribed").await["channel"], "news");
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 2);
}

#[tokio::test]
async fn rights_travel_with_a_connection() {
    let hub = hub(|_| {});
    let token = sign(&json!({"sub": "ada", "exp": soon(), "channels": ["a"]}));
    let mut client = Client::connect_to(&hub, &format!("/ws?token={token}")).await;
    for shard in [0, 1, 0] {
        assert!(hub.move_connection(client.socket_id(), shard).unwrap());
    }
    client.subscribe("a").await;
    client.send_json(json!({"action": "subscribe", "channel": "b"})).await;
    client.expect_error("unauthorized").await;
    assert_eq!(client.closed().await.0, 4203);
    let mut pending = Client::connect(&hub).await;
    assert!((0..2).any(|shard| !hub.move_connection(pending.socket_id(), shard).unwrap()), "who has yet to authenticate stays");
    pending.expect_nothing().await;
}

#[tokio::test]
async fn a_user_has_as_many_connections_as_the_limit_says() {
    let hub = hub(|config| config.limits.max_user_connections = 2);
    let mut first = connect(&hub, "ada").await;
    let _second = connect(&hub, "ada").await;
    let path = format!("/ws?token={}", token("ada"));
    assert_eq!(outcome(&hub, &path, &[]).await, Err((4102, "a user may have 2 connections".into())));
    connect(&hub, "bob").await;
    // A connection that changes shards is still one.
    hub.move_connection(first.socket_id(), 0).unwrap();
    hub.move_connection(first.socket_id(), 1).unwrap();
    assert_eq!(outcome(&hub, &path, &[]).await.unwrap_err().0, 4102);
    first.expect_nothing().await;
    first.close().await;
    // Its place is free once the hub has seen the connection's end.
    let_in(&hub, &path).await;
}

#[tokio::test]
async fn a_banned_user_stays_out_until_the_ban_ends() {
    let hub = hub(|_| {});
    let mut ada = connect(&hub, "ada").await;
    let mut bob = connect(&hub, "bob").await;
    assert_eq!(hub.ban_user("ada", SHORT, 4009, "signed out").unwrap(), 1);
    assert_eq!(ada.closed().await, (4009, "signed out".into()));
    let path = format!("/ws?token={}", token("ada"));
    assert_eq!(outcome(&hub, &path, &[]).await, Err((4009, "the user is banned".into())));
    let mut by_command = Client::connect(&hub).await;
    by_command.send_json(json!({"action": "auth", "token": token("ada")})).await;
    assert_eq!(by_command.closed().await, (4009, "the user is banned".into()));
    bob.expect_nothing().await;
    let_in(&hub, &path).await;
}

#[tokio::test]
async fn a_host_that_gives_a_connection_to_a_user_ends_what_its_token_said() {
    let hub = hub(|_| {});
    let token = sign(&json!({"sub": "ada", "exp": soon(), "channels": ["a"]}));
    let mut client = Client::connect_to(&hub, &format!("/ws?token={token}")).await;
    let mut ends = Client::connect_to(&hub, &format!("/ws?token={token}")).await;
    assert!(hub.set_user(client.socket_id(), Some(realtime_core::User::new("bob", None).unwrap())).unwrap());
    client.subscribe("b").await;
    assert_eq!(ends.closed().await.0, 4203);
    client.expect_nothing().await;

    // One that has yet to say who it is gets what it came for.
    let mut pending = Client::open(&hub, "/ws/news").await;
    let socket = pending.expect("connected").await["socket_id"].as_str().unwrap().parse().unwrap();
    assert!(hub.set_user(socket, Some(realtime_core::User::new("eve", None).unwrap())).unwrap());
    assert_eq!(pending.expect("subscribed").await["channel"], "news");
    // Nobody is not somebody.
    let mut nobody = Client::connect(&hub).await;
    assert!(hub.set_user(nobody.socket_id(), None).unwrap());
    nobody.send_json(json!({"action": "subscribe", "channel": "news"})).await;
    nobody.expect_error("unauthenticated").await;
}

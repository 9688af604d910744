//! What a host asks of a hub: publications and their receipts, users, numbers.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;

use realtime_core::{InvalidChannel, Payload, Publish, PublishError, QueryError, User};
use realtime_testkit::{Client, Received, eventually, start};
use serde_json::json;

fn user(id: &str) -> User {
    User::new(id, None).unwrap()
}

#[tokio::test]
async fn a_receipt_says_where_and_to_how_many() {
    let hub = start(|config| config.shards = 3);
    assert_eq!(hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap().matched, 0);
    let mut clients = Vec::new();
    for number in 1..=7 {
        clients.push(Client::subscribed(&hub, "c").await);
        let receipt = hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
        assert_eq!((receipt.position.offset, receipt.matched), (number + 1, number as usize));
    }
    assert_eq!((hub.stats().published, hub.stats().connections, hub.stats().subscriptions), (8, 7, 7));
    let channels: Vec<_> = hub.channels().into_iter().map(|channel| (channel.name, channel.subscribers)).collect();
    assert_eq!(channels, [("c".to_owned(), 7)]);
    for client in clients {
        client.close().await;
    }
    eventually("everybody is gone", || hub.stats().connections == 0);
    assert_eq!((hub.stats().subscriptions, hub.stats().channels, hub.channels().len()), (0, 0, 0));
}

#[tokio::test]
async fn excepted_connections_get_all_but_that() {
    let hub = start(|_| {});
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(Client::subscribed(&hub, "c").await);
    }
    let stranger = "1.2".parse().unwrap();
    let except = [clients[0].socket_id(), stranger, clients[3].socket_id()];
    hub.publish(&Publish::new("c", "before", Payload::Text(""))).unwrap();
    let mut publish = Publish::new("c", "excepted", Payload::Text(""));
    publish.except = &except;
    hub.publish(&publish).unwrap();
    hub.publish(&Publish::new("c", "after", Payload::Text(""))).unwrap();
    for (index, client) in clients.iter_mut().enumerate() {
        let expected: &[&str] = if matches!(index, 0 | 3) { &["before", "after"] } else { &["before", "excepted", "after"] };
        for event in expected {
            assert_eq!(client.expect("message").await["event"], *event, "client {index}");
        }
    }
}

#[tokio::test]
async fn an_idempotency_key_publishes_once() {
    let hub = start(|_| {});
    let mut client = Client::subscribed(&hub, "c").await;
    let publish = |channel, id| {
        let mut publish = Publish::new(channel, "e", Payload::Text("x"));
        publish.id = Some(id);
        hub.publish(&publish).unwrap()
    };
    let first = publish("c", "k");
    assert_eq!((first.position.offset, first.matched), (1, 1));
    assert_eq!((publish("c", "k").position, publish("c", "k").matched), (first.position, 0));
    assert_eq!(publish("d", "k").position.offset, 1);
    assert_eq!(publish("c", "l").position.offset, 2);
    assert_eq!((client.expect("message").await["offset"].as_u64(), client.expect("message").await["offset"].as_u64()), (Some(1), Some(2)));
    client.expect_nothing().await;
    for (length, ok) in [(0, false), (1, true), (128, true), (129, false)] {
        let id = "i".repeat(length);
        let mut publish = Publish::new("c", "e", Payload::Text("x"));
        publish.id = Some(&id);
        let outcome = hub.publish(&publish);
        assert!(if ok { outcome.is_ok() } else { matches!(outcome, Err(PublishError::InvalidId { .. })) }, "{length} bytes");
    }
}

#[tokio::test]
async fn a_users_connections_hear_what_is_sent_to_the_user() {
    let hub = start(|config| config.shards = 3);
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::subscribed(&hub, "room").await);
    }
    let ids: Vec<_> = clients.iter().map(Client::socket_id).collect();
    let owner = ["ada", "ada", "bob", "ada"];
    for (id, name) in ids.iter().zip(owner) {
        assert!(hub.set_user(*id, Some(User::new(name, Some(r#"{"vip":true}"#)).unwrap())).unwrap());
    }
    assert!(!hub.set_user("1.2".parse().unwrap(), Some(user("ada"))).unwrap());

    let users: Vec<_> = hub.channel_users("room").unwrap();
    let seen: Vec<_> = users.iter().map(|found| (found.user.id(), found.user.info(), found.connections)).collect();
    assert_eq!(seen, [("ada", Some(r#"{"vip":true}"#), 3), ("bob", Some(r#"{"vip":true}"#), 1)]);
    assert!(hub.channel_users("empty").unwrap().is_empty());

    let receipt = hub.publish_to_user("ada", "e", Payload::Json("5"), &ids[1..2]).unwrap();
    assert_eq!(receipt.matched, 3);
    for index in [0, 3] {
        // Neither the channel nor its count is anything that clients know.
        assert_eq!(clients[index].json().await, json!({"type": "message", "event": "e", "data": 5}));
    }
    for client in &mut clients {
        client.expect_nothing().await;
    }
    assert_eq!(hub.publish_to_user("nobody", "e", Payload::Text(""), &[]).unwrap().matched, 0);
    // The hub's own channels are nobody else's business.
    assert_eq!(hub.channels().len(), 1);

    // Given to somebody else, and to nobody.
    hub.set_user(ids[0], Some(user("bob"))).unwrap();
    hub.set_user(ids[1], None).unwrap();
    hub.publish_to_user("ada", "for ada", Payload::Text(""), &[]).unwrap();
    hub.publish_to_user("bob", "for bob", Payload::Text(""), &[]).unwrap();
    assert_eq!(clients[3].expect("message").await["event"], "for ada");
    assert_eq!(clients[0].expect("message").await["event"], "for bob");
    assert_eq!(clients[2].expect("message").await["event"], "for bob");
    clients[1].expect_nothing().await;
}

#[tokio::test]
async fn a_user_is_disconnected_with_the_applications_words() {
    let hub = start(|config| config.shards = 3);
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::subscribed(&hub, "room").await);
    }
    for client in &clients[..3] {
        hub.set_user(client.socket_id(), Some(user("ada"))).unwrap();
    }
    assert_eq!(hub.disconnect_user("bob", 4009, "").unwrap(), 0);
    assert_eq!(hub.disconnect_user("ada", 4321, "signed out \u{e9}").unwrap(), 3);
    for client in &mut clients[..3] {
        assert_eq!(client.closed().await, (4321, "signed out \u{e9}".to_owned()));
    }
    clients[3].expect_nothing().await;
    assert_eq!(hub.disconnect_user("ada", 4321, "").unwrap(), 0);

    hub.set_user(clients[3].socket_id(), Some(user("ada"))).unwrap();
    for code in [0, 999, 1001, 1005, 2999, 5000] {
        assert!(matches!(hub.disconnect_user("ada", code, ""), Err(QueryError::InvalidCloseCode { .. })), "{code}");
    }
    for (length, ok) in [(124, false), (123, true)] {
        let outcome = hub.disconnect_user("ada", 1000, &"r".repeat(length));
        assert!(if ok { matches!(outcome, Ok(1)) } else { matches!(outcome, Err(QueryError::ReasonTooLong { .. })) }, "{length}");
    }
    assert_eq!(clients[3].closed().await, (1000, "r".repeat(123)));
}

#[tokio::test]
async fn binary_payloads_keep_every_byte() {
    let hub = start(|_| {});
    let mut json = Client::subscribed(&hub, "c").await;
    let mut raw = Client::open(&hub, "/ws/c?envelope=raw").await;
    eventually("both are subscribed", || hub.stats().subscriptions == 2);
    let bytes: Vec<u8> = (0..=255).chain(*b"\n{}\n").collect();
    hub.publish(&Publish::new("c", "frame", Payload::Binary(&bytes))).unwrap();
    assert_eq!(raw.next().await, Received::Binary(bytes.clone()));
    let Received::Binary(message) = json.next().await else { panic!("not binary") };
    let end = message.iter().position(|byte| *byte == b'\n').unwrap();
    let header: serde_json::Value = serde_json::from_slice(&message[..end]).unwrap();
    assert_eq!(header, json!({"type": "message", "channel": "c", "event": "frame", "offset": 1}));
    assert_eq!(&message[end + 1..], bytes);
}

#[tokio::test]
async fn mistakes_of_the_host_are_errors_and_reach_nobody() {
    let hub = start(|_| {});
    let mut client = Client::subscribed(&hub, "c").await;
    let publish = |channel: &str, event: &str| hub.publish(&Publish::new(channel, event, Payload::Text("x")));
    assert!(matches!(publish("", "e"), Err(PublishError::InvalidChannel(InvalidChannel::Empty))));
    assert!(matches!(publish("#user:ada", "e"), Err(PublishError::InvalidChannel(InvalidChannel::Internal))));
    assert!(matches!(publish("a\n", "e"), Err(PublishError::InvalidChannel(InvalidChannel::ControlCharacter { at: 1 }))));
    let long = "e".repeat(201);
    for event in ["", "a\0", "pusher:x", "pusher_internal:x", &long] {
        assert!(matches!(publish("c", event), Err(PublishError::InvalidEvent { .. })), "{event:?}");
    }
    assert!(matches!(hub.publish_to_user("", "e", Payload::Text(""), &[]), Err(PublishError::InvalidUser(_))));
    assert!(matches!(hub.channel_users("#x"), Err(QueryError::InvalidChannel(_))));
    assert!(matches!(hub.disconnect_user("\0", 1000, ""), Err(QueryError::InvalidUser(_))));
    assert_eq!(hub.stats().published, 0);
    publish("c", &long[..200]).unwrap();
    assert_eq!(client.expect("message").await["offset"], 1);
}

#[tokio::test]
async fn one_publication_serves_both_envelopes_and_any_number_of_users() {
    let hub = start(|_| {});
    let mut clients = Vec::new();
    for index in 0..20 {
        let raw = index % 2 == 1;
        let mut client = match raw {
            true => Client::open(&hub, "/ws/c?envelope=raw").await,
            false => Client::connect_to(&hub, "/ws/c").await,
        };
        if !raw {
            client.expect("subscribed").await;
        }
        clients.push(client);
    }
    eventually("all are subscribed", || hub.stats().subscriptions == 20);
    let user_id: Arc<str> = "ada".into();
    let mut publish = Publish::new("c", "e", Payload::Text("x"));
    publish.user_id = Some(&user_id);
    hub.publish(&publish).unwrap();
    for (index, client) in clients.iter_mut().enumerate() {
        let expected =
            if index % 2 == 1 { "x" } else { r#"{"type":"message","channel":"c","event":"e","data":"x","offset":1,"user_id":"ada"}"# };
        assert_eq!(client.text().await, expected);
    }
}

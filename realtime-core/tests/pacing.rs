//! Clients that ask for more than they have room for: all of it comes, at their own pace, and nobody is closed for having
//! asked.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use realtime_core::config::ChannelPolicy;
use realtime_core::hub::HubBuilder;
use realtime_core::{Config, Hub, Payload, Publish, User};
use realtime_testkit::hub::history;
use realtime_testkit::presence::Late;
use realtime_testkit::{Client, Delayed, RawClient, config, eventually, raw, start};
use serde_json::{Value, json};

/// Answers of one test: many times what an outbox and the sockets hold.
const ASKED: usize = 200;
const SUBSCRIPTIONS: u64 = ASKED as u64;

fn small(config: &mut Config) {
    config.limits.outbox_bytes = 64 << 10;
    config.limits.publication_bytes = 16 << 10;
    config.channels = vec![
        ChannelPolicy { pattern: "room-*".into(), presence: true, ..ChannelPolicy::default() },
        ChannelPolicy { pattern: "value-*".into(), last_value: true, ..ChannelPolicy::default() },
        history("log", 10),
    ];
}

/// A hub whose brokers answer at once, and one whose brokers answer later, so that many answers can come together.
fn hubs() -> [Hub; 2] {
    let later = HubBuilder::new(config(small)).broker(Arc::new(Delayed::new(Duration::from_millis(1)))).presence(Arc::new(Late::default()));
    [start(small), later.start().unwrap()]
}

fn subscribe(channel: &str) -> String {
    json!({"action": "subscribe", "channel": channel}).to_string()
}

/// Sends all of it before it reads anything.
fn ask_all(hub: &Hub, requests: impl Iterator<Item = String>) -> RawClient {
    let (mut client, _) = RawClient::connect_narrow(hub, "/ws");
    for request in requests {
        client.send_text(&request);
    }
    client
}

/// One user with much to say of himself, in every room; and on a channel of his own.
async fn crowded(hub: &Hub) -> Client {
    let mut member = Client::connect(hub).await;
    let info = json!({"about": "x".repeat(3_500)}).to_string();
    assert!(hub.set_user(member.socket_id(), Some(User::new("m", Some(&info)).unwrap())).unwrap());
    for room in 0..ASKED {
        assert_eq!(member.subscribe(&format!("room-{room}")).await["users"][0]["id"], "m");
    }
    member
}

fn all_of(prefix: &str) -> BTreeSet<String> {
    (0..ASKED).map(|number| format!("{prefix}{number}")).collect()
}

#[tokio::test]
async fn the_newest_value_of_every_channel_comes_however_many_are_asked_for_at_once() {
    for hub in hubs() {
        let body = "x".repeat(8 << 10);
        for number in 0..ASKED {
            hub.publish(&Publish::new(&format!("value-{number}"), "e", Payload::Text(&body))).unwrap();
        }
        let mut client = ask_all(&hub, (0..ASKED).map(|number| subscribe(&format!("value-{number}"))));
        let (mut confirmed, mut values) = (BTreeSet::new(), BTreeSet::new());
        while values.len() < ASKED {
            let frame = client.next_frame().json();
            let channel = frame["channel"].as_str().unwrap().to_owned();
            match frame["type"].as_str().unwrap() {
                "subscribed" => assert!(confirmed.insert(channel)),
                "message" => {
                    assert!(confirmed.contains(&channel) && values.insert(channel), "{frame}");
                    assert_eq!(frame["data"], body);
                }
                _ => panic!("{frame}"),
            }
        }
        assert_eq!(values, all_of("value-"));
        // And they are subscriptions like any other.
        hub.publish(&Publish::new("value-7", "e", Payload::Text("next"))).unwrap();
        assert_eq!(client.next_frame().json()["data"], "next");
        assert_eq!((hub.stats().closed, hub.stats().subscriptions), (0, SUBSCRIPTIONS));
    }
}

#[tokio::test]
async fn newest_values_that_a_broker_gives_all_at_once_are_not_lost_behind_a_full_outbox() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let settings = config(|config| {
        small(config);
        config.shards = 1;
    });
    let hub = HubBuilder::new(settings).broker(broker.clone()).start().unwrap();
    // More than the sockets hold, whatever they have grown to.
    let channels: BTreeSet<String> = (0..700).map(|number| format!("value-{number}")).collect();
    let body = "x".repeat(15 << 10);
    // Somebody hears them all, so that only the values have to be asked for.
    let mut other = Client::connect(&hub).await;
    for channel in &channels {
        other.subscribe(channel).await;
        hub.publish(&Publish::new(channel, "e", Payload::Text(&body))).unwrap();
        other.expect("message").await;
    }
    broker.pause();
    let ping = json!({"action": "ping"}).to_string();
    let mut client = ask_all(&hub, channels.iter().map(|channel| subscribe(channel)).chain([ping]));
    assert_eq!(client.next_frame().json()["type"], "pong", "all has been looked at");
    broker.resume();
    eventually("the broker has answered what it was asked", || broker.backlog() == 0);
    let mut values = BTreeSet::new();
    while values.len() < channels.len() {
        let frame = client.next_frame().json();
        if frame["type"] == "message" {
            assert!(values.insert(frame["channel"].as_str().unwrap().to_owned()), "{frame}");
        }
    }
    assert_eq!((values, hub.stats().closed), (channels, 0));
}

#[tokio::test]
async fn who_asks_for_many_long_lists_of_users_gets_them_all() {
    for hub in hubs() {
        let _member = crowded(&hub).await;
        let mut client = ask_all(&hub, (0..ASKED).map(|room| subscribe(&format!("room-{room}"))));
        let rooms: BTreeSet<String> = (0..ASKED)
            .map(|_| {
                let answer = client.next_frame().json();
                assert_eq!((&answer["type"], &answer["users"][0]["id"]), (&json!("subscribed"), &json!("m")), "{answer}");
                answer["channel"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(rooms, all_of("room-"));
        assert_eq!((hub.stats().closed, hub.stats().subscriptions), (0, 2 * SUBSCRIPTIONS + 1));
        // The same again, of those that it hears by now.
        let mut client = ask_all(&hub, std::iter::once(subscribe("room-0")));
        assert_eq!(client.next_frame().json()["type"], "subscribed");
        for _ in 0..ASKED {
            client.send_text(r#"{"action":"presence","channel":"room-0"}"#);
        }
        for _ in 0..ASKED {
            assert_eq!(client.next_frame().json()["users"][0]["id"], "m");
        }
        assert_eq!(hub.stats().closed, 0);
    }
}

#[tokio::test]
async fn parts_of_a_history_that_are_asked_for_at_once_come_in_their_order() {
    for hub in hubs() {
        let body = "x".repeat(8 << 10);
        for _ in 0..10 {
            hub.publish(&Publish::new("log", "e", Payload::Text(&body))).unwrap();
        }
        let request = |id| json!({"action": "history", "channel": "log", "id": id, "limit": 1 + id % 2}).to_string();
        let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
        client.subscribe("log");
        for id in 0..3 * ASKED {
            client.send_text(&request(id));
        }
        for id in 0..3 * ASKED {
            let answer = client.next_frame().json();
            assert_eq!((&answer["type"], &answer["id"]), (&json!("history"), &json!(id)), "{answer}");
            assert!(!answer["messages"].as_array().unwrap().is_empty());
        }
        assert_eq!(hub.stats().closed, 0);
    }
}

#[tokio::test]
async fn whoever_goes_while_it_waits_leaves_nothing_behind() {
    for hub in hubs() {
        let member = crowded(&hub).await;
        for leaves in [RawClient::reset, |mut client: RawClient| client.write(&raw::frame(raw::CLOSE, &1000u16.to_be_bytes()))] {
            let client = ask_all(&hub, (0..ASKED).map(|room| subscribe(&format!("room-{room}"))));
            eventually("it has been given something", || hub.stats().subscriptions > SUBSCRIPTIONS + 1);
            leaves(client);
            eventually("only the member is there", || (hub.stats().connections, hub.stats().subscriptions) == (1, SUBSCRIPTIONS + 1));
        }
        member.close().await;
        eventually("no channel is left", || hub.channels().is_empty());
    }
}

#[tokio::test]
async fn a_client_whose_history_is_long_in_coming_is_not_taken_for_dead() {
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    let heartbeat = |config: &mut Config| {
        small(config);
        config.heartbeat.ping_interval_ms = 50;
        config.heartbeat.pong_timeout_ms = 50;
    };
    let hub = HubBuilder::new(config(heartbeat)).broker(broker.clone()).start().unwrap();
    let mut asks = Client::subscribed(&hub, "log").await;
    broker.pause();
    for id in [1, 2] {
        asks.send_json(json!({"action": "history", "channel": "log", "id": id})).await;
    }
    eventually("the broker has been asked", || broker.backlog() == 1);
    // What it says is not read before the first answer, so that its silence says nothing. This one has asked for nothing.
    let (silent, _) = RawClient::connect(&hub, "/ws");
    eventually("the silent one is gone", || (hub.stats().closed, hub.stats().connections) == (1, 1));
    broker.resume();
    let answers: [Value; 2] = [asks.json().await, asks.json().await];
    assert_eq!(answers.map(|answer| answer["id"].clone()), [json!(1), json!(2)]);
    drop(silent);
}

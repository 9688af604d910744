//! How many subscriptions a channel has, told to its subscribers and posted, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod application;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use application::Application;
use realtime_core::config::{AppConfig, WebhookConfig};
use realtime_core::transport::FrameSink;
use realtime_core::{Config, Hub};
use realtime_testkit::pusher::{PusherClient, app};
use realtime_testkit::{Client, on_time, start};
use serde_json::{Value, json};
use tokio::sync::{Mutex, Notify};

const COUNT: &str = "pusher_internal:subscription_count";

fn counting() -> AppConfig {
    AppConfig { subscription_count: true, ..app() }
}

fn hub(change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.apps.push(counting());
        config.shards = 2;
        change(config);
    })
}

/// The next number that the client is told.
async fn count(client: &mut PusherClient, channel: &str) -> u64 {
    let told = client.expect(COUNT).await;
    assert_eq!(told["channel"], channel, "{told}");
    told["data"]["subscription_count"].as_u64().unwrap()
}

/// What the client gets before the hub has read all that it has sent.
async fn until_answered(client: &mut PusherClient) -> Vec<Value> {
    client.send("pusher:ping", json!({})).await;
    let mut messages = Vec::new();
    loop {
        let message = client.raw().await;
        if message["event"] == "pusher:pong" {
            return messages;
        }
        messages.push(message);
    }
}

/// Takes numbers until it is this one; says how many there were.
async fn until(client: &mut PusherClient, channel: &str, number: u64) -> usize {
    let mut told = 1;
    while count(client, channel).await != number {
        told += 1;
    }
    told
}

#[tokio::test]
async fn subscribers_hear_how_many_they_are() {
    let hub = hub(|_| {});
    let mut first = PusherClient::subscribed(&hub, "news").await;
    assert_eq!(first.raw().await, json!({"event": COUNT, "channel": "news", "data": "{\"subscription_count\":1}"}));
    let mut second = PusherClient::subscribed(&hub, "news").await;
    // One that speaks another protocol counts, and is told nothing.
    let mut native = Client::subscribed(&hub, "news").await;
    until(&mut first, "news", 3).await;
    until(&mut second, "news", 3).await;
    native.expect_nothing().await;
    // The same channel a second time is one subscription.
    second.send("pusher:subscribe", json!({"channel": "news"})).await;
    second.send("pusher:unsubscribe", json!({"channel": "news"})).await;
    until(&mut first, "news", 2).await;
    for message in until_answered(&mut second).await {
        assert!(message["event"] != COUNT || message["data"] == "{\"subscription_count\":3}", "told afterwards: {message}");
    }
    drop(native);
    until(&mut first, "news", 1).await;
    for channel in ["private-a", "private-encrypted-a"] {
        let mut client = PusherClient::subscribed(&hub, channel).await;
        assert_eq!(count(&mut client, channel).await, 1);
    }
}

#[tokio::test]
async fn who_is_present_and_who_has_not_asked_is_not_counted() {
    let hub = hub(|config| {
        config.apps.push(AppConfig { name: "b".into(), key: "kb".into(), secret: "s".into(), ..AppConfig::default() });
    });
    let mut present = PusherClient::connect(&hub).await;
    let data = r#"{"user_id":"7"}"#;
    let auth = present.auth("presence-room", Some(data));
    present.send("pusher:subscribe", json!({"channel": "presence-room", "auth": auth, "channel_data": data})).await;
    present.expect("pusher_internal:subscription_succeeded").await;
    let mut other = Client::open(&hub, "/app/kb?protocol=7").await;
    other.json().await;
    other.send_json(json!({"event": "pusher:subscribe", "data": {"channel": "news"}})).await;
    other.json().await;
    // What is counted has been told by then.
    let mut counted = PusherClient::subscribed(&hub, "news").await;
    assert_eq!(count(&mut counted, "news").await, 1);
    until(&mut PusherClient::subscribed(&hub, "news").await, "news", 2).await;
    present.expect_nothing().await;
    other.send_json(json!({"event": "pusher:ping"})).await;
    assert_eq!(other.json().await["event"], "pusher:pong");
    let off = start(|config| config.apps.push(app()));
    let mut client = PusherClient::subscribed(&off, "news").await;
    let _second = PusherClient::subscribed(&off, "news").await;
    client.expect_nothing().await;
}

/// Takes whatever it is given.
struct Nowhere;

impl FrameSink for Nowhere {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(frames.iter().map(|frame| frame.len()).sum())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_costs_few_messages_and_the_last_one_is_true() {
    const CROWD: u64 = 5_000;
    let hub = hub(|_| {});
    let mut client = PusherClient::subscribed(&hub, "news").await;
    assert_eq!(count(&mut client, "news").await, 1);
    for _ in 0..CROWD {
        hub.attach_sink(&["news"], Box::new(Nowhere)).unwrap();
    }
    let told = until(&mut client, "news", CROWD + 1).await;
    assert!(told < 100, "{told} messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_channel_is_quiet_everybody_has_been_told_the_true_number() {
    let hub = hub(|_| {});
    let (mut away, mut here) = (VecDeque::new(), VecDeque::new());
    for _ in 0..12 {
        away.push_back(PusherClient::connect(&hub).await);
    }
    // Nobody waits for answers: the hub gets it all at once, on two shards.
    let mut random = 7_u32;
    for _ in 0..200 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (from, to, event) = if random >> 31 == 0 && here.len() > 1 || away.is_empty() {
            (&mut here, &mut away, "pusher:unsubscribe")
        } else {
            (&mut away, &mut here, "pusher:subscribe")
        };
        let mut client: PusherClient = from.pop_front().unwrap();
        client.send(event, json!({"channel": "news"})).await;
        to.push_back(client);
    }
    let number = here.len() as u64;
    for client in here.iter_mut().chain(&mut away) {
        until_answered(client).await;
    }
    let mut later = PusherClient::subscribed(&hub, "news").await;
    until(&mut later, "news", number + 1).await;
    drop(later);
    for client in &mut here {
        until(client, "news", number + 1).await;
        let mut last = number + 1;
        while last == number + 1 {
            last = count(client, "news").await;
        }
        assert_eq!(last, number);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_moves_is_counted_once() {
    let hub = hub(|_| {});
    let mut moving = PusherClient::subscribed(&hub, "news").await;
    let mut watching = PusherClient::subscribed(&hub, "news").await;
    until(&mut watching, "news", 2).await;
    for shard in [0, 1, 0] {
        assert!(hub.move_connection(moving.socket_id, shard).unwrap());
    }
    let _third = PusherClient::subscribed(&hub, "news").await;
    until(&mut watching, "news", 3).await;
    until(&mut moving, "news", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_hears_the_last_number_too() {
    let posted = Arc::new((Mutex::new(Vec::new()), Notify::new()));
    let kept = posted.clone();
    let application = Application::answering(move |asked| {
        let kept = kept.clone();
        async move {
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            kept.0.lock().await.extend(body["events"].as_array().unwrap().clone());
            kept.1.notify_one();
            (204, String::new())
        }
    })
    .await;
    let hub = hub(|config| {
        let webhook: WebhookConfig = serde_json::from_value(json!({"url": application.url(), "events": ["subscription_count"]})).unwrap();
        config.apps[0].webhooks = vec![webhook];
    });
    let last = |number: u64| {
        let posted = posted.clone();
        on_time("the number", async move {
            loop {
                let expected = json!({"name": "subscription_count", "channel": "news", "subscription_count": number});
                if posted.0.lock().await.last() == Some(&expected) {
                    return;
                }
                posted.1.notified().await;
            }
        })
    };
    let first = PusherClient::subscribed(&hub, "news").await;
    last(1).await;
    let second = PusherClient::subscribed(&hub, "news").await;
    last(2).await;
    drop((first, second));
    last(0).await;
}

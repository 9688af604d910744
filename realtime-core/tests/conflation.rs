//! Channels with `conflate_ms`: publishers may flood, subscribers get the newest of each name.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashMap;
use std::time::Duration;

use realtime_core::config::{ChannelPolicy, HistoryPolicy};
use realtime_core::{Config, ConfigError, Hub, Payload, Position, Publish, Receipt, StartError};
use realtime_testkit::{Client, config, eventually};
use serde_json::Value;

fn policy(conflate_ms: u64) -> ChannelPolicy {
    ChannelPolicy { pattern: "meter*".to_owned(), conflate_ms, ..ChannelPolicy::default() }
}

fn hub(policy: ChannelPolicy) -> Hub {
    Hub::start(config(|config| config.channels = vec![policy])).unwrap()
}

fn publish(hub: &Hub, event: &str, number: usize) -> Receipt {
    hub.publish(&Publish::new("meter", event, Payload::Json(&number.to_string()))).unwrap()
}

fn number(message: &Value) -> usize {
    usize::try_from(message["data"].as_u64().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_a_few_messages_and_the_newest_of_each_name_is_among_them() {
    const EACH: usize = 5_000;
    for window in [1, 50] {
        let hub = hub(policy(window));
        let mut clients = [Client::subscribed(&hub, "meter").await, Client::subscribed(&hub, "meter").await];
        std::thread::scope(|scope| {
            for event in ["volts", "amperes", "watts"] {
                let hub = &hub;
                scope.spawn(move || {
                    for number in 1..=EACH {
                        publish(hub, event, number);
                    }
                });
            }
        });
        let mut counts = Vec::new();
        for client in &mut clients {
            let (mut newest, mut count) = (HashMap::new(), 0);
            while newest.values().filter(|number| **number == EACH).count() < 3 {
                let message = client.expect("message").await;
                count += 1;
                assert_eq!(message["offset"], count, "offsets are dense: what is left out never had one");
                let event = message["event"].as_str().unwrap().to_owned();
                let before = newest.insert(event, number(&message)).unwrap_or(0);
                assert!(before < number(&message), "an older value came after a newer one");
            }
            client.expect_nothing().await;
            counts.push(count);
        }
        // What has just gone out may still be counted.
        eventually("nothing is held any more", || hub.stats().held_bytes == 0);
        let stats = hub.stats();
        assert_eq!(counts[0], counts[1]);
        assert_eq!(stats.published, 3 * EACH as u64);
        assert_eq!(stats.published - stats.conflated, counts[0] as u64, "every one went out or was replaced");
        hub.stop(Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_single_message_does_not_wait_and_a_second_one_has_no_place_yet() {
    let hub = hub(policy(60_000));
    let mut client = Client::subscribed(&hub, "meter").await;
    let mut other = Client::subscribed(&hub, "meter").await;
    let first = publish(&hub, "volts", 1);
    assert_eq!((first.position.offset, first.matched), (1, 2));
    for client in [&mut client, &mut other] {
        assert_eq!(number(&client.expect("message").await), 1);
    }
    let second = publish(&hub, "volts", 2);
    assert_eq!((second.position, second.matched), (Position::NONE, 2));
    let except = [other.socket_id()];
    let mut to_others = Publish::new("meter", "raw", Payload::Text("ä"));
    to_others.except = &except;
    assert_eq!(hub.publish(&to_others).unwrap().position, Position::NONE);
    client.expect_nothing().await;
    assert!(hub.stats().held_bytes > 0);

    // Other channels know nothing of it.
    let plain = hub.publish(&Publish::new("plain", "e", Payload::Text("x"))).unwrap();
    assert_eq!(plain.position.offset, 1);
    assert_eq!(hub.publish(&Publish::new("plain", "e", Payload::Text("x"))).unwrap().position.offset, 2);

    // A hub that stops hands out what it has accepted.
    let stopped = tokio::task::spawn_blocking(move || hub.stop(Duration::from_secs(20)));
    assert_eq!(number(&client.expect("message").await), 2);
    assert_eq!(client.expect("message").await["data"], "ä");
    assert_eq!(number(&other.expect("message").await), 2);
    drop((client, other));
    stopped.await.unwrap();
}

#[tokio::test]
async fn the_last_value_is_the_newest_that_went_out() {
    let hub = hub(ChannelPolicy { last_value: true, ..policy(20) });
    for number in 1..=50 {
        publish(&hub, "volts", number);
    }
    eventually("nothing is held", || hub.stats().held_bytes == 0);
    let mut client = Client::connect(&hub).await;
    client.subscribe("meter").await;
    assert_eq!(number(&client.expect("message").await), 50);
}

#[test]
fn windows_have_limits_and_no_history_beside_them() {
    for (length, is_valid) in [(0, true), (1, true), (59_999, true), (60_000, true), (60_001, false), (u64::MAX, false)] {
        let config = Config { channels: vec![policy(length)], ..Config::default() };
        match config.validate() {
            Ok(()) => assert!(is_valid, "{length}"),
            Err(error) => assert!(!is_valid && error.to_string().contains("1–60000"), "{length}: {error}"),
        }
    }
    let both = ChannelPolicy { history: Some(HistoryPolicy::default()), ..policy(1) };
    let refused = Hub::start(config(|config| config.channels = vec![both])).map(drop);
    assert!(
        matches!(&refused, Err(StartError::Config(ConfigError::InvalidValue { key, reason })) if key == "channels[0]" && reason.contains("conflate_ms")),
        "{refused:?}"
    );
}

//! Clients that do not read, and those beside them that do.

use std::time::Instant;

use realtime_core::{Config, Payload, Publish, PublishError};
use realtime_testkit::{Client, DEADLINE, RawClient, eventually, raw, start};
use serde_json::json;

/// Little room, so that a client that does not read soon has none.
fn small(config: &mut Config) {
    config.limits.outbox_bytes = 64 << 10;
    config.limits.publication_bytes = 16 << 10;
}

#[tokio::test]
async fn a_subscriber_that_never_reads_is_closed_and_200_beside_it_do_not_notice() {
    let hub = start(small);
    let mut readers = Vec::new();
    for _ in 0..200 {
        readers.push(Client::open(&hub, "/ws/c?envelope=raw").await);
    }
    let (mut stuck, _) = RawClient::connect_narrow(&hub, "/ws");
    stuck.subscribe("c");
    eventually("all are subscribed", || hub.stats().subscriptions == 201);
    let body = "x".repeat(15 << 10);
    let mut published = 0;
    // In step: the next one is published when all that read have the last one.
    while hub.stats().closed_slow == 0 {
        published += 1;
        assert!(published < 2_000, "30 MiB wait for a client that reads nothing");
        hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{published} {body}")))).unwrap();
        for reader in &mut readers {
            let text = reader.text().await;
            assert_eq!(text.split_once(' ').unwrap().0, published.to_string());
        }
    }
    eventually("it is nobody's subscriber", || hub.stats().subscriptions == 200);
    let stats = hub.stats();
    assert_eq!((stats.closed, stats.closed_slow, stats.queue_full), (1, 1, 0));
    // What had been begun is finished, then it is told why.
    let mut seen = 0;
    let code = loop {
        let frame = stuck.next_frame();
        match frame.first {
            raw::CLOSE => break u16::from_be_bytes([frame.payload[0], frame.payload[1]]),
            _ => seen = frame.json()["offset"].as_u64().unwrap(),
        }
    };
    assert_eq!(code, 4100);
    assert!(seen < published, "it got everything, so it was not slow");
    stuck.finish();
    stuck.expect_end();
    eventually("its place is free", || hub.stats().connections == 200);
}

#[tokio::test]
async fn a_slow_channel_does_not_delay_another_one() {
    let hub = start(|config| {
        small(config);
        config.shards = 1;
        config.publish_timeout_ms = 0;
    });
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
        client.subscribe("slow");
        stuck.push(client);
    }
    let mut reader = Client::subscribed(&hub, "quick").await;
    let body = "x".repeat(15 << 10);
    let (mut number, begun) = (0, Instant::now());
    // Until the slow ones are gone, whatever their channel does to the hub.
    while hub.stats().closed_slow < 3 {
        assert!(begun.elapsed() < DEADLINE, "the slow ones are kept");
        for _ in 0..10 {
            match hub.publish(&Publish::new("slow", "e", Payload::Text(&body))) {
                Ok(_) | Err(PublishError::QueueFull { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        number += 1;
        let receipt = hub.publish(&Publish::new("quick", "e", Payload::Json(&number.to_string()))).unwrap();
        assert_eq!(receipt.matched, 1);
        assert_eq!(reader.expect("message").await["data"], number);
    }
    assert_eq!((hub.stats().closed, hub.stats().closed_slow), (3, 3));
}

#[test]
fn a_client_that_takes_nothing_for_too_long_is_closed_however_little_waits() {
    let hub = start(|config| {
        config.limits.outbox_age_ms = 300;
        config.heartbeat.ping_interval_ms = 1_000;
        config.limits.outbox_bytes = 64 << 20;
    });
    let (mut stuck, _) = RawClient::connect_narrow(&hub, "/ws");
    stuck.subscribe("c");
    let body = "x".repeat(200 << 10);
    // More than the kernel takes, less than the limit.
    for _ in 0..40 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&body))).unwrap();
    }
    eventually("it is closed", || hub.stats().closed_slow == 1);
}

#[test]
fn a_client_that_pauses_gets_all_of_it_afterwards() {
    let hub = start(|config| config.limits.outbox_bytes = 64 << 20);
    let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    let body = "x".repeat(50_000);
    for number in 1..=200 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{number} {body}")))).unwrap();
    }
    eventually("all is in its outbox", || hub.stats().ingress_bytes == 0);
    for number in 1..=200 {
        let message = client.next_message().json();
        assert_eq!(message["offset"], number);
        assert!(message["data"] == format!("{number} {body}"), "{number} is damaged");
    }
    client.send_text(&json!({"action": "ping"}).to_string());
    assert_eq!(client.next_message().json(), json!({"type": "pong"}));
    assert_eq!(hub.stats().closed, 0);
}

#[test]
fn a_burst_waits_for_a_subscriber_that_stands_still_for_a_moment() {
    let hub = start(|config| config.publish_timeout_ms = 60_000);
    let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    let body = "x".repeat(8_000);
    // Eight outboxes: it can only be kept by waiting for it.
    for number in 0..1_000 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{number} {body}")))).unwrap();
    }
    let begun = hub.stats().uptime_ms;
    eventually("it has stood still for a second and a half", || hub.stats().uptime_ms > begun + 1_500);
    for number in 0..1_000 {
        let message = client.next_message().json();
        assert!(message["data"] == format!("{number} {body}"), "{number} is damaged");
    }
    assert_eq!((hub.stats().closed, hub.stats().queue_full), (0, 0));
}

#[test]
fn a_client_that_asks_and_never_reads_the_answers_is_closed() {
    // As much as the limit is published, and what the kernel takes of it is left for the answers.
    let (limit, part) = (5 << 20, 100 << 10);
    let hub = start(|config| config.limits.outbox_bytes = limit);
    let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    for _ in 0..limit / part {
        hub.publish(&Publish::new("c", "e", Payload::Text(&"x".repeat(part - 100)))).unwrap();
    }
    eventually("all is written or waits", || hub.stats().ingress_bytes == 0);
    // Answers to the transport's pings do not pile up: those that find others waiting are left out.
    client.write(&raw::frame(raw::PING, &[1; 125]).repeat(50_000));
    let received = hub.stats().received;
    client.send_text(r#"{"action":"ping"}"#);
    eventually("all pings are read", || hub.stats().received == received + 1);
    assert_eq!(hub.stats().closed_slow, 0);
    // Asking again for what it has gives the longest answers.
    let request = json!({"action": "subscribe", "channel": "c".repeat(200), "id": "i".repeat(120)});
    let requests = raw::frame(raw::TEXT, request.to_string().as_bytes()).repeat(100);
    eventually("it is closed", || {
        drop(client.try_write(&requests));
        hub.stats().closed_slow == 1
    });
}

//! How a hub starts and how it ends.

use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use realtime_core::{Hub, Payload, Publish, PublishError, QueryError, StartError};
use realtime_testkit::raw::{self, RawClient};
use realtime_testkit::{Client, DEADLINE, Received, config, eventually, spare_port, start};

#[tokio::test]
async fn a_stop_closes_with_1001_and_ends_everything() {
    // Where nobody else listens afterwards.
    let hub = start(|config| config.listen = format!("127.0.0.1:{}", spare_port()));
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(Client::subscribed(&hub, "c").await);
    }
    let address = hub.local_addr();
    assert!(hub.is_running());
    let stopping = hub.clone();
    let stop = thread::spawn(move || stopping.stop(DEADLINE));
    for client in &mut clients {
        assert_eq!(client.closed().await.0, 1001);
        assert_eq!(client.next().await, Received::Lost);
    }
    assert!(stop.join().unwrap().complete);
    assert!(!hub.is_running());
    assert!(TcpStream::connect(address).is_err());

    // What is asked of it now has an answer.
    let publish = Publish::new("c", "e", Payload::Text("x"));
    assert!(matches!(hub.publish(&publish), Err(PublishError::Stopped)));
    assert!(matches!(hub.publish_to_user("ada", "e", Payload::Text("x"), &[]), Err(PublishError::Stopped)));
    assert!(matches!(hub.channel_users("c"), Err(QueryError::Stopped)));
    assert!(matches!(hub.disconnect_user("ada", 1000, ""), Err(QueryError::Stopped)));
    assert!(matches!(hub.set_user(clients[0].socket_id(), None), Err(QueryError::Stopped)));
    assert!(matches!(hub.move_connection(clients[0].socket_id(), 1), Err(QueryError::Stopped)));
    assert!(hub.channels().is_empty());
    assert_eq!((hub.stats().closed, hub.stats().connections, hub.stats().subscriptions), (20, 0, 0));
    assert!(hub.stop(DEADLINE).complete);
}

#[test]
fn what_was_accepted_before_a_stop_is_delivered_before_the_close() {
    let hub = start(|config| config.shards = 3);
    let readers: Vec<_> = (0..30)
        .map(|_| {
            let (mut client, _) = RawClient::connect(&hub, "/ws");
            client.subscribe("c");
            thread::spawn(move || {
                let mut last = 0;
                loop {
                    let frame = client.next_message();
                    if frame.first == raw::CLOSE {
                        return (last, u16::from_be_bytes([frame.payload[0], frame.payload[1]]));
                    }
                    let offset = frame.json()["offset"].as_u64().unwrap();
                    assert_eq!(offset, last + 1);
                    last = offset;
                }
            })
        })
        .collect();
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let hub = hub.clone();
            thread::spawn(move || {
                let body = "x".repeat(500);
                let mut accepted = 0;
                loop {
                    match hub.publish(&Publish::new("c", "e", Payload::Text(&body))) {
                        Ok(receipt) => accepted = receipt.position.offset,
                        Err(PublishError::Stopped) => return accepted,
                        Err(error) => panic!("{error}"),
                    }
                }
            })
        })
        .collect();
    eventually("traffic flows", || hub.stats().published > 500);
    assert!(hub.stop(DEADLINE).complete);
    let accepted = publishers.into_iter().map(|publisher| publisher.join().unwrap()).max().unwrap();
    assert!(accepted > 500);
    for reader in readers {
        assert_eq!(reader.join().unwrap(), (accepted, 1001));
    }
}

#[test]
fn a_client_that_reads_slowly_has_the_whole_drain_to_take_what_waits() {
    let hub = start(|config| config.limits.outbox_bytes = 64 << 20);
    let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    let body = "x".repeat(100_000);
    for _ in 0..100 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&body))).unwrap();
    }
    let stopping = hub.clone();
    let begun = Instant::now();
    let stop = thread::spawn(move || stopping.stop(DEADLINE));
    eventually("the hub stops", || !hub.is_running());
    let mut offsets = 0;
    let code = loop {
        // A slow line: longer than a client has to answer a close frame, shorter than the drain.
        if begun.elapsed() < Duration::from_millis(1_500) {
            thread::sleep(Duration::from_millis(100));
        }
        let frame = client.next_message();
        if frame.first == raw::CLOSE {
            break u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
        }
        offsets += 1;
        assert_eq!(frame.json()["offset"], offsets);
    };
    assert_eq!((offsets, code), (100, 1001));
    client.finish();
    assert!(stop.join().unwrap().complete);
}

#[test]
fn a_client_that_takes_nothing_does_not_keep_a_stop_beyond_its_timeout() {
    let hub = start(|config| config.limits.outbox_bytes = 64 << 20);
    let (mut client, _) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    for _ in 0..100 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&"x".repeat(100_000)))).unwrap();
    }
    assert!(hub.stop(Duration::from_millis(100)).complete);
    client.expect_end();
    assert_eq!(hub.stats().connections, 0);
}

#[test]
fn a_port_in_use_is_an_error_of_the_start() {
    let first = start(|config| config.listen = format!("127.0.0.1:{}", spare_port()));
    let error = Hub::start(config(|config| config.listen = first.local_addr().to_string())).err().unwrap();
    assert!(matches!(error, StartError::Bind { address, .. } if address == first.local_addr()), "{error}");
    assert!(error.to_string().contains(&first.local_addr().to_string()));
    assert_eq!(first.publish(&Publish::new("c", "e", Payload::Text(""))).unwrap().position.offset, 1);
    // A port that has been left is free at once.
    let address = first.local_addr();
    let (mut client, _) = RawClient::connect(&first, "/ws");
    let stop = thread::spawn(move || first.stop(DEADLINE));
    assert_eq!(client.closed(), 1001);
    client.finish();
    assert!(stop.join().unwrap().complete);
    let second = Hub::start(config(|config| config.listen = address.to_string())).unwrap();
    assert_eq!(second.local_addr(), address);
}

#[test]
fn a_configuration_that_cannot_be_meant_is_an_error_of_the_start() {
    for (what, config) in [
        ("an open address without auth.mode", config(|config| config.listen = "0.0.0.0:0".into())),
        ("no address", config(|config| config.listen = "nonsense".into())),
        ("too many shards", config(|config| config.shards = 65)),
        ("no connections", config(|config| config.limits.max_connections = 0)),
    ] {
        assert!(matches!(Hub::start(config), Err(StartError::Config(_))), "{what}");
    }
}

#[test]
fn the_last_handle_ends_the_hub() {
    let hub = start(|config| config.listen = format!("127.0.0.1:{}", spare_port()));
    let (address, other) = (hub.local_addr(), hub.clone());
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    drop(hub);
    client.subscribe("still here");
    assert_eq!(other.stats().connections, 1);
    drop(other);
    client.expect_end();
    eventually("the port is free", || Hub::start(config(|config| config.listen = address.to_string())).is_ok());
}

#[test]
fn a_publisher_that_waits_for_room_is_told_of_the_stop() {
    let hub = start(|config| {
        config.publish_timeout_ms = 60_000;
        config.limits.publication_bytes = 16 << 10;
        config.limits.ingress_bytes = 1 << 20;
        config.limits.outbox_bytes = 4 << 20;
    });
    let (mut stuck, _) = RawClient::connect_narrow(&hub, "/ws");
    stuck.subscribe("c");
    let (sender, receiver) = mpsc::channel();
    let publisher = hub.clone();
    thread::spawn(move || {
        let body = "x".repeat(16 << 10);
        let outcome = loop {
            if let Err(error) = publisher.publish(&Publish::new("c", "e", Payload::Text(&body))) {
                break error;
            }
        };
        sender.send(outcome).unwrap();
    });
    eventually("the ingress queue is full", || hub.stats().ingress_bytes >= (1 << 20) / 4);
    hub.stop(Duration::from_millis(100));
    assert!(matches!(receiver.recv_timeout(DEADLINE), Ok(PublishError::Stopped)));
}

#[test]
fn a_client_that_ends_behind_its_last_word_is_gone_at_once() {
    let hub = start(|_| {});
    for _ in 0..20 {
        let (mut client, _) = RawClient::connect(&hub, "/ws");
        client.subscribe("c");
        client.write_and_finish(&raw::frame(raw::TEXT, br#"{"action":"ping"}"#));
        // Well before a ping could find out.
        eventually("it is gone", || hub.stats().connections == 0);
    }
}

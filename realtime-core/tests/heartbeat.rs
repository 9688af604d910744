//! Connections that are silent, or half open.

use std::time::Instant;

use realtime_core::{Payload, Publish};
use realtime_testkit::raw::{self, PING, PONG, RawClient};
use realtime_testkit::{Client, DEADLINE, eventually, start};

#[test]
fn a_half_open_connection_is_pinged_and_then_closed() {
    let hub = start(|config| {
        config.heartbeat.ping_interval_ms = 60;
        config.heartbeat.pong_timeout_ms = 60;
    });
    let (mut silent, greeting) = RawClient::connect(&hub, "/ws");
    assert_eq!(greeting["ping_interval_ms"], 60);
    assert_eq!(silent.next_frame(), raw::Frame { first: PING, payload: Vec::new() });
    assert_eq!(silent.closed(), 4201);
    assert_eq!((hub.stats().closed, hub.stats().closed_pong_timeout), (1, 1));
    // It does not answer the close frame either.
    eventually("its place is free", || hub.stats().connections == 0);
    silent.expect_end();
}

#[test]
fn a_connection_that_answers_stays() {
    let hub = start(|config| {
        config.heartbeat.ping_interval_ms = 50;
        config.heartbeat.pong_timeout_ms = 60_000;
    });
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    for round in 0..6 {
        assert_eq!(client.next_frame().first, PING);
        match round % 2 {
            0 => client.write(&raw::frame(PONG, b"")),
            // Anything that is heard will do.
            _ => client.write(&raw::frame(PONG, b"unasked")[..3]),
        }
        if round % 2 == 1 {
            client.write(&raw::frame(PONG, b"unasked")[3..]);
        }
    }
    client.subscribe("still here");
    assert_eq!(hub.stats().closed, 0);
}

#[tokio::test]
async fn a_library_answers_by_itself_while_messages_flow() {
    let hub = start(|config| {
        config.heartbeat.ping_interval_ms = 50;
        config.heartbeat.pong_timeout_ms = 4_000;
    });
    let mut client = Client::subscribed(&hub, "c").await;
    let (mut silent, _) = RawClient::connect(&hub, "/ws");
    let (mut number, begun) = (0, Instant::now());
    // The time that it takes to find a connection dead is many ping intervals of the other.
    while hub.stats().closed_pong_timeout == 0 {
        number += 1;
        assert!(begun.elapsed() < DEADLINE, "a silent connection is kept");
        hub.publish(&Publish::new("c", "e", Payload::Json(&number.to_string()))).unwrap();
        assert_eq!(client.expect("message").await["data"], number);
    }
    assert_eq!(silent.closed(), 4201);
    client.expect_nothing().await;
    assert_eq!(hub.stats().closed, 1);
}

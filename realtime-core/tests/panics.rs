//! A defect in one connection's handling costs that connection, one in a shard's own work that shard: never the hub.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use realtime_core::hub::HubBuilder;
use realtime_core::message::Publication;
use realtime_core::protocol::{Command, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push, Refusal};
use realtime_core::transport::websocket::WebSocket;
use realtime_core::{Hub, Payload, Publish};
use realtime_testkit::{Client, Pipes, Received, config, eventually, on_time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A protocol with a defect in each of its parts.
struct Fragile;

impl Protocol for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }

    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>> {
        assert_ne!(request.path, "/fragile/open", "on purpose");
        request.path.starts_with("/fragile").then(|| Ok(Opening::default()))
    }

    fn encode(&self, _: &Publication, _: u16, _: &mut Vec<u8>) -> MessageKind {
        panic!("on purpose")
    }

    fn push(&self, state: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind> {
        assert!(!matches!(push, Push::Error(_)), "on purpose");
        Pipes::default().push(state, push, out)
    }

    fn decode(&self, state: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError> {
        assert!(!matches!(message, Inbound::Text("die")), "on purpose");
        Pipes::default().decode(state, message, commands)
    }
}

async fn hub_and_crowd() -> (Hub, Vec<Client>) {
    let hub = HubBuilder::new(config(|_| {})).protocol(Fragile, WebSocket).start().unwrap();
    let mut crowd = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(&hub).await;
        client.subscribe("news").await;
        crowd.push(client);
    }
    (hub, crowd)
}

fn publish(hub: &Hub, channel: &str, text: &str) {
    hub.publish(&Publish::new(channel, "e", Payload::Text(text))).unwrap();
}

async fn fragile(hub: &Hub) -> Client {
    let mut client = Client::open(hub, "/fragile").await;
    assert!(client.text().await.starts_with("hi|"));
    client
}

/// What a client hears whose path the protocol cannot open.
async fn refused(hub: &Hub) -> String {
    let mut stream = TcpStream::connect(hub.local_addr()).await.unwrap();
    let head = "GET /fragile/open HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(format!("{head}{key}").as_bytes()).await.unwrap();
    let mut heard = String::new();
    on_time("the end of the connection", stream.read_to_string(&mut heard)).await.unwrap();
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_connections_handler_costs_that_connection_and_nobody_misses_anything() {
    let (hub, mut crowd) = hub_and_crowd().await;
    for round in 0..5 {
        for (said, panics) in [("die", 2 * round + 1), ("no such verb", 2 * round + 2)] {
            publish(&hub, "news", &format!("before {panics}"));
            let mut broken = fragile(&hub).await;
            broken.send_text(said).await;
            assert!(matches!(broken.next().await, Received::Closed { code: 1011, .. }), "{said}");
            eventually("the panic is counted", || hub.stats().panics == panics);
            // While a connection is opened, nobody else's is touched either.
            assert_eq!(refused(&hub).await, "");
        }
    }
    for client in &mut crowd {
        for offset in 1..=10 {
            let message = client.expect("message").await;
            assert_eq!((&message["offset"], &message["data"]), (&offset.into(), &format!("before {offset}").into()));
        }
    }
    eventually("only the others are there", || hub.stats().connections == 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_fails_takes_its_connections_and_the_others_go_on() {
    let (hub, mut crowd) = hub_and_crowd().await;
    let mut broken = fragile(&hub).await;
    broken.send_text("sub|broken").await;
    assert!(broken.text().await.starts_with("on|broken|"));
    publish(&hub, "broken", "x");
    eventually("a shard has failed", || hub.stats().panics == 1);
    assert!(matches!(broken.next().await, Received::Closed { .. } | Received::Lost));
    eventually("half of them are left", || hub.stats().connections == 10);
    // Newcomers go to a shard that works.
    for _ in 0..4 {
        let mut client = Client::connect(&hub).await;
        client.subscribe("news").await;
        crowd.push(client);
    }
    publish(&hub, "news", "after");
    let mut heard = 0;
    for client in &mut crowd {
        if let Received::Text(text) = client.next().await {
            assert!(text.contains("after"), "{text}");
            heard += 1;
        }
    }
    assert_eq!(heard, 14);
}

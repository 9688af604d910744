//! A defect in one connection's handling costs that connection, one in a shard's own work that shard: never the hub.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use realtime_core::broker::memory::Memory;
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::config::AppConfig;
use realtime_core::error::BrokerError;
use realtime_core::history::{Page, Range};
use realtime_core::hooks::Kind;
use realtime_core::hub::HubBuilder;
use realtime_core::message::{Position, Publication};
use realtime_core::protocol::{Command, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push, Refusal};
use realtime_core::transport::websocket::WebSocket;
use realtime_core::{Hub, Payload, Publish, User};
use realtime_testkit::pusher::{ApiRequest, KEY, app, path};
use realtime_testkit::{Client, DEADLINE, Pipes, Received, config, eventually, on_time};
use serde_json::Value;
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

/// A memory broker that knows which channels it is asked for.
struct Asked {
    memory: Memory,
    channels: Mutex<BTreeSet<String>>,
}

impl Broker for Asked {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        self.memory.start(deliver)
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        self.memory.publish(publish)
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        self.channels.lock().unwrap().insert(channel.into());
        self.memory.subscribe(channel)
    }

    fn unsubscribe(&self, channel: &str) {
        self.channels.lock().unwrap().remove(channel);
        self.memory.unsubscribe(channel);
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        self.memory.read(channel, range)
    }
}

/// What workers hear next of channels and of ends of connections, sorted.
fn events(hub: &Hub, count: usize) -> Vec<String> {
    let next = || {
        let leased: Value = serde_json::from_str(&hub.next_event(None, DEADLINE).unwrap().unwrap()).unwrap();
        hub.event_done(leased["number"].as_u64().unwrap());
        let event = &leased["event"];
        format!("{} {}", event["kind"].as_str().unwrap(), event["channel"].as_str().or(event["reason"].as_str()).unwrap())
    };
    let mut events: Vec<String> = (0..count).map(|_| next()).collect();
    events.sort();
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_after_a_shard_has_failed_is_what_the_others_have() {
    // Case R52.
    let broker = Arc::new(Asked { memory: Memory::new(1_000, 1_000, 1 << 20).unwrap(), channels: Mutex::default() });
    let config = config(|config| {
        config.apps = vec![AppConfig { max_connections: 7, ..app() }];
        config.hooks.events = vec![Kind::Disconnect, Kind::Occupied, Kind::Vacated];
    });
    let hub = HubBuilder::new(config).protocol(Fragile, WebSocket).broker(broker.clone()).start().unwrap();
    let connections = || ApiRequest::get("connections", &[]).send(&hub).body;
    let refused = async || {
        let mut client = Client::open(&hub, &path(KEY)).await;
        assert_eq!(client.closed().await.0, 4004);
    };
    // They go to one shard and the other in turn.
    let mut crowd = Vec::new();
    for channel in ["left", "stays", "left", "stays", "left", "stays"] {
        let mut client = Client::connect(&hub).await;
        client.subscribe("both").await;
        client.subscribe(channel).await;
        crowd.push(client);
    }
    let mut broken = fragile(&hub).await;
    broken.send_text("sub|broken").await;
    assert!(broken.text().await.starts_with("on|broken|"));
    assert_eq!(events(&hub, 4), ["occupied both", "occupied broken", "occupied left", "occupied stays"]);
    refused().await;
    eventually("seven are there", || hub.stats().connections == 7);
    publish(&hub, "broken", "x");
    eventually("a shard has failed", || hub.stats().connections == 3);
    assert_eq!(
        events(&hub, 6),
        ["disconnect internal", "disconnect internal", "disconnect internal", "disconnect internal", "vacated broken", "vacated left"]
    );
    let stats = hub.stats();
    assert_eq!((stats.panics, stats.subscriptions, stats.channels, stats.ingress_bytes), (1, 6, 2, 0));
    let heard: Vec<(String, usize)> = hub.channels().into_iter().map(|channel| (channel.name, channel.subscribers)).collect();
    assert_eq!(heard, [("both".to_owned(), 3), ("stays".to_owned(), 3)]);
    assert_eq!(*broker.channels.lock().unwrap(), BTreeSet::from(["both".to_owned(), "stays".to_owned()]));
    assert_eq!(connections(), "{\"connections\":3}");
    for (channel, matched) in [("left", 0), ("broken", 0), ("both", 3), ("stays", 3)] {
        assert_eq!(hub.publish(&Publish::new(channel, "e", Payload::Text("x"))).unwrap().matched, matched, "{channel}");
    }
    // What is asked of all shards is asked of those that are left.
    assert!(hub.set_user(crowd[1].socket_id(), Some(User::new("ada", None).unwrap())).unwrap());
    assert_eq!(hub.channel_users("stays").unwrap().len(), 1);
    // Whoever comes back gets in: four, and then the app has as many as it may have.
    let mut back = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(&hub).await;
        client.subscribe("left").await;
        back.push(client);
    }
    assert_eq!((events(&hub, 1), connections()), (vec!["occupied left".to_owned()], "{\"connections\":7}".to_owned()));
    refused().await;
    for client in back {
        client.close().await;
    }
    assert_eq!(events(&hub, 5).last(), Some(&"vacated left".to_owned()));
    eventually("they are gone", || hub.stats().connections == 3 && connections() == "{\"connections\":3}");
}

//! A connection moves from shard to shard and its client does not notice: frozen at random moments under traffic, with
//! half a frame read and much left to write.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config as CaseConfig, TestRunner};
use realtime_core::hub::HubBuilder;
use realtime_core::transport::websocket::WebSocket;
use realtime_core::{Hub, Payload, Publish, PublishError, QueryError, SocketId, User};
use realtime_testkit::hub::client_events;
use realtime_testkit::raw::{self, RawClient, TEXT, frame};
use realtime_testkit::{Client, DEADLINE, Pipes, config, eventually, start};
use serde_json::{Value, json};

const CHANNELS: [&str; 3] = ["a", "b", "c"];

fn socket(greeting: &Value) -> SocketId {
    greeting["socket_id"].as_str().unwrap().parse().unwrap()
}

/// Ends somebody else's loop, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Moves a connection. It may stay where it is, because it joins a channel just now or the machine is busy.
fn travel(hub: &Hub, socket: SocketId, to: usize) {
    match hub.move_connection(socket, to) {
        Ok(_) | Err(QueryError::Timeout { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// What happens to the connection next.
#[derive(Debug, Clone)]
enum Step {
    /// It moves.
    Move(usize),
    /// Its client sends so many bytes more of its own messages.
    Send(usize),
    /// Its client reads so many messages more.
    Read(usize),
    /// So many publications, of so many bytes each, to one of its channels.
    Publish(usize, usize, usize),
    /// It leaves a channel and comes back.
    Rejoin(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..4).prop_map(Step::Move),
        3 => (1usize..90).prop_map(Step::Send),
        2 => (0usize..30).prop_map(Step::Read),
        3 => (0usize..3, 1usize..30, prop_oneof![Just(10), Just(20_000), Just(60_000)]).prop_map(|(c, n, size)| Step::Publish(c, n, size)),
        1 => (0usize..3).prop_map(Step::Rejoin),
    ]
}

/// Checks what a client reads: every channel's offsets follow on each other, and no message is damaged.
#[derive(Default)]
struct Ledger {
    /// The offset that each channel has reached, while subscribed.
    reached: [Option<u64>; 3],
    ends: usize,
    rejoined: usize,
}

impl Ledger {
    fn take(&mut self, message: &Value) {
        let Some(channel) = CHANNELS.iter().position(|name| message["channel"] == **name) else { panic!("{message}") };
        match message["type"].as_str().unwrap() {
            "subscribed" => {
                assert_eq!(self.reached[channel], None, "subscribed twice");
                self.reached[channel] = message["offset"].as_u64();
                self.rejoined += 1;
            }
            "unsubscribed" => self.reached[channel] = None,
            "message" => {
                let before = self.reached[channel].unwrap_or_else(|| panic!("a message of a channel that was left"));
                assert_eq!(message["offset"], before + 1, "channel {channel}");
                self.reached[channel] = Some(before + 1);
                let data = message["data"].as_str().unwrap();
                self.ends += usize::from(data == "end");
                // The body repeats its own length, so that a cut shows.
                let size = data.split_once(' ').map_or(data.len(), |(size, _)| size.parse().unwrap());
                assert_eq!(data.len(), size);
            }
            other => panic!("{other}"),
        }
    }
}

fn body(size: usize) -> String {
    format!("{:<size$}", format!("{size} "))
}

/// One client's life, as the steps have it; then all must be there.
fn live(hub: &Hub, steps: &[Step]) {
    let (mut client, greeting) = RawClient::connect_narrow(hub, "/ws");
    let socket = socket(&greeting);
    assert!(hub.set_user(socket, Some(User::new("ada", None).unwrap())).unwrap());
    let mut ledger = Ledger::default();
    for channel in CHANNELS {
        ledger.take(&client.subscribe(channel));
    }
    // Hears what the client says, and says what the client must not hear twice.
    let (mut witness, _) = RawClient::connect(hub, "/ws");
    witness.subscribe("said");
    client.send_text(&json!({"action": "subscribe", "channel": "said"}).to_string());
    assert_eq!(client.next_message().json()["channel"], "said");

    let mut said = 0;
    let mut outgoing: Vec<u8> = Vec::new();
    let mut rejoins = CHANNELS.len();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Somebody else's traffic, at every moment.
        let traffic = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for channel in CHANNELS {
                    hub.publish(&Publish::new(channel, "e", Payload::Text(&body(100)))).unwrap();
                }
                thread::sleep(Duration::from_micros(300));
            }
        });
        let ends = Ends(&stop);
        for step in steps {
            match step {
                Step::Move(to) => travel(hub, socket, *to),
                Step::Send(bytes) => {
                    while outgoing.len() < *bytes {
                        said += 1;
                        let text = json!({"action": "publish", "channel": "said", "event": "e", "data": said}).to_string();
                        // Whole, or in two fragments.
                        match said % 2 {
                            0 => outgoing.extend(frame(TEXT, text.as_bytes())),
                            _ => {
                                outgoing.extend(frame(raw::TEXT_START, &text.as_bytes()[..20]));
                                outgoing.extend(frame(raw::LAST, &text.as_bytes()[20..]));
                            }
                        }
                    }
                    client.write(&outgoing.drain(..*bytes).collect::<Vec<_>>());
                }
                Step::Read(messages) => {
                    for _ in 0..*messages {
                        ledger.take(&client.next_message().json());
                    }
                }
                Step::Publish(channel, count, size) => {
                    for _ in 0..*count {
                        hub.publish(&Publish::new(CHANNELS[*channel], "e", Payload::Text(&body(*size)))).unwrap();
                    }
                }
                Step::Rejoin(channel) => {
                    // Not into the middle of a message that is still being sent.
                    client.write(&std::mem::take(&mut outgoing));
                    for action in ["unsubscribe", "subscribe"] {
                        client.send_text(&json!({"action": action, "channel": CHANNELS[*channel]}).to_string());
                    }
                    rejoins += 1;
                }
            }
        }
        client.write(&outgoing);
        drop(ends);
        traffic.join().unwrap();
    });
    for expected in 1..=said {
        let message = witness.next_message().json();
        assert_eq!((&message["data"], &message["user_id"]), (&json!(expected), &json!("ada")));
    }
    // A channel that it is coming back to is there before it is told the end.
    while ledger.rejoined < rejoins {
        ledger.take(&client.next_message().json());
    }
    for channel in CHANNELS {
        assert_eq!(hub.publish(&Publish::new(channel, "e", Payload::Text("end"))).unwrap().matched, 1);
    }
    while ledger.ends < CHANNELS.len() {
        ledger.take(&client.next_message().json());
    }
    // Its user moved with it.
    assert_eq!(hub.publish_to_user("ada", "e", Payload::Text("x"), &[]).unwrap().matched, 1);
    assert_eq!(client.next_message().json(), json!({"type": "message", "event": "e", "data": "x"}));
    assert_eq!(hub.disconnect_user("ada", 4009, "").unwrap(), 1);
    assert_eq!(client.closed(), 4009);
    client.finish();
    client.expect_end();
    drop(witness);
    eventually("nothing is left of it", || {
        let stats = hub.stats();
        (stats.connections, stats.subscriptions, stats.channels, stats.ingress_bytes) == (0, 0, 0, 0)
    });
    assert_eq!((hub.stats().panics, hub.stats().closed_slow), (0, 0));
}

#[test]
fn a_connection_that_moves_at_random_misses_nothing_and_repeats_nothing() {
    let hub = start(|config| {
        config.shards = 4;
        config.limits.outbox_bytes = 256 << 20;
        config.channels = vec![client_events("said")];
    });
    let cases = CaseConfig { cases: 24, failure_persistence: None, max_shrink_iters: 4, ..CaseConfig::default() };
    let steps = proptest::collection::vec(step(), 5..40);
    let mut runner = TestRunner::new(cases);
    let outcome = runner.run(&steps, |steps| {
        live(&hub, &steps);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn a_connection_moves_with_much_to_write_and_half_a_frame_read() {
    let hub = start(|config| {
        config.shards = 3;
        config.limits.outbox_bytes = 64 << 20;
    });
    let (mut client, greeting) = RawClient::connect_narrow(&hub, "/ws");
    client.subscribe("c");
    // Far more than the kernel takes for a client that does not read.
    for number in 1..=120 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{number} {}", body(60_000))))).unwrap();
    }
    eventually("all is in its outbox", || hub.stats().ingress_bytes == 0);
    let ping = frame(TEXT, br#"{"action":"ping","id":1}"#);
    for (shard, byte) in ping.iter().enumerate() {
        client.write(&[*byte]);
        if shard % 5 == 0 {
            travel(&hub, socket(&greeting), shard);
        }
    }
    hub.publish(&Publish::new("c", "e", Payload::Text("after"))).unwrap();
    for number in 1..=120 {
        let message = client.next_message().json();
        assert_eq!(message["offset"], number);
        assert!(message["data"] == format!("{number} {}", body(60_000)), "{number} is damaged");
        if number % 40 == 0 {
            travel(&hub, socket(&greeting), number / 40);
        }
    }
    let mut rest = [client.next_message().json(), client.next_message().json()];
    rest.sort_by_key(|message| message["type"] == "pong");
    assert_eq!((&rest[0]["data"], &rest[1]), (&json!("after"), &json!({"type": "pong", "id": 1})));
}

#[test]
fn a_connection_that_subscribes_while_it_moves_is_lost_to_neither() {
    let hub = start(|config| config.shards = 3);
    let (mut client, greeting) = RawClient::connect(&hub, "/ws");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut shard = 0;
            while !done.load(Ordering::Relaxed) {
                shard += 1;
                travel(&hub, socket(&greeting), shard);
            }
        });
        let _ends = Ends(&done);
        for number in 0..400 {
            let channel = format!("channel {number}");
            assert_eq!(client.subscribe(&channel)["channel"], channel);
            hub.publish(&Publish::new(&channel, "e", Payload::Json(&number.to_string()))).unwrap();
            assert_eq!(client.next_message().json()["data"], number);
            if number % 3 != 0 {
                client.send_text(&json!({"action": "unsubscribe", "channel": channel}).to_string());
                assert_eq!(client.next_message().json()["type"], "unsubscribed");
            }
        }
    });
    // A shard that it has left may have something to forget yet.
    eventually("only what it has not left is there", || (hub.stats().subscriptions, hub.stats().channels) == (134, 134));
}

#[tokio::test]
async fn a_second_protocols_state_travels() {
    let config = config(|config| config.channels = vec![client_events("c")]);
    let hub = HubBuilder::new(config).protocol(Pipes::default(), WebSocket).start().unwrap();
    let mut native = Client::subscribed(&hub, "c").await;
    let mut loud = Client::open(&hub, "/pipes/loud").await;
    let id = loud.text().await.strip_prefix("hi|").unwrap().parse().unwrap();
    loud.send_text("nick|ada").await;
    loud.send_text("sub|c").await;
    assert_eq!(loud.text().await, "on|c|0");
    for shard in [0, 1, 0] {
        assert!(hub.move_connection(id, shard).unwrap());
        loud.send_text("say|c|1").await;
        assert_eq!(native.expect("message").await["event"], "client-ada");
        // Not echoed, and still loud.
        hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
        assert!(loud.text().await.ends_with("|e|X"));
        native.expect("message").await;
    }
}

#[tokio::test]
async fn an_exception_holds_for_a_connection_that_is_on_its_way() {
    let hub = start(|config| config.shards = 4);
    let mut client = Client::subscribed(&hub, "c").await;
    let id = client.socket_id();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let except = [id];
            for number in 1..=5_000 {
                let text = number.to_string();
                let mut publish = Publish::new("c", "e", Payload::Json(&text));
                if number % 2 == 0 {
                    publish.except = &except;
                }
                hub.publish(&publish).unwrap();
            }
        });
        let mut shard = 0;
        while !publisher.is_finished() || shard < 20 {
            shard += 1;
            travel(&hub, id, shard);
        }
    });
    for number in (1..=5_000).step_by(2) {
        assert_eq!(client.expect("message").await["data"], number);
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_move_of_what_is_not_there_says_so() {
    let hub = start(|_| {});
    assert!(!hub.move_connection("1.2".parse().unwrap(), 0).unwrap());
    let (mut client, greeting) = RawClient::connect(&hub, "/ws");
    client.write(&frame(raw::CLOSE, &1000u16.to_be_bytes()));
    assert_eq!(client.closed(), 1000);
    // Closing, or closed by now.
    for shard in 0..2 {
        hub.move_connection(socket(&greeting), shard).unwrap();
    }
    client.finish();
    client.expect_end();
    eventually("it is gone", || hub.stats().connections == 0);
    assert!(!hub.move_connection(socket(&greeting), 1).unwrap());
}

#[test]
fn a_stop_finds_connections_that_move() {
    let hub = start(|config| config.shards = 4);
    let clients: Vec<_> = (0..20).map(|_| RawClient::connect(&hub, "/ws")).collect();
    let ids: Vec<_> = clients.iter().map(|(_, greeting)| socket(greeting)).collect();
    let mover = hub.clone();
    let moving = thread::spawn(move || {
        let begun = Instant::now();
        for shard in 0.. {
            for id in &ids {
                if mover.move_connection(*id, shard).is_err() {
                    return;
                }
            }
            assert!(begun.elapsed() < DEADLINE);
        }
    });
    eventually("traffic flows", || !matches!(hub.publish(&Publish::new("c", "e", Payload::Text("x"))), Err(PublishError::Stopped)));
    let stopping = hub.clone();
    let stop = thread::spawn(move || stopping.stop(DEADLINE));
    for (mut client, _) in clients {
        // One that was between two shards has no chance to be told why.
        client.expect_end();
    }
    assert!(stop.join().unwrap().complete);
    moving.join().unwrap();
}

//! What the application hears of connections and channels, and what it decides.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::time::Duration;

use realtime_core::bus::client::Client as Bus;
use realtime_core::bus::frame::{BusAct, BusQuery};
use realtime_core::config::ChannelPolicy;
use realtime_core::hooks::Kind;
use realtime_core::{Config, ConfigError, Hub, QueryError, StartError, User};
use realtime_testkit::hub::client_events;
use realtime_testkit::{Client, DEADLINE, Message, Received, config, eventually, start};
use serde_json::{Value, json};

const ALL: [Kind; 5] = [Kind::Connect, Kind::Subscribe, Kind::Message, Kind::Unsubscribe, Kind::Disconnect];

/// A connection to the hub's bus; its usual deadlines are for hosts that have better things to do than to wait.
fn bus(hub: &Hub) -> Bus {
    let mut bus = Bus::over(hub.open_bus().unwrap()).unwrap();
    bus.answer_within(DEADLINE);
    bus
}

/// A program that handles connections.
struct Program(Bus);

impl Program {
    fn new(hub: &Hub, hears: &[Kind], decides: &[Kind]) -> Program {
        let mut bus = bus(hub);
        bus.handle(hears.to_vec(), decides.to_vec()).unwrap();
        Program(bus)
    }

    fn next(&mut self, kind: &str) -> Value {
        let line = self.0.next_event(DEADLINE).unwrap().unwrap_or_else(|| panic!("no `{kind}` came"));
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["kind"], kind, "{event}");
        event
    }

    fn none(&mut self) {
        assert_eq!(self.0.next_event(Duration::ZERO).unwrap(), None);
    }

    fn decide(&mut self, event: &Value, refuse: Option<&str>) {
        let ticket = event["ticket"].as_str().unwrap().to_owned();
        self.0.tell(&BusQuery::Decide { ticket, refuse: refuse.map(str::to_owned) }).unwrap();
    }

    fn ask(&mut self, event: &Value, act: BusAct) -> Value {
        self.0.query(&Program::act(event, act)).unwrap()
    }

    fn act(event: &Value, act: BusAct) -> BusQuery {
        let shard = event["shard"].as_u64().map(|shard| shard as usize);
        BusQuery::Act { connection: event["connection"].as_str().unwrap().to_owned(), shard, act }
    }
}

fn text(text: &str) -> BusAct {
    BusAct::SendText { event: "e".into(), text: text.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_hears_of_its_connections_in_order() {
    let hub = start(|_| {});
    let mut program = Program::new(&hub, &ALL, &[]);
    let mut client = Client::connect_to(&hub, "/ws?room=a%20b").await;
    let connect = program.next("connect");
    assert_eq!((&connect["path"], &connect["query"]), (&json!("/ws"), &json!("room=a%20b")));
    assert_eq!(connect["connection"], client.socket_id().to_string());
    assert_eq!(connect.get("ticket"), None, "it only hears");
    client.subscribe("news").await;
    hub.set_user(client.socket_id(), Some(User::new("ada", Some(r#"{"z":1,"a":2}"#)).unwrap())).unwrap();
    client.send_json(json!({"action": "message", "event": "hello", "data": {"b": 1, "a": [2]}, "id": "m1"})).await;
    let message = program.next("message");
    assert_eq!((&message["event"], &message["data"], &message["id"]), (&json!("hello"), &json!({"b": 1, "a": [2]}), &json!("m1")));
    assert_eq!((&message["user_id"], &message["user_info"]), (&json!("ada"), &json!({"z": 1, "a": 2})));
    client.ask(json!({"action": "unsubscribe", "channel": "news"})).await;
    assert_eq!(program.next("unsubscribe")["channel"], "news");

    for (act, expected) in [
        (BusAct::Answer { id: r#""m1""#.into(), json: "[1]".into() }, json!({"type": "answer", "id": "m1", "data": [1]})),
        (text("x"), json!({"type": "message", "event": "e", "data": "x"})),
        (BusAct::SendJson { event: "e".into(), json: "{\"a\":1}".into() }, json!({"type": "message", "event": "e", "data": {"a": 1}})),
        (
            BusAct::RefuseMessage { id: "7".into(), reason: "no".into() },
            json!({"type": "error", "code": "refused", "message": "no", "id": 7}),
        ),
    ] {
        program.0.tell(&Program::act(&message, act)).unwrap();
        assert_eq!(client.json().await, expected);
    }
    assert_eq!(program.ask(&message, BusAct::Join { channel: "c".into() }), true);
    assert_eq!(client.expect("subscribed").await["channel"], "c");
    assert_eq!(program.ask(&message, BusAct::Join { channel: "c".into() }), true, "again is no mistake");
    assert_eq!(program.ask(&message, BusAct::Join { channel: "#c".into() })["code"], "invalid_channel");
    assert_eq!(program.ask(&message, BusAct::Leave { channel: "c".into() }), true);
    client.expect("unsubscribed").await;
    program.next("unsubscribe");
    assert_eq!(program.ask(&message, BusAct::Leave { channel: "c".into() }), false);
    assert_eq!(program.ask(&message, BusAct::Close { code: 4321, reason: "enough".into() }), true);
    assert_eq!(client.closed().await, (4321, "enough".into()));
    assert_eq!(program.next("disconnect")["reason"], "application");
    assert_eq!(program.ask(&message, text("x")), false, "it is gone");
    program.none();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_lets_connections_in_or_not() {
    let hub = start(|_| {});
    let mut program = Program::new(&hub, &ALL, &[Kind::Connect]);
    let mut client = Client::open(&hub, "/ws").await;
    // What it sends meanwhile waits, however much it is.
    client.send_json(json!({"action": "subscribe", "channel": "early", "id": 1})).await;
    client.send_json(json!({"action": "ping", "id": 2})).await;
    let connect = program.next("connect");
    program.decide(&connect, None);
    client.expect("connected").await;
    assert_eq!(client.expect("subscribed").await["id"], 1);
    assert_eq!(client.expect("pong").await["id"], 2);
    program.decide(&connect, Some("too late"));
    client.expect_nothing().await;

    let mut refused = Client::open(&hub, "/ws/a").await;
    let connect = program.next("connect");
    program.decide(&connect, Some("not you"));
    assert_eq!(refused.next().await, Received::Closed { code: 4003, reason: "not you".into() });
    // What a program says before it lets somebody in comes behind the greeting.
    let mut greeted = Client::open(&hub, "/ws").await;
    let connect = program.next("connect");
    assert_eq!(program.ask(&connect, BusAct::Join { channel: "room".into() }), true);
    program.0.tell(&Program::act(&connect, text("welcome"))).unwrap();
    program.decide(&connect, None);
    greeted.expect("connected").await;
    greeted.expect("subscribed").await;
    assert_eq!(greeted.expect("message").await["data"], "welcome");
    greeted.expect_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decides_about_subscriptions() {
    let hub = start(|_| {});
    let mut program = Program::new(&hub, &ALL, &[Kind::Subscribe]);
    let mut client = Client::connect(&hub).await;
    program.next("connect");
    for (id, channel) in [(1, "yes"), (2, "no")] {
        client.send_json(json!({"action": "subscribe", "channel": channel, "id": id})).await;
    }
    client.send_json(json!({"action": "ping", "id": 3})).await;
    let first = program.next("subscribe");
    program.none();
    assert_eq!(first["channel"], "yes");
    program.decide(&first, None);
    assert_eq!(client.expect("subscribed").await["id"], 1);
    let second = program.next("subscribe");
    program.decide(&second, Some("members only"));
    let error = client.expect_error("unauthorized").await;
    assert_eq!((&error["id"], &error["message"]), (&json!(2), &json!("members only")));
    assert_eq!(client.expect("pong").await["id"], 3, "in the order in which it was sent");
    assert_eq!(hub.stats().protocol_errors, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_program_decides_is_refused_without_it() {
    let hub = start(|config| config.hooks.timeout_ms = 100);
    let mut open = Client::connect(&hub).await;
    let mut program = Program::new(&hub, &ALL, &[Kind::Connect, Kind::Subscribe]);
    // It does not answer.
    let mut silent = Client::open(&hub, "/ws").await;
    let (code, reason) = silent.closed().await;
    assert_eq!((code, reason.as_str()), (4003, "the application did not answer in time"));
    program.next("connect");
    open.send_json(json!({"action": "subscribe", "channel": "a", "id": 5})).await;
    assert_eq!(open.expect_error("unauthorized").await["id"], 5);
    // It ends, and leaves one waiting.
    let mut waiting = Client::open(&hub, "/ws").await;
    program.next("subscribe");
    program.next("connect");
    drop(program);
    assert_eq!(waiting.closed().await.0, 4003);
    eventually("nobody is there to ask", || hub.stats().connections == 1);
    assert_eq!(Client::open(&hub, "/ws").await.closed().await.0, 4003);
    open.send_json(json!({"action": "subscribe", "channel": "a"})).await;
    open.expect_error("unauthorized").await;
    open.send_json(json!({"action": "message", "event": "e"})).await;
    open.expect_error("unavailable").await;
    // The next one takes over, connections that are there included.
    let mut next = Program::new(&hub, &ALL, &[Kind::Connect]);
    open.send_json(json!({"action": "message", "event": "e"})).await;
    assert_eq!(next.next("message")["connection"], open.socket_id().to_string());

    let strict = start(|config| config.hooks.required = vec![Kind::Connect]);
    assert_eq!(Client::open(&strict, "/ws").await.closed().await.0, 4003);
    let refused = Hub::start(config(|config| config.hooks.required = vec![Kind::Joined]));
    assert!(matches!(refused, Err(StartError::Config(ConfigError::InvalidValue { key, .. })) if key == "hooks.required"));
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_messages_go_to_the_program_where_they_are_not_relayed() {
    let hub = start(|config| config.channels = vec![client_events("relayed")]);
    let mut program = Program::new(&hub, &ALL, &[]);
    let mut raw = Client::open(&hub, "/ws/relayed?envelope=raw").await;
    let mut other = Client::open(&hub, "/ws/relayed?envelope=raw").await;
    let mut alone = Client::open(&hub, "/ws?envelope=raw").await;
    for _ in 0..3 {
        program.next("connect");
    }
    eventually("both are in", || hub.stats().subscriptions == 2);
    raw.send_text("offer").await;
    assert_eq!(other.text().await, "offer");
    alone.send_text("{\"sdp\":1}").await;
    let message = program.next("message");
    assert_eq!((&message["event"], &message["text"]), (&json!("message"), &json!("{\"sdp\":1}")));
    alone.send(Message::binary(vec![0, 255])).await;
    assert_eq!(program.next("message")["bytes"], "00ff");
    program.0.tell(&Program::act(&message, text("bare"))).unwrap();
    program.0.tell(&Program::act(&message, BusAct::SendBytes { event: "e".into(), hex: "0001".into() })).unwrap();
    assert_eq!(alone.text().await, "bare");
    assert_eq!(alone.next().await, Received::Binary(vec![0, 1]));
    assert_eq!(hub.stats().relays_refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_shared_by_programs_and_one_that_does_not_read_stalls_nobody() {
    let hub = start(|_| {});
    let idle = Program::new(&hub, &ALL, &[]);
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(Client::connect(&hub).await);
    }
    // The first program has both; it reads nothing, and its queue runs full.
    let filler = "x".repeat(60_000);
    let mut refused = false;
    while !refused {
        clients[0].send_json(json!({"action": "message", "event": "e", "data": filler, "id": 1})).await;
        clients[0].send_json(json!({"action": "ping", "id": 2})).await;
        let answer = clients[0].json().await;
        if answer["type"] == "error" {
            assert_eq!(answer["code"], "queue_full", "{answer}");
            refused = true;
            clients[0].expect("pong").await;
        }
    }
    clients[1].expect_nothing().await;
    // The second one has fewer connections, and gets the next ones.
    let mut program = Program::new(&hub, &ALL, &[]);
    let mut third = Client::connect(&hub).await;
    program.next("connect");
    third.send_json(json!({"action": "message", "event": "e", "data": 1})).await;
    assert_eq!(program.next("message")["data"], 1);
    drop(idle);
}

fn queued(events: &[Kind]) -> impl Fn(&mut Config) + '_ {
    move |config| {
        config.hooks.events = events.to_vec();
        config.presence_grace_ms = 0;
        config.channels = vec![ChannelPolicy { pattern: "room".into(), presence: true, ..ChannelPolicy::default() }];
    }
}

fn take(hub: &Hub, done: &mut Option<u64>) -> Value {
    let text = hub.next_event(*done, DEADLINE).unwrap().expect("an event");
    let leased: Value = serde_json::from_str(&text).unwrap();
    *done = leased["number"].as_u64();
    leased["event"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_read_what_happened_from_the_queue() {
    use Kind::{Connect, Disconnect, Joined, Left, Message, Occupied, Subscribe, Unsubscribe, Vacated};
    let all = [Connect, Subscribe, Joined, Left, Message, Unsubscribe, Disconnect, Occupied, Vacated];
    let hub = start(queued(&all));
    let mut client = Client::connect(&hub).await;
    hub.set_user(client.socket_id(), Some(User::new("ada", Some(r#"{"z":1,"a":2}"#)).unwrap())).unwrap();
    client.subscribe("room").await;
    client.send_json(json!({"action": "message", "event": "hi", "data": 1})).await;
    client.ask(json!({"action": "unsubscribe", "channel": "room"})).await;
    client.close().await;
    let mut done = None;
    let mut seen: Vec<Value> = (0..9).map(|_| take(&hub, &mut done)).collect();
    let of = |kind: &str, seen: &mut Vec<Value>| {
        let at = seen.iter().position(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind} in {seen:?}"));
        seen.remove(at)
    };
    let joined = of("joined", &mut seen);
    assert_eq!((&joined["channel"], &joined["user_id"], &joined["user_info"]), (&json!("room"), &json!("ada"), &json!({"z": 1, "a": 2})));
    assert_eq!(of("left", &mut seen)["user_id"], "ada");
    for kind in ["occupied", "vacated"] {
        assert_eq!(of(kind, &mut seen)["channel"], "room");
    }
    let kinds: Vec<&str> = seen.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["connect", "subscribe", "message", "unsubscribe", "disconnect"], "in order for a connection");
    assert_eq!(hub.next_event(done, Duration::ZERO).unwrap(), None);
    assert_eq!(hub.stats().events_dropped, 0);
    assert!(matches!(start(|_| {}).next_event(None, Duration::ZERO), Err(QueryError::NoEvents)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_worker_that_goes_is_given_to_another() {
    let hub = start(queued(&[Kind::Joined]));
    let mut client = Client::connect(&hub).await;
    hub.set_user(client.socket_id(), Some(User::new("ada", None).unwrap())).unwrap();
    client.subscribe("room").await;
    let next = |bus: &mut Bus, done: Option<u64>| -> Value { bus.query(&BusQuery::NextEvent { timeout_ms: 400, done }).unwrap() };
    let (mut first, mut second) = (bus(&hub), bus(&hub));
    // However long the event takes to the queue.
    let given = |bus: &mut Bus| loop {
        let event = next(bus, None);
        if event != Value::Null {
            break event;
        }
    };
    let leased = given(&mut first);
    assert_eq!((&leased["event"]["user_id"], &leased["attempt"]), (&json!("ada"), &json!(1)));
    assert_eq!(next(&mut second, None), Value::Null, "it has a reader");
    drop(first);
    let again = given(&mut second);
    assert_eq!((&again["number"], &again["attempt"]), (&leased["number"], &json!(2)));
    assert_eq!(next(&mut second, again["number"].as_u64()), Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_acknowledges_what_it_was_given_on_this_connection_and_nothing_else() {
    let hub = start(queued(&[Kind::Joined]));
    let mut clients = Vec::new();
    for user in ["ada", "eve", "bob"] {
        let mut client = Client::connect(&hub).await;
        hub.set_user(client.socket_id(), Some(User::new(user, None).unwrap())).unwrap();
        client.subscribe("room").await;
        clients.push(client);
    }
    let given = |bus: &mut Bus, mut done: Option<u64>| loop {
        let event: Value = bus.query(&BusQuery::NextEvent { timeout_ms: 400, done: done.take() }).unwrap();
        if event != Value::Null {
            break (event["number"].as_u64().unwrap(), event["event"]["user_id"].as_str().unwrap().to_owned(), event["attempt"].clone());
        }
    };
    let is_done = |bus: &mut Bus, number: u64| -> bool { bus.query(&BusQuery::EventDone { number }).unwrap() };
    let mut worker = bus(&hub);
    assert!(!is_done(&mut worker, 0), "it has none");
    assert_eq!(given(&mut worker, Some(0)), (0, "ada".into(), json!(1)), "what it had elsewhere is none of this hub's");
    assert!(!is_done(&mut worker, 1), "nor is what it does not have");
    assert!(is_done(&mut worker, 0));
    assert!(!is_done(&mut worker, 0), "done once");
    drop(worker);
    let mut worker = bus(&hub);
    assert_eq!(given(&mut worker, None), (1, "eve".into(), json!(1)), "nobody was given it in between");
    drop(worker);
    let mut worker = bus(&hub);
    assert_eq!(given(&mut worker, Some(1)), (1, "eve".into(), json!(2)), "it was given back with the connection");
    assert_eq!(given(&mut worker, Some(1)), (2, "bob".into(), json!(1)));
}

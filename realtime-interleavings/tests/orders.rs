//! Publishers, subscribers, readers of histories, connections that end and a hub that stops, in many orders: the sources of
//! the hub over a scheduler that decides at every lock and every counter who runs next, and the ledger's word on each run.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use realtime_interleavings::config::{ChannelPolicy, HistoryPolicy};
use realtime_interleavings::history::{MAX_LIMIT, Query};
use realtime_interleavings::hub::interleavings::Explored;
use realtime_interleavings::{Config, Hub, Payload, Publish, PublishError};
use realtime_testkit::ledger::{ClientLog, Ledger, Outcome, Seen, check};
use realtime_testkit::raw::{TEXT, frame};
use realtime_testkit::sized;
use serde_json::{Value, json};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{MaxSteps, Runner, thread};

const CHANNEL: &str = "h";

fn hub(change: impl FnOnce(&mut Config)) -> Arc<Explored> {
    let mut config = Config { listen: "127.0.0.1:0".into(), socket: Some(String::new()), shards: 2, ..Config::default() };
    config.channels = vec![ChannelPolicy { pattern: CHANNEL.into(), history: Some(HistoryPolicy::default()), ..ChannelPolicy::default() }];
    change(&mut config);
    Arc::new(Explored::start(config).unwrap())
}

/// The same position in the ledger's terms.
fn place(position: realtime_interleavings::Position) -> realtime_core::Position {
    realtime_core::Position { epoch: realtime_core::Epoch(position.epoch.0), offset: position.offset }
}

/// A client that writes down what it sees, through any number of connections.
struct Client {
    hub: Arc<Explored>,
    line: UnixStream,
    /// The hub has said goodbye.
    is_over: bool,
    input: Vec<u8>,
    position: Option<realtime_core::Position>,
    log: ClientLog,
    /// Answers to questions for histories.
    pages: Vec<Value>,
}

impl Client {
    fn connect(hub: &Arc<Explored>, name: usize) -> Client {
        let log = ClientLog { name: format!("client {name}"), stayed: true, ..ClientLog::default() };
        Client { hub: hub.clone(), line: hub.connect().unwrap(), is_over: false, input: Vec::new(), position: None, log, pages: Vec::new() }
    }

    fn ask(&mut self, request: &Value) {
        // A hub that stops may have closed already.
        drop(self.line.write_all(&frame(TEXT, request.to_string().as_bytes())));
    }

    fn subscribe(&mut self) {
        let mut request = json!({"action": "subscribe", "channel": CHANNEL});
        if let Some(position) = self.position {
            request["recover"] = json!({"epoch": position.epoch.to_string(), "offset": position.offset});
        }
        self.ask(&request);
    }

    /// Reads what is there; false at the end of the connection.
    fn look(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.line.read(&mut buffer) {
                Ok(count @ 1..) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => {
                    self.is_over = true;
                    break;
                }
            }
        }
        while let Some((first, payload)) = next_frame(&mut self.input) {
            match first {
                TEXT => self.note(serde_json::from_slice(&payload).unwrap()),
                _ => self.is_over = true,
            }
        }
        !self.is_over
    }

    fn note(&mut self, message: Value) {
        let offset = message["offset"].as_u64().unwrap_or_default();
        match message["type"].as_str() {
            Some("subscribed") => {
                let start = realtime_core::Position { epoch: message["epoch"].as_str().unwrap().parse().unwrap(), offset };
                self.position = Some(start);
                self.log.seen.push(Seen::Subscribed(start, message["recovered"] == true));
            }
            Some("message") => {
                let known = self.position.as_mut().unwrap();
                known.offset = offset;
                self.log.seen.push(Seen::Message(*known, message["data"].as_str().unwrap().to_owned()));
            }
            Some("unsubscribed") => {
                assert_eq!(message["code"], Value::Null, "nothing gets lost within one process: {message}");
                self.log.seen.push(Seen::Ended);
            }
            Some("history") => self.pages.push(message),
            Some("connected") => {}
            _ => panic!("{message}"),
        }
    }

    /// Lets others run until something has come; false: the connection has ended.
    fn wait(&mut self, until: impl Fn(&Client) -> bool) -> bool {
        loop {
            let is_open = self.look();
            if until(self) {
                return true;
            }
            if !is_open {
                return false;
            }
            thread::yield_now();
        }
    }

    fn answers(&self) -> usize {
        self.log.seen.iter().filter(|seen| matches!(seen, Seen::Subscribed(..))).count()
    }

    /// Subscribes and waits for the answer.
    fn subscribed(&mut self) -> bool {
        let before = self.answers();
        self.subscribe();
        self.wait(|client| client.answers() > before)
    }

    /// Leaves, one way or the other, and comes back for what it has missed.
    fn leave_and_return(&mut self) -> bool {
        if thread_rng().gen_bool(0.5) {
            let ends = |client: &Client| client.log.seen.iter().filter(|seen| matches!(seen, Seen::Ended)).count();
            let before = ends(self);
            self.ask(&json!({"action": "unsubscribe", "channel": CHANNEL}));
            if !self.wait(|client| ends(client) > before) {
                return false;
            }
        } else {
            // What is in the line by now is lost, and comes again.
            (self.line, self.is_over) = (self.hub.connect().unwrap(), false);
            self.input.clear();
            self.log.seen.push(Seen::Ended);
        }
        rest();
        self.subscribed()
    }

    fn read_history(&mut self) -> bool {
        let before = self.pages.len();
        self.ask(&json!({"action": "history", "channel": CHANNEL}));
        self.wait(|client| client.pages.len() > before)
    }

    /// Some steps of a client's life; a hub that stops ends it early.
    fn live(mut self) -> Client {
        rest();
        let _lived = self.subscribed()
            && (0..thread_rng().gen_range(0..3)).all(|_| match thread_rng().gen_bool(0.7) {
                true => self.leave_and_return(),
                false => self.read_history(),
            });
        self
    }

    /// Takes what comes until the hub says goodbye, and goes.
    fn leave(&mut self) {
        self.wait(|_| false);
        self.line.shutdown(Shutdown::Both).unwrap();
    }

    /// What it read of the history was a piece of it, without a hole.
    fn end(self, history: &HashMap<u64, String>) -> ClientLog {
        for page in &self.pages {
            let messages = page["messages"].as_array().unwrap();
            let offsets: Vec<u64> = messages.iter().map(|message| message["offset"].as_u64().unwrap()).collect();
            assert!(offsets.iter().copied().eq(1..=page["offset"].as_u64().unwrap()), "{page}");
            for (message, offset) in messages.iter().zip(offsets) {
                assert_eq!(message["data"], history[&offset], "{page}");
            }
        }
        self.log
    }
}

/// Takes a frame without mask: its first byte and its payload.
fn next_frame(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (at, length) = match input[..] {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, short @ 0..=125, ..] => (2, usize::from(short)),
        _ => return None,
    };
    let first = input[0];
    (input.len() >= at + length).then(|| (first, input.drain(..at + length).skip(at).collect()))
}

/// Lets others run for a while.
fn rest() {
    for _ in 0..thread_rng().gen_range(0..12) {
        thread::yield_now();
    }
}

fn publish(hub: &Hub, publisher: usize, count: usize) -> Vec<(String, Outcome)> {
    let one = |number| {
        let id = format!("{publisher}-{number}");
        let outcome = match hub.publish(&Publish::new(CHANNEL, "e", Payload::Text(&id))) {
            Ok(receipt) => Outcome::Acked(place(receipt.position)),
            Err(PublishError::Stopped) => Outcome::Refused,
            Err(error) => panic!("{error}"),
        };
        (id, outcome)
    };
    (0..count).map(one).collect()
}

/// One run: clients and publishers, and a stop when they are done or in their middle.
fn run(stops_early: bool, change: impl FnOnce(&mut Config)) {
    const PUBLISHERS: usize = 2;
    const CLIENTS: usize = 3;
    let hub = hub(change);
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let hub = hub.clone();
            thread::spawn(move || publish(&hub.hub, publisher, 4))
        })
        .collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|name| {
            let client = Client::connect(&hub, name);
            thread::spawn(move || client.live())
        })
        .collect();
    let mut logs = Vec::new();
    if stops_early {
        rest();
        hub.begin_stop();
    }
    publishers.into_iter().for_each(|publisher| logs.extend(publisher.join().unwrap()));
    let mut clients: Vec<Client> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    if !stops_early {
        hub.begin_stop();
    }
    clients.iter_mut().for_each(Client::leave);
    hub.join();
    let kept = hub.hub.history(CHANNEL, &Query { limit: MAX_LIMIT, ..Query::default() }).unwrap();
    let history: Vec<_> = kept
        .publications
        .iter()
        .map(|publication| match publication.body.as_payload() {
            Payload::Text(id) => (place(publication.position), id.to_owned()),
            other => panic!("{other:?}"),
        })
        .collect();
    let by_offset: HashMap<u64, String> = history.iter().map(|(position, id)| (position.offset, id.clone())).collect();
    let mut ledger = Ledger { published: logs.into_iter().collect(), history: Some(history), ..Ledger::default() };
    ledger.clients = clients.into_iter().map(|client| client.end(&by_offset)).collect();
    let violations = check(&ledger);
    let shown: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{}\n{ledger:#?}", shown.join("\n"));
    if !stops_early {
        assert_eq!(ledger.history.as_ref().map(Vec::len), Some(PUBLISHERS * 4));
    }
    assert_eq!(hub.hub.stats().panics, 0);
}

fn explore(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) {
    let mut config = shuttle::Config::new();
    config.stack_size = 512 << 10;
    // A thread that nobody wakes turns for ever.
    config.max_steps = MaxSteps::FailAfter(200_000);
    Runner::new(scheduler, config).run(body);
}

/// So many orders at random, and so many with few changes of thread at the worst of moments.
fn many(body: impl Fn() + Clone + Send + Sync + 'static) {
    let orders = sized(200, 20_000);
    explore(RandomScheduler::new(orders), body.clone());
    explore(PctScheduler::new(3, orders / 2), body);
}

#[test]
fn no_order_makes_a_hole_a_repeat_or_a_lost_tail() {
    // I1–I5 for subscriptions, recoveries and histories beside publishers, on two shards.
    many(|| run(false, |_| {}));
}

#[test]
fn no_order_of_a_stop_loses_what_was_acknowledged() {
    many(|| run(true, |_| {}));
}

#[test]
fn no_order_leaves_a_publisher_waiting_for_room_that_is_there() {
    // A bound that two publications pass.
    many(|| run(false, |config| (config.limits.ingress_bytes, config.limits.publication_bytes) = (2_048, 512)));
}

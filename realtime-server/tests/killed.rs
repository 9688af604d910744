//! A hub that is killed: what it kept in its memory is gone, and nobody is told otherwise.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use process::{Place, Server, history, position, publication};
use realtime_core::Position;
use realtime_core::bus::client::ClientError;
use realtime_testkit::ledger::{ClientLog, Ledger, Outcome, Seen, Tally, assert_true};
use realtime_testkit::{DEADLINE, RawClient, eventually, sized};
use rustix::process::Signal;
use serde_json::json;

const PUBLISHERS: usize = 4;

/// Subscribes from where the log ends, and writes down the answer; gives it.
fn subscribe(client: &mut RawClient, from: Option<Position>, log: &mut ClientLog) -> Position {
    let mut request = json!({"action": "subscribe", "channel": "h"});
    if let Some(Position { epoch, offset }) = from {
        request["recover"] = json!({"epoch": epoch.to_string(), "offset": offset});
    }
    client.send_text(&request.to_string());
    let answer = client.next_message().json();
    assert_eq!(answer["type"], "subscribed", "{answer}");
    let start = position(&answer, answer["epoch"].as_str().unwrap().parse().unwrap());
    log.seen.push(Seen::Subscribed(start, answer["recovered"] == true));
    start
}

fn connect(hub: &Server) -> RawClient {
    let mut client = RawClient::tcp(hub.address);
    client.upgrade("/ws");
    assert_eq!(client.next_message().json()["type"], "connected");
    client
}

/// Reads and writes down what comes, until `end` or the end of the connection; gives where it left off.
fn listen(client: &mut RawClient, start: Position, log: &mut ClientLog) -> Position {
    let mut last = start;
    while let Some(frame) = client.message_or_end() {
        let message = frame.json();
        assert_eq!(message["type"], "message", "{message}");
        last = position(&message, start.epoch);
        let id = message["data"].as_str().unwrap().to_owned();
        let is_end = id == "end";
        log.seen.push(Seen::Message(last, id));
        if is_end {
            return last;
        }
    }
    log.seen.push(Seen::Ended);
    last
}

/// Publishes until the hub is gone: what was acknowledged, and the one of which nobody knows.
fn publish_until_killed(place: &Place, publisher: usize, accepted: &AtomicUsize) -> Vec<(String, Outcome)> {
    let (mut client, mut log) = (place.client(), Vec::new());
    loop {
        let id = format!("{publisher}-{}", log.len());
        match client.publish_with_receipt(&publication("h", &id)) {
            Ok(receipt) => {
                accepted.fetch_add(1, Ordering::Relaxed);
                log.push((id, Outcome::Acked(receipt.position)));
            }
            Err(ClientError::Broken(_)) => {
                log.push((id, Outcome::Unknown));
                return log;
            }
            Err(ClientError::Connect { .. }) => return log,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_hub_that_was_killed_recovers_nobody_falsely() {
    // Case R18: a new epoch, `recovered` false for every resume, I2 within what each got, I5. That what was acknowledged is
    // gone is the memory broker's word (I1 is waived). 500 clients at full size, published to as fast as it goes.
    let (clients, enough) = (sized(40, 500), sized(500, 5_000));
    let place = Place::new();
    std::fs::write(place.path("hub.toml"), "[[channels]]\nmatch = \"h\"\nhistory = { size = 100000 }\n").unwrap();
    let config = place.path("hub.toml");
    let first = place.hub(&["--config", config.to_str().unwrap()]);
    let accepted = AtomicUsize::new(0);
    let mut ledger = Ledger { may_lose: true, ..Ledger::default() };
    std::thread::scope(|scope| {
        let mut listeners = Vec::new();
        let (gone, left_off) = mpsc::channel();
        let mut goes_on = Vec::new();
        for client in 0..clients {
            let mut socket = connect(&first);
            let mut log = ClientLog { name: format!("client {client}"), stayed: true, ..ClientLog::default() };
            let start = subscribe(&mut socket, None, &mut log);
            let gone = gone.clone();
            let (second, reconnect) = mpsc::channel::<RawClient>();
            goes_on.push(second);
            listeners.push(scope.spawn(move || {
                let last = listen(&mut socket, start, &mut log);
                gone.send(()).unwrap();
                let mut socket = reconnect.recv().unwrap();
                let start = subscribe(&mut socket, Some(last), &mut log);
                assert!(matches!(log.seen.last(), Some(Seen::Subscribed(_, false))), "{} was told a lie: {:?}", log.name, log.seen.last());
                assert_ne!(start.epoch, last.epoch);
                gone.send(()).unwrap();
                listen(&mut socket, start, &mut log);
                log
            }));
        }
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (place, accepted) = (&place, &accepted);
                scope.spawn(move || publish_until_killed(place, publisher, accepted))
            })
            .collect();
        eventually("enough is published", || accepted.load(Ordering::Relaxed) > enough);
        first.process.signal(Signal::KILL);
        let logs: Vec<_> = publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect();
        assert!(logs.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Acked(_))).count() > enough);
        ledger.published.extend(logs);
        (0..clients).for_each(|_| left_off.recv_timeout(DEADLINE).unwrap());
        // It takes the place that the first could not clear.
        let second = place.hub(&["--config", config.to_str().unwrap()]);
        let mut client = place.client();
        // As many as clients may have seen of the first: offsets say nothing about epochs.
        for number in 0..accepted.load(Ordering::Relaxed) {
            let id = format!("again-{number}");
            let receipt = client.publish_with_receipt(&publication("h", &id)).unwrap();
            ledger.published.insert(id, Outcome::Acked(receipt.position));
        }
        goes_on.into_iter().for_each(|client| client.send(connect(&second)).unwrap());
        (0..clients).for_each(|_| left_off.recv_timeout(DEADLINE).unwrap());
        let receipt = client.publish_with_receipt(&publication("h", "end")).unwrap();
        ledger.published.insert("end".into(), Outcome::Acked(receipt.position));
        ledger.clients = listeners.into_iter().map(|listener| listener.join().unwrap()).collect();
        ledger.history = Some(history(&mut client, "h"));
        second.stop();
    });
    eprintln!("{}", Tally::of(std::slice::from_ref(&ledger)));
    assert_true(&ledger, "a hub that was killed");
}

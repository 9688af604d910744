//! Other processes of the host: publications and questions over the local bus.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use realtime_core::bus::client::{Client, ClientError, ClientOptions};
use realtime_core::bus::frame::{BusPublish, BusQuery, FailureCode, Request};
use realtime_core::bus::socket::BusBindError;
use realtime_core::config::AppConfig;
use realtime_core::history::Keeping;
use realtime_core::{Hub, Payload, Publish, StartError, User};
use realtime_testkit::hub::history;
use realtime_testkit::{Client as WebSocket, DEADLINE, config, eventually, fresh_directory, start};
use serde_json::{Value, json};

/// A socket path of its own for each test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        Place(fresh_directory("realtime-test"))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("hub.sock")
    }

    fn hub(&self) -> Hub {
        let socket = self.socket();
        start(|config| config.socket = Some(socket.to_str().unwrap().into()))
    }

    fn client(&self) -> Client {
        // The usual deadlines are for hosts that have better things to do than to wait for a busy machine.
        Client::new(ClientOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..ClientOptions::new(&self.socket()) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn publish<'a>(channel: &'a str, payload: Payload<'a>) -> BusPublish<'a> {
    BusPublish { target: channel, to_user: false, event: "e", payload, except: Vec::new(), id: None, keeping: Keeping::default() }
}

#[tokio::test]
async fn publications_arrive_in_order_and_receipts_say_where() {
    let place = Place::new();
    let hub = place.hub();
    let mut subscriber = WebSocket::subscribed(&hub, "c").await;
    let mut client = place.client();
    for number in 0..500 {
        client.publish(&publish("c", Payload::Text(&number.to_string()))).unwrap();
    }
    let receipt = client.publish_with_receipt(&publish("c", Payload::Json("{\"last\":true}"))).unwrap();
    assert_eq!((receipt.position.offset, receipt.matched), (501, 1));
    for number in 0..500 {
        assert_eq!(subscriber.expect("message").await["data"], number.to_string());
    }
    assert_eq!(subscriber.expect("message").await["data"], json!({"last": true}));
}

#[test]
fn many_publications_are_under_way_at_once_and_each_has_its_receipt() {
    let place = Place::new();
    let hub = place.hub();
    let mut client = place.client();
    let offsets = |client: &mut Client, publishes: &[BusPublish<'_>]| -> Result<Vec<u64>, ClientError> {
        Ok(client.publish_with_receipts(publishes)?.iter().map(|receipt| receipt.position.offset).collect())
    };
    let small = publish("c", Payload::Text("x"));
    let mut next = 1;
    for count in [0, 1, 63, 64, 65, 129] {
        assert_eq!(offsets(&mut client, &vec![small.clone(); count]).unwrap(), (next..next + count as u64).collect::<Vec<_>>());
        next += count as u64;
    }
    let large = "x".repeat(256 << 10);
    let large = publish("large", Payload::Text(&large));
    assert_eq!(offsets(&mut client, &vec![large; 3]).unwrap(), [1, 2, 3]);

    // What is behind a failure is under way already; its answer is nobody else's.
    let wrong = publish("", Payload::Text("x"));
    let outcome = offsets(&mut client, &[small.clone(), wrong, small.clone()]);
    assert!(matches!(outcome, Err(ClientError::Refused { code: FailureCode::InvalidChannel, .. })), "{outcome:?}");
    assert_eq!(offsets(&mut client, &[small.clone(), small.clone()]).unwrap(), [next + 2, next + 3]);
    let huge = vec![0; 1 << 20];
    for huge in [[publish("c", Payload::Binary(&huge)), small.clone()], [small.clone(), publish("c", Payload::Binary(&huge))]] {
        assert!(matches!(offsets(&mut client, &huge), Err(ClientError::TooLarge { .. })));
    }

    // A hub that went before anything was sent is replaced by the next one.
    assert!(hub.stop(Duration::from_secs(10)).complete);
    let _hub = place.hub();
    assert_eq!(offsets(&mut client, &[small.clone(), small]).unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_batch_goes_out_together_or_not_at_all() {
    let place = Place::new();
    let hub = place.hub();
    let mut subscriber = WebSocket::subscribed(&hub, "c").await;
    let mut client = place.client();
    client.batch(&[publish("c", Payload::Text("lost")), publish("", Payload::Text("wrong"))]).unwrap();
    let good: Vec<String> = (0..9_000).map(|number| number.to_string()).collect();
    let batch: Vec<_> = good.iter().map(|text| publish("c", Payload::Text(text))).collect();
    client.batch(&batch).unwrap();
    for text in &good {
        assert_eq!(subscriber.expect("message").await["data"], *text);
    }
    assert_eq!(hub.stats().bus_refused, 1);
}

#[tokio::test]
async fn questions_are_answered_and_users_reached() {
    let place = Place::new();
    let hub = place.hub();
    let mut subscriber = WebSocket::subscribed(&hub, "room").await;
    let info = r#"{"name": "Ada", "age": 36, "born": 1815}"#;
    hub.set_user(subscriber.socket_id(), Some(User::new("7", Some(info)).unwrap())).unwrap();
    let mut client = place.client();
    let users: Box<serde_json::value::RawValue> = client.query(&BusQuery::ChannelUsers { channel: "room".into() }).unwrap();
    // As it was given: an object's keys keep their order.
    assert_eq!(users.get(), format!(r#"[{{"id":"7","info":{info},"connections":1}}]"#));
    let channels: Value = client.query(&BusQuery::Channels).unwrap();
    assert_eq!(channels, json!([{"name": "room", "subscribers": 1}]));
    client.publish(&BusPublish { to_user: true, ..publish("7", Payload::Text("hi")) }).unwrap();
    assert_eq!(subscriber.expect("message").await["data"], "hi");
    let closed: usize = client.query(&BusQuery::DisconnectUser { user: "7".into(), code: 4009, reason: "bye".into() }).unwrap();
    assert_eq!((closed, subscriber.closed().await), (1, (4009, "bye".to_owned())));
    let refused = client.query::<Value>(&BusQuery::ChannelUsers { channel: "#x".into() });
    assert!(matches!(refused, Err(ClientError::Refused { code: FailureCode::InvalidChannel, .. })), "{refused:?}");
}

#[test]
fn an_answer_longer_than_a_frame_comes_in_parts() {
    let place = Place::new();
    let hub = place.hub();
    struct Nowhere;
    impl realtime_core::transport::FrameSink for Nowhere {
        fn send(&mut self, frame: &[u8]) -> std::io::Result<usize> {
            Ok(frame.len())
        }
        fn send_vectored(&mut self, frames: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
            Ok(frames.iter().map(|frame| frame.len()).sum())
        }
    }
    for number in 0..9_000 {
        hub.attach_sink(&[&format!("{:x>180}", number)], Box::new(Nowhere)).unwrap();
    }
    eventually("all are subscribed", || hub.stats().subscriptions == 9_000);
    let channels: Vec<Value> = place.client().query(&BusQuery::Channels).unwrap();
    assert_eq!(channels.len(), 9_000);
}

#[test]
fn refusals_name_the_fault() {
    let place = Place::new();
    let _hub = place.hub();
    let mut client = place.client();
    let long = "x".repeat(201);
    let large = "x".repeat((256 << 10) + 1);
    for (request, expected) in [
        (publish("", Payload::Text("x")), FailureCode::InvalidChannel),
        (publish(&long, Payload::Text("x")), FailureCode::InvalidChannel),
        (publish("#user:1", Payload::Text("x")), FailureCode::InvalidChannel),
        (publish("c", Payload::Json("{")), FailureCode::InvalidMessage),
        (BusPublish { event: "", ..publish("c", Payload::Text("x")) }, FailureCode::InvalidMessage),
        (BusPublish { to_user: true, ..publish("", Payload::Text("x")) }, FailureCode::InvalidMessage),
        (publish("c", Payload::Text(&large)), FailureCode::TooLarge),
    ] {
        let outcome = client.publish_with_receipt(&request);
        assert!(matches!(&outcome, Err(ClientError::Refused { code, .. }) if *code == expected), "{request:?}: {outcome:?}");
    }
    let huge = vec![0; 1 << 20];
    assert!(matches!(client.publish(&publish("c", Payload::Binary(&huge))), Err(ClientError::TooLarge { .. })));
    client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap();
}

#[tokio::test]
async fn what_was_sent_before_a_stop_still_goes_out() {
    let place = Place::new();
    let hub = place.hub();
    let mut subscriber = WebSocket::subscribed(&hub, "c").await;
    let mut client = place.client();
    for number in 0..2_000 {
        client.publish(&publish("c", Payload::Text(&number.to_string()))).unwrap();
    }
    let stopping = tokio::task::spawn_blocking(move || hub.stop(Duration::from_secs(10)));
    for number in 0..2_000 {
        assert_eq!(subscriber.expect("message").await["data"], number.to_string());
    }
    assert_eq!(subscriber.closed().await.0, 1001);
    assert!(stopping.await.unwrap().complete);
    assert!(!place.socket().exists());
}

#[test]
fn a_call_survives_a_restart_of_the_hub() {
    let place = Place::new();
    let hub = place.hub();
    let mut client = place.client();
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("1"))).unwrap().position.offset, 1);
    assert!(hub.stop(Duration::from_secs(10)).complete);
    assert!(matches!(client.publish(&publish("c", Payload::Text("2"))), Err(ClientError::Connect { .. })));
    let _hub = place.hub();
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("3"))).unwrap().position.offset, 1);
}

#[test]
fn a_hub_that_stands_still_costs_one_deadline() {
    let place = Place::new();
    // Accepts into its backlog and never answers.
    let _silent = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut client = Client::new(ClientOptions { answer_timeout: Duration::from_millis(50), ..ClientOptions::new(&place.socket()) });
    assert!(matches!(client.publish_with_receipt(&publish("c", Payload::Text("x"))), Err(ClientError::Timeout { .. })));
    assert!(matches!(client.publish_with_receipt(&publish("c", Payload::Text("x"))), Err(ClientError::Paused { .. })));
    // Who has another way takes that meanwhile.
    assert!(matches!(client.reach(), Err(ClientError::Paused { .. })));
    // What waits for nobody costs nothing.
    client.publish(&publish("c", Payload::Text("x"))).unwrap();
    // Nor what would have to wait, once the socket is full.
    let body = vec![0; 1_000];
    let full = (0..100_000).find_map(|_| client.publish(&publish("c", Payload::Binary(&body))).err());
    assert!(matches!(full, Some(ClientError::Paused { .. } | ClientError::Timeout { .. })), "{full:?}");
}

/// What the peer that connected first has published, and in which order.
fn read_texts(stream: &mut UnixStream, count: usize) -> Vec<String> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut texts = Vec::new();
    while texts.len() < count {
        let mut frame = vec![0; 4];
        stream.read_exact(&mut frame).unwrap();
        frame.resize(4 + u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, 0);
        stream.read_exact(&mut frame[4..]).unwrap();
        if let Request::Publish { publish: BusPublish { payload: Payload::Text(text), .. }, .. } = Request::read(&frame).unwrap() {
            texts.push(text.to_owned());
        }
    }
    texts
}

#[test]
fn what_is_published_after_a_late_answer_stands_behind_what_was_published_before_it() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut client = Client::new(ClientOptions { answer_timeout: Duration::from_millis(50), ..ClientOptions::new(&place.socket()) });
    for text in ["1", "2"] {
        client.publish(&publish("c", Payload::Text(text))).unwrap();
    }
    assert!(matches!(client.query::<Value>(&BusQuery::Stats), Err(ClientError::Timeout { .. })));
    client.publish(&publish("c", Payload::Text("3"))).unwrap();
    // One that waits tries again after the pause, over the same connection.
    eventually("the pause is over", || {
        matches!(client.publish_with_receipt(&publish("c", Payload::Text("4"))), Err(ClientError::Timeout { .. }))
    });
    client.publish(&publish("c", Payload::Text("5"))).unwrap();
    assert_eq!(read_texts(&mut listener.accept().unwrap().0, 5), ["1", "2", "3", "4", "5"]);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "there is another connection");
}

#[test]
fn a_late_answer_is_not_taken_for_the_next_one() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut client = place.client();
    client.answer_within(Duration::from_millis(50));
    assert!(matches!(client.query::<Value>(&BusQuery::Channels), Err(ClientError::Timeout { .. })));
    let hub = realtime_core::HubBuilder::new(config(|_| {})).bus_listener(listener).start().unwrap();
    client.answer_within(DEADLINE);
    let mut offset = 0;
    eventually("the pause is over", || {
        client.publish_with_receipt(&publish("c", Payload::Text("x"))).is_ok_and(|receipt| {
            offset = receipt.position.offset;
            true
        })
    });
    assert_eq!((offset, hub.stats().published), (1, 1));
}

#[test]
fn behind_a_frame_that_was_cut_nothing_overtakes_what_stood_before_it() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut client = Client::new(ClientOptions { answer_timeout: Duration::from_millis(50), ..ClientOptions::new(&place.socket()) });
    client.publish(&publish("c", Payload::Text("first"))).unwrap();
    let body = "x".repeat(1_000_000);
    let cut = (0..100).find_map(|_| client.publish(&publish("c", Payload::Text(&body))).err());
    assert!(matches!(cut, Some(ClientError::Timeout { .. })), "{cut:?}");
    // The hub has not read what stands there: there is no other way to it yet.
    eventually("the pause is over", || matches!(client.publish(&publish("c", Payload::Text("x"))), Err(ClientError::Timeout { .. })));
    let (mut stream, _) = listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "there is another connection");
    assert_eq!(read_texts(&mut stream, 1), ["first"]);
    std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
    drop(stream);
    eventually("it is published", || client.publish(&publish("c", Payload::Text("last"))).is_ok());
    listener.set_nonblocking(false).unwrap();
    assert_eq!(read_texts(&mut listener.accept().unwrap().0, 1), ["last"]);
}

#[test]
fn past_the_most_connections_the_next_one_waits_and_loses_nothing() {
    let place = Place::new();
    let hub = start(|config| {
        config.socket = Some(place.socket().display().to_string());
        config.limits.max_bus_connections = 3;
    });
    let mut inside = Vec::new();
    // The last of them is the one that takes the last place.
    for _ in 0..3 {
        let mut client = place.client();
        client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap();
        inside.push(client);
    }
    let mut past = place.client();
    past.publish(&publish("c", Payload::Text("x"))).unwrap();
    past.answer_within(Duration::from_millis(100));
    assert!(matches!(past.publish_with_receipt(&publish("c", Payload::Text("x"))), Err(ClientError::Timeout { .. })));
    past.publish(&publish("c", Payload::Text("x"))).unwrap();
    // Not even if it ends.
    drop(past);
    inside[0].publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap();
    assert_eq!(hub.stats().published, 4);
    drop(inside.pop());
    eventually("its turn has come", || hub.stats().published == 7);
    assert_eq!((hub.stats().bus_refused, hub.stats().bus_errors), (0, 0));
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_read_no_further() {
    let place = Place::new();
    let hub = start(|config| {
        config.socket = Some(place.socket().display().to_string());
        config.channels = vec![history("c", 10)];
    });
    let large = "x".repeat(200_000);
    place.client().publish_with_receipt(&publish("c", Payload::Text(&large))).unwrap();
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    let mut bytes = Vec::new();
    Request::Hello { oldest: 1, newest: 1, pid: 1 }.write(&mut bytes);
    for request in 1..=100 {
        Request::Query { request, query: r#"{"op":"history","channel":"c","limit":1}"# }.write(&mut bytes);
    }
    Request::Publish { request: 0, publish: publish("c", Payload::Text("x")) }.write(&mut bytes);
    // Less than is read at once.
    assert!(bytes.len() < 64 << 10);
    stream.write_all(&bytes).unwrap();
    eventually("the hub has given it up", || hub.stats().bus_errors == 1);
    assert_eq!(hub.stats().published, 1, "what stands behind 20 MB of answers was carried out");
}

#[test]
fn calls_wait_together_no_longer_than_they_are_allowed() {
    let place = Place::new();
    let _silent = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let mut client = place.client();
    let allowance = Duration::from_millis(30);
    client.allow_waiting(Some(allowance));
    let outcome = client.publish_with_receipt(&publish("c", Payload::Text("x")));
    assert!(matches!(outcome, Err(ClientError::Timeout { waited }) if waited == allowance), "{outcome:?}");
    let outcome = client.publish(&publish("c", Payload::Text("x")));
    assert!(matches!(outcome, Err(ClientError::WaitedEnough { .. })), "{outcome:?}");
    client.allow_waiting(None);
    client.forget();
    client.publish(&publish("c", Payload::Text("x"))).unwrap();
}

/// The hub reads a little at a time: sending alone would take longer than the deadline, and so would the answer.
#[test]
fn connecting_sending_and_the_answer_have_one_deadline() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let reading = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 512];
        let mut read = 0;
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            read += count;
            std::thread::sleep(Duration::from_millis(1));
        }
        read
    });
    let timeout = Duration::from_millis(300);
    let mut client =
        Client::new(ClientOptions { connect_timeout: DEADLINE, answer_timeout: timeout, ..ClientOptions::new(&place.socket()) });
    let body = vec![0; 1_000_000];
    let mut outcome = Ok(());
    let mut calls = 0;
    // The first ones may fit the socket's buffers.
    while outcome.is_ok() {
        outcome = client.publish(&publish("c", Payload::Binary(&body)));
        calls += 1;
        assert!(calls < 100, "nothing stopped it");
    }
    assert!(matches!(outcome, Err(ClientError::Timeout { waited }) if waited == timeout), "{outcome:?}");
    drop(client);
    // It was in the middle of a frame: what the reader had of it is not whole.
    assert!(reading.join().unwrap() < calls * body.len());
}

#[test]
fn one_hub_serves_a_socket() {
    let place = Place::new();
    let _hub = place.hub();
    let second = Hub::start(config(|config| config.socket = Some(place.socket().to_str().unwrap().into())));
    assert!(matches!(second, Err(StartError::Bus(BusBindError::InUse { .. }))));
}

/// Reads until the hub closes; a reset is a close too.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn bad_frames_cost_their_own_connection_only() {
    let place = Place::new();
    let hub = place.hub();
    let mut healthy = place.client();
    let hello = b"\x0d\0\0\0\x01RTBS\x01\0\x01\0\0\0\0\0";
    let mut number = 0;
    for (greet, bytes) in [
        (false, &b"GET / HTTP/1.1\r\n\r\n"[..]),
        (false, b"\0\0\0\0"),
        (false, b"\xff\xff\xff\xff"),
        (false, b"\x05\0\0\0\x04\x01\0\0\0"),
        (true, b"\x01\0\0\0\x7f"),
        (true, b"\x02\0\0\0\x02\x01"),
        (true, b"\x09\0\0\0\x02\0\0\0\0\xff\0\0\0"),
    ] {
        let mut stream = UnixStream::connect(place.socket()).unwrap();
        if greet {
            stream.write_all(hello).unwrap();
        }
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:x?}");
        number += 1;
        assert_eq!(healthy.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap().position.offset, number);
    }
    eventually("all are counted", || hub.stats().bus_errors == number);
}

#[test]
fn a_frame_that_is_cut_is_never_acted_on() {
    let place = Place::new();
    let hub = place.hub();
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    stream.write_all(b"\x0d\0\0\0\x01RTBS\x01\0\x01\0\0\0\0\0").unwrap();
    let mut frame = Vec::new();
    realtime_core::bus::frame::Request::Publish { request: 1, publish: publish("c", Payload::Text("whole")) }.write(&mut frame);
    for byte in &frame {
        stream.write_all(std::slice::from_ref(byte)).unwrap();
    }
    eventually("the whole one is accepted", || hub.stats().published == 1);
    stream.write_all(&frame[..frame.len() - 1]).unwrap();
    drop(stream);
    let mut client = place.client();
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap().position.offset, 2);
}

#[test]
fn floods_from_many_processes_lose_nothing() {
    let place = Place::new();
    let hub = place.hub();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut client = place.client();
            scope.spawn(move || {
                let channel = format!("flood-{thread}");
                for _ in 0..10_000 {
                    client.publish(&publish(&channel, Payload::Text("x"))).unwrap();
                }
                let last = client.publish_with_receipt(&publish(&channel, Payload::Text("x"))).unwrap();
                assert_eq!(last.position.offset, 10_001);
            });
        }
    });
    assert_eq!(hub.stats().published, 40_004);
}

fn app(name: &str, uids: &[u32]) -> AppConfig {
    AppConfig { name: name.into(), uids: uids.to_vec(), ..AppConfig::default() }
}

#[test]
fn a_connection_is_in_the_app_that_it_names() {
    let place = Place::new();
    let hub = |place: &Place| {
        let socket = place.socket();
        start(|config| {
            config.socket = Some(socket.to_str().unwrap().into());
            config.apps = vec![app("shop", &[]), app("blog", &[])];
        })
    };
    let first = hub(&place);
    let mut client = place.client();
    // Each has a count of its own.
    let mut offset = |app: &str| {
        client.use_app(app);
        client.publish_with_receipt(&publish("c", Payload::Text("x"))).map(|receipt| receipt.position.offset)
    };
    for (app, expected) in [("shop", 1), ("shop", 2), ("", 1), ("blog", 1), ("shop", 3), ("default", 2)] {
        assert_eq!(offset(app).unwrap(), expected, "{app}");
    }
    let unknown = offset("shpo");
    assert!(
        matches!(&unknown, Err(ClientError::Refused { code: FailureCode::InvalidMessage, message }) if message.contains("did you mean `shop`")),
        "{unknown:?}"
    );
    assert_eq!(offset("shop").unwrap(), 4);
    // A connection that is made anew is in the same one.
    assert!(first.stop(Duration::from_secs(10)).complete);
    let _second = hub(&place);
    client.publish(&publish("c", Payload::Text("x"))).unwrap();
    client.use_app("");
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap().position.offset, 1);
    client.use_app("shop");
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap().position.offset, 2);
}

#[test]
fn a_system_user_may_be_bound_to_an_app() {
    let place = Place::new();
    let own = rustix::process::geteuid().as_raw();
    let socket = place.socket();
    let bind = |uids: [&[u32]; 2]| {
        Hub::start(config(|config| {
            config.socket = Some(socket.to_str().unwrap().into());
            config.apps = vec![app("shop", uids[0]), app("blog", uids[1])];
        }))
    };
    assert!(matches!(bind([&[1, own], &[own]]), Err(StartError::Config(_))), "one user in two apps");
    let hub = bind([&[1], &[own]]).unwrap();
    let mut client = place.client();
    client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap();
    assert_eq!(hub.app("blog").unwrap().publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap().position.offset, 2);
    client.use_app("blog");
    assert_eq!(client.publish_with_receipt(&publish("c", Payload::Text("x"))).unwrap().position.offset, 3);
    for other in ["shop", "default"] {
        client.use_app(other);
        let outcome = client.publish_with_receipt(&publish("c", Payload::Text("x")));
        assert!(matches!(outcome, Err(ClientError::Refused { code: FailureCode::Unauthorized, .. })), "{outcome:?}");
    }
    // Watching is for who may see all of it.
    client.use_app("blog");
    let outcome = client.tail("*", || (), |_| true);
    assert!(matches!(outcome, Err(ClientError::Refused { code: FailureCode::Unauthorized, .. })), "{outcome:?}");
    assert_eq!(hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap().position.offset, 1);
}

/// Greets with versions; what the hub says to that.
fn greeting(place: &Place, oldest: u16, newest: u16) -> (Option<u16>, Option<FailureCode>) {
    use realtime_core::bus::frame::{Request, Response, frame_length};
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = Vec::new();
    Request::Hello { oldest, newest, pid: 1 }.write(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    while frame_length(&received).unwrap().is_none() {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it hung up");
        received.extend_from_slice(&buffer[..count]);
    }
    match Response::read(&received).unwrap() {
        Response::Welcome { version } => (Some(version), None),
        Response::Failure { code, .. } => (None, Some(code)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hub_and_client_speak_the_newest_version_that_both_know() {
    use realtime_core::bus::frame::{OLDEST_VERSION, VERSION};
    let place = Place::new();
    let _hub = place.hub();
    for (oldest, newest) in [(OLDEST_VERSION, VERSION), (OLDEST_VERSION, VERSION + 7), (0, VERSION), (0, u16::MAX)] {
        assert_eq!(greeting(&place, oldest, newest), (Some(VERSION), None), "{oldest}–{newest}");
    }
    // A client of each version that is still served.
    for version in OLDEST_VERSION..=VERSION {
        assert_eq!(greeting(&place, version, version), (Some(version), None));
    }
    for (oldest, newest) in [(VERSION + 1, VERSION + 7), (0, OLDEST_VERSION - 1)] {
        assert_eq!(greeting(&place, oldest, newest), (None, Some(FailureCode::Unsupported)), "{oldest}–{newest}");
    }
}

#[test]
fn a_repeated_key_is_published_and_counted_once() {
    let place = Place::new();
    let hub = place.hub();
    let mut client = place.client();
    let publish = BusPublish { id: Some("k"), ..publish("c", Payload::Text("x")) };
    let receipts: Vec<_> = (0..3).map(|_| client.publish_with_receipt(&publish).unwrap().position.offset).collect();
    assert_eq!((receipts, hub.stats().published), (vec![1, 1, 1], 1));
}

#[test]
fn a_status_says_which_hub_it_is() {
    let place = Place::new();
    let hub = place.hub();
    hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
    let status: Value = place.client().query(&BusQuery::Status).unwrap();
    assert_eq!(status["published"], 1);
    assert_eq!(status["pid"], std::process::id());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["listen"], hub.local_addr().to_string());
    assert!(status["memory_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    assert!(status["open_files"]["used"].as_u64().unwrap() > 3, "{status}");
}

#[tokio::test]
async fn a_watcher_sees_what_is_published_and_to_how_many() {
    let place = Place::new();
    let hub = place.hub();
    let _subscriber = WebSocket::subscribed(&hub, "news").await;
    let (began, beginning) = std::sync::mpsc::channel();
    let mut watcher = place.client();
    let watching = std::thread::spawn(move || {
        let mut seen: Vec<Value> = Vec::new();
        let ended = watcher.tail(
            "n*",
            || began.send(()).unwrap(),
            |line| {
                seen.push(serde_json::from_str(line).unwrap());
                seen.len() < 3
            },
        );
        (ended, seen)
    });
    beginning.recv_timeout(DEADLINE).unwrap();
    let mut client = place.client();
    client.publish_with_receipt(&publish("other", Payload::Text("x"))).unwrap();
    client.publish_with_receipt(&publish("news", Payload::Json("{\"n\":1}"))).unwrap();
    hub.publish(&Publish::new("nobody", "e", Payload::Text("hi"))).unwrap();
    hub.publish(&Publish::new("news", "e", Payload::Binary(b"\xff"))).unwrap();
    let (ended, seen) = watching.join().unwrap();
    ended.unwrap();
    let short: Vec<_> = seen.iter().map(|line| json!([line["channel"], line["matched"], line["offset"], line["data"]])).collect();
    assert_eq!(short, [json!(["news", 1, 1, {"n": 1}]), json!(["nobody", 0, 1, "hi"]), json!(["news", 1, 2, null])]);
}

#[test]
fn a_watcher_that_does_not_read_delays_nobody_and_is_told_what_it_missed() {
    let place = Place::new();
    let hub = place.hub();
    let (began, beginning) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let mut watcher = place.client();
    let watching = std::thread::spawn(move || {
        let (mut shown, mut dropped) = (0, 0);
        let ended = watcher.tail(
            "*",
            || {
                began.send(()).unwrap();
                may_go_on.recv().unwrap();
            },
            |line| {
                let line: Value = serde_json::from_str(line).unwrap();
                match line["dropped"].as_u64() {
                    Some(count) => dropped += count,
                    None => shown += 1,
                }
                line["channel"] != "last"
            },
        );
        (ended, shown, dropped)
    });
    beginning.recv_timeout(DEADLINE).unwrap();
    // More than the socket's buffers and the tap hold together.
    let body = "x".repeat(4_000);
    for _ in 0..5_000 {
        hub.publish(&Publish::new("c", "e", Payload::Text(&body))).unwrap();
    }
    assert_eq!(place.client().query::<Value>(&BusQuery::Status).unwrap()["published"], 5_000);
    go_on.send(()).unwrap();
    // It may be dropped too, while the watcher catches up; then there is another one.
    let mut last = 0;
    eventually("the watcher has caught up", || {
        last += 1;
        hub.publish(&Publish::new("last", "e", Payload::Text("x"))).unwrap();
        watching.is_finished()
    });
    let (ended, shown, dropped) = watching.join().unwrap();
    ended.unwrap();
    assert!(dropped > 0 && shown > 1_024, "{shown} shown, {dropped} dropped");
    assert!(shown + dropped >= 5_001 && shown + dropped <= 5_000 + last, "{shown} shown, {dropped} dropped, {last} last");
}

#[test]
fn two_taps_on_one_connection_and_wrong_questions_are_refused() {
    use realtime_core::bus::frame::{Request, Response, frame_length};
    let place = Place::new();
    let _hub = place.hub();
    let mut stream = UnixStream::connect(place.socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut bytes = b"\x0d\0\0\0\x01RTBS\x01\0\x01\0\0\0\0\0".to_vec();
    for (request, query) in [(1, r#"{"op":"tail","pattern":"*"}"#), (2, r#"{"op":"tail","pattern":"*"}"#), (3, r#"{"op":"tail"}"#)] {
        Request::Query { request, query }.write(&mut bytes);
    }
    stream.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    let mut answers = Vec::new();
    while answers.len() < 4 {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the hub closed after {answers:?}");
        received.extend_from_slice(&buffer[..count]);
        while let Some(length) = frame_length(&received).unwrap() {
            let rest = received.split_off(length);
            answers.push(match Response::read(&std::mem::replace(&mut received, rest)).unwrap() {
                Response::Welcome { .. } => (0, None),
                Response::Answer { request, .. } => (request, None),
                Response::Failure { request, code, .. } => (request, Some(code)),
                other => panic!("{other:?}"),
            });
        }
    }
    assert_eq!(answers, [(0, None), (1, None), (2, Some(FailureCode::InvalidMessage)), (3, Some(FailureCode::Unsupported))]);
}

/// The listener lives on in this process, as it does in systemd; only the hub is another one.
#[test]
fn a_restart_behind_a_listener_that_was_handed_over_fails_no_publication() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    let start = || realtime_core::HubBuilder::new(config(|_| {})).bus_listener(listener.try_clone().unwrap()).start().unwrap();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let count = std::sync::Arc::new(AtomicU32::new(0));
    let sent = {
        let (done, count, mut client) = (done.clone(), count.clone(), place.client());
        std::thread::spawn(move || {
            // Between hubs the backlog and the socket's buffer take them; a full one is not what this is about.
            while !done.load(Ordering::Relaxed) {
                client.publish(&publish("c", Payload::Text("x"))).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        })
    };
    let mut published = 0;
    for _ in 0..5 {
        let hub = start();
        let before = count.load(Ordering::Relaxed);
        eventually("this hub has a share of them", || hub.stats().published > 100 && count.load(Ordering::Relaxed) > before + 100);
        assert!(hub.stop(Duration::from_secs(20)).complete);
        let stats = hub.stats();
        assert_eq!((stats.bus_refused, stats.bus_errors), (0, 0));
        published += stats.published;
        assert!(place.socket().exists());
    }
    done.store(true, Ordering::Relaxed);
    // Whatever was sent since then waits for this one.
    let hub = start();
    sent.join().unwrap();
    let total = u64::from(count.load(Ordering::Relaxed));
    eventually("the rest has come", || published + hub.stats().published >= total);
    assert_eq!(published + hub.stats().published, total);
}

#[test]
fn what_a_process_has_sent_is_carried_out_after_its_end() {
    let place = Place::new();
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).unwrap();
    // More than the hub reads at once, and nobody is left to take its welcome.
    let body = "x".repeat(1_000);
    let mut client = place.client();
    for _ in 0..150 {
        client.publish(&publish("c", Payload::Text(&body))).unwrap();
    }
    drop(client);
    let hub = realtime_core::HubBuilder::new(config(|_| {})).bus_listener(listener).start().unwrap();
    eventually("all have been published", || hub.stats().published == 150);
    assert_eq!(hub.stats().bus_errors, 0);
}

#[test]
fn connections_that_wait_when_a_hub_is_told_to_stop_are_read_too() {
    let place = Place::new();
    let hub = place.hub();
    for number in 1..=50 {
        // None of them has been accepted for certain.
        let mut client = place.client();
        client.publish(&publish(&number.to_string(), Payload::Text("x"))).unwrap();
    }
    assert!(hub.stop(Duration::from_secs(20)).complete);
    assert_eq!(hub.stats().published, 50);
}

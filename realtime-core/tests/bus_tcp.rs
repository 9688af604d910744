//! The bus over TCP: both sides prove that they know the secret, and nothing on the way can be
//! changed, repeated or made up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client, ClientError, ClientOptions};
use realtime_core::bus::frame::{BusQuery, Request, Response, frame_length};
use realtime_core::bus::seal::{Handshake, MIN_SECRET_BYTES, NONCE_BYTES, Role};
use realtime_core::{Epoch, Hub, Position, Receipt, StartError, User};
use realtime_testkit::bus::{broadcast_and_exit, broadcast_as_told, publication as publish, publishes_in_order, survives_restarts};
use realtime_testkit::{Client as WebSocket, DEADLINE, config, eventually, fresh_directory, start};
use serde_json::Value;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn hub() -> Hub {
    start(|config| {
        config.socket = Some("tcp://127.0.0.1:0".into());
        config.secret = SECRET.into();
    })
}

fn client_of(address: SocketAddr, secret: &str) -> Client {
    Client::new(ClientOptions {
        secret: secret.into(),
        connect_timeout: DEADLINE,
        answer_timeout: DEADLINE,
        ..ClientOptions::probing(vec![BusAddress::Tcp(address.to_string())])
    })
}

fn client(hub: &Hub) -> Client {
    client_of(hub.bus_addr().unwrap(), SECRET)
}

#[tokio::test]
async fn whoever_knows_the_secret_publishes_in_order_asks_and_disconnects() {
    let hub = hub();
    let mut subscriber = WebSocket::subscribed(&hub, "c").await;
    hub.set_user(subscriber.socket_id(), Some(User::new("7", None).unwrap())).unwrap();
    let mut client = client(&hub);
    let published = publishes_in_order(&hub, &mut client).await;
    assert_eq!(client.query::<Value>(&BusQuery::Stats).unwrap()["published"], published);
    let closed: usize = client.query(&BusQuery::DisconnectUser { user: "7".into(), code: 4009, reason: "bye".into() }).unwrap();
    assert_eq!((closed, subscriber.closed().await.0), (1, 4009));
}

#[test]
fn publications_that_go_together_are_sealed_each() {
    let hub = hub();
    let mut client = client(&hub);
    let mut next = 1;
    for count in [2, 64, 65] {
        let receipts = client.publish_with_receipts(&vec![publish("c", "x"); count]).unwrap();
        let offsets: Vec<u64> = receipts.iter().map(|receipt| receipt.position.offset).collect();
        assert_eq!(offsets, (next..next + count as u64).collect::<Vec<_>>());
        next += count as u64;
    }
    let huge = "x".repeat(1 << 20);
    for publishes in [[publish("c", &huge), publish("c", "x")], [publish("c", "x"), publish("c", &huge)]] {
        assert!(matches!(client.publish_with_receipts(&publishes), Err(ClientError::TooLarge { .. })));
    }
    assert_eq!(client.publish_with_receipt(&publish("c", "x")).unwrap().position.offset, next + 1, "over the same connection");
}

#[test]
fn what_a_process_has_broadcast_at_its_end_is_carried_out() {
    broadcast_as_told(|address| client_of(address.parse().unwrap(), SECRET));
    let hub = hub();
    let mut published = 0;
    // Less and more than the network takes before the hub has said anything, and than the hub reads at once.
    for count in [1, 30, 200, 2_000, 20_000] {
        broadcast_and_exit("what_a_process_has_broadcast_at_its_end_is_carried_out", count, &hub.bus_addr().unwrap().to_string());
        published += count;
        eventually("all of it has come", || hub.stats().published == published);
    }
    assert_eq!(hub.stats().bus_errors, 0);
}

/// A hub that welcomes one peer and then stands still: answers a publication that waits for it, and reads to the end, each when it
/// is told to. Returns how many publications there were.
fn slow_hub() -> (SocketAddr, mpsc::Sender<()>, thread::JoinHandle<usize>) {
    // The system takes little for it: the rest stands at its peer's.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(8).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let (go, told) = mpsc::channel();
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut buffer = [0; 41];
        stream.read_exact(&mut buffer).unwrap();
        let handshake = Handshake::new(SECRET.as_bytes(), buffer[9..].try_into().unwrap(), [2; NONCE_BYTES]);
        let mut bytes = Vec::new();
        Response::Challenge { nonce: [2; NONCE_BYTES], proof: handshake.proof(Role::Hub) }.write(&mut bytes);
        stream.write_all(&bytes).unwrap();
        // The proof, and the sealed hello.
        stream.read_exact(&mut [0; 37 + 17 + 16]).unwrap();
        let mut seal = handshake.seal(Role::Hub);
        let mut say = |stream: &mut TcpStream, response: Response<'_>| {
            let mut frame = Vec::new();
            response.write(&mut frame);
            let tag = seal.tag([&frame, b""]);
            frame.extend_from_slice(&tag);
            stream.write_all(&frame).unwrap();
        };
        say(&mut stream, Response::Welcome { version: 1 });
        told.recv().unwrap();
        let mut count = 0;
        let mut frame = vec![0; 4];
        while stream.read_exact(&mut frame).is_ok() {
            frame.resize(4 + u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize + 16, 0);
            stream.read_exact(&mut frame[4..]).unwrap();
            if let Request::Publish { request, .. } = Request::read(&frame[..frame.len() - 16]).unwrap() {
                count += 1;
                if request != 0 {
                    let position = Position { epoch: Epoch(1), offset: count as u64 };
                    say(&mut stream, Response::Receipt { request, receipt: Receipt { position, matched: 0 } });
                }
            }
            frame.truncate(4);
        }
        count
    });
    (address, go, serving)
}

#[test]
fn what_stands_at_a_process_when_it_ends_still_goes_to_a_hub_that_is_late() {
    broadcast_as_told(|address| client_of(address.parse().unwrap(), SECRET));
    let (address, go, serving) = slow_hub();
    broadcast_and_exit("what_stands_at_a_process_when_it_ends_still_goes_to_a_hub_that_is_late", 300, &address.to_string());
    go.send(()).unwrap();
    assert_eq!(serving.join().unwrap(), 300);
}

#[test]
fn behind_a_late_answer_nothing_is_accepted_that_it_could_cost() {
    let (address, go, serving) = slow_hub();
    let mut client = client_of(address, SECRET);
    client.publish(&publish("c", "x")).unwrap();
    client.answer_within(Duration::from_millis(50));
    assert!(matches!(client.publish_with_receipt(&publish("c", "x")), Err(ClientError::Timeout { .. })));
    eventually("the pause is over", || match client.publish(&publish("c", "x")) {
        Err(ClientError::Timeout { .. }) => true,
        Err(ClientError::Paused { .. }) => false,
        other => panic!("{other:?}"),
    });
    go.send(()).unwrap();
    client.answer_within(DEADLINE);
    eventually("it is published", || client.publish(&publish("c", "x")).is_ok());
    drop(client);
    assert_eq!(serving.join().unwrap(), 3);
}

#[test]
fn a_watcher_sees_what_is_published() {
    let hub = hub();
    let (began, beginning) = mpsc::channel();
    let mut watcher = client(&hub);
    let watching = thread::spawn(move || {
        let mut lines = Vec::new();
        let ended = watcher.tail(
            "*",
            || began.send(()).unwrap(),
            |line| {
                lines.push(line.to_owned());
                lines.len() < 300
            },
        );
        ended.map(|()| lines)
    });
    beginning.recv_timeout(DEADLINE).unwrap();
    let mut client = client(&hub);
    for _ in 0..300 {
        client.publish(&publish("c", "x")).unwrap();
    }
    assert_eq!(watching.join().unwrap().unwrap().len(), 300);
}

#[test]
fn one_hub_serves_a_path_and_an_address() {
    let place = fresh_directory("realtime-both");
    let path = place.join("hub.sock");
    let hub = start(|config| {
        config.socket = Some(format!("{}, tcp://127.0.0.1:0", path.display()));
        config.secret = SECRET.into();
    });
    let both = vec![BusAddress::Unix(path.clone()), BusAddress::Tcp(hub.bus_addr().unwrap().to_string())];
    for addresses in [both.clone(), both.into_iter().rev().collect()] {
        let options = ClientOptions { secret: SECRET.into(), ..ClientOptions::probing(addresses) };
        let mut client = Client::new(ClientOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..options });
        client.publish_with_receipt(&publish("c", "x")).unwrap();
    }
    assert_eq!(hub.stats().published, 2);
    assert!(hub.stop(Duration::from_secs(10)).complete);
    assert!(!path.exists());
    std::fs::remove_dir_all(place).unwrap();
}

#[test]
fn a_secret_has_at_least_32_bytes_and_a_bus_over_tcp_has_one() {
    let text = "x".repeat(MIN_SECRET_BYTES + 1);
    for (socket, secret, good) in [
        ("tcp://127.0.0.1:0", "", false),
        ("tcp://127.0.0.1:0", &text[..MIN_SECRET_BYTES - 1], false),
        ("tcp://127.0.0.1:0", &text[..MIN_SECRET_BYTES], true),
        ("tcp://127.0.0.1:0", &text, true),
        ("", "", true),
        ("", &text[..MIN_SECRET_BYTES - 1], false),
        ("tcp://127.0.0.1:0,tcp://127.0.0.1:0", &text, false),
    ] {
        let started = Hub::start(config(|config| {
            config.socket = Some(socket.into());
            config.secret = secret.into();
        }));
        assert_eq!(started.is_ok(), good, "{socket} {}", secret.len());
        assert!(good || matches!(started, Err(StartError::Config(_))));
    }
}

fn refused(outcome: Result<impl std::fmt::Debug, ClientError>) -> String {
    match outcome {
        Err(ClientError::Connect { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => source.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_does_not_know_the_secret_is_not_let_in() {
    let hub = hub();
    let mut good = client(&hub);
    good.publish_with_receipt(&publish("c", "x")).unwrap();
    // It is the client that sees it first: the hub's proof is not what it expects.
    let wrong = SECRET.replace('0', "1");
    assert_eq!(refused(client_of(hub.bus_addr().unwrap(), &wrong).publish(&publish("c", "x"))), "it does not know the secret");
    // One that does not look gets a word and the door.
    let mut stream = TcpStream::connect(hub.bus_addr().unwrap()).unwrap();
    let mut bytes = Vec::new();
    Request::Knock { nonce: [1; NONCE_BYTES] }.write(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let Message::Challenge(nonce) = read_frame(&mut stream) else { panic!("no challenge") };
    bytes.clear();
    let proof = Handshake::new(wrong.as_bytes(), [1; NONCE_BYTES], nonce).proof(Role::Client);
    Request::Proof { proof }.write(&mut bytes);
    Request::Hello { oldest: 1, newest: 1, pid: 1 }.write(&mut bytes);
    Request::Publish { request: 0, publish: publish("c", "x") }.write(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let Message::Failure(text) = read_frame(&mut stream) else { panic!("no failure") };
    assert_eq!(text, "the secret is not the hub's");
    assert!(is_closed(&mut stream));
    // Nor does a Unix peer's beginning open the door, or anything else.
    for bytes in
        [&b"\x0d\0\0\0\x01RTBS\x01\0\x01\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x05\0\0\0\x05RTBS", b"\xff\xff\xff\xff", b"\0\0\0\0"]
    {
        let mut stream = TcpStream::connect(hub.bus_addr().unwrap()).unwrap();
        stream.write_all(bytes).unwrap();
        assert!(is_closed(&mut stream), "{bytes:x?}");
    }
    eventually("all are counted", || hub.stats().bus_errors == 6);
    good.publish_with_receipt(&publish("c", "x")).unwrap();
    assert_eq!(hub.stats().published, 2);
}

/// What stands in the middle sees everything that both sides say.
#[test]
fn what_was_recorded_is_of_no_use() {
    let hub = hub();
    let proxy = Proxy::before(hub.bus_addr().unwrap(), |_, bytes| bytes);
    let mut client = client_of(proxy.address, SECRET);
    client.publish_with_receipt(&publish("c", "x")).unwrap();
    client.forget();
    let (said, heard) = proxy.recorded();
    // To the hub, all that the client said.
    let mut stream = TcpStream::connect(hub.bus_addr().unwrap()).unwrap();
    stream.write_all(&said).unwrap();
    assert!(is_closed(&mut stream));
    assert_eq!(hub.stats().published, 1);
    // To a client, all that the hub said; and what the client says, said back to it.
    for mirror in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = heard.clone();
        let (leaked, leaks) = mpsc::channel();
        let impostor = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut knock = [0; 41];
            stream.read_exact(&mut knock).unwrap();
            let mut answer = heard;
            if mirror {
                answer.truncate(69);
                answer[5..37].copy_from_slice(&knock[9..41]);
                answer[37..69].copy_from_slice(&knock[9..41]);
            }
            stream.write_all(&answer).unwrap();
            let mut rest = Vec::new();
            drop(stream.read_to_end(&mut rest));
            leaked.send(rest).unwrap();
        });
        assert_eq!(refused(client_of(address, SECRET).publish(&publish("c", "secret"))), "it does not know the secret");
        assert!(leaks.recv_timeout(DEADLINE).unwrap().is_empty(), "it was told something");
        impostor.join().unwrap();
    }
}

#[test]
fn a_frame_that_is_changed_or_repeated_on_the_way_ends_its_connection_and_nothing_else() {
    let hub = hub();
    let mut good = client(&hub);
    for fault in ["changed", "repeated", "cut"] {
        let published = hub.stats().published;
        let errors = hub.stats().bus_errors;
        let proxy = Proxy::before(hub.bus_addr().unwrap(), move |direction, mut bytes| {
            if direction == Direction::ToHub
                && let Some(at) = bytes.windows(6).position(|window| window == b"target")
            {
                match fault {
                    "changed" => bytes[at] = b'T',
                    "repeated" => bytes.extend_from_within(..),
                    _ => drop(bytes.remove(at)),
                }
            }
            bytes
        });
        let mut client = client_of(proxy.address, SECRET);
        client.query::<Value>(&BusQuery::Stats).unwrap();
        client.publish(&publish("target", "x")).unwrap();
        if fault == "cut" {
            // It is not whole without the first byte of the next one.
            client.publish(&publish("other", "x")).unwrap();
        }
        eventually("the hub has closed it", || hub.stats().bus_errors == errors + 1);
        // The first of two that are the same is as good as ever.
        assert_eq!(hub.stats().published, published + u64::from(fault == "repeated"), "{fault}");
        good.publish_with_receipt(&publish("c", "x")).unwrap();
    }
}

#[test]
fn an_answer_that_is_changed_on_the_way_is_not_believed() {
    let hub = hub();
    let proxy = Proxy::before(hub.bus_addr().unwrap(), |direction, mut bytes| {
        if direction == Direction::ToClient
            && let Some(at) = bytes.windows(11).position(|window| window == b"\"published\"")
        {
            bytes[at + 1] = b'P';
        }
        bytes
    });
    let outcome = client_of(proxy.address, SECRET).query::<Value>(&BusQuery::Stats);
    assert!(matches!(&outcome, Err(ClientError::Protocol(text)) if text.contains("tampered")), "{outcome:?}");
}

#[test]
fn a_call_survives_a_restart_of_the_hub() {
    let first = hub();
    let address = first.bus_addr().unwrap();
    let again = move || {
        start(|config| {
            config.socket = Some(format!("tcp://{address}"));
            config.secret = SECRET.into();
        })
    };
    survives_restarts(client_of(address, SECRET), first, again);
}

#[test]
fn a_hub_that_stands_still_costs_one_deadline() {
    // Accepts into its backlog and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = BusAddress::Tcp(silent.local_addr().unwrap().to_string());
    let options =
        ClientOptions { secret: SECRET.into(), answer_timeout: Duration::from_millis(50), ..ClientOptions::probing(vec![address]) };
    let mut client = Client::new(options);
    assert!(
        matches!(client.publish(&publish("c", "x")), Err(ClientError::Connect { source, .. }) if source.kind() == io::ErrorKind::WouldBlock)
    );
    assert!(matches!(client.publish(&publish("c", "x")), Err(ClientError::Paused { .. })));
}

#[test]
fn strangers_that_say_nothing_keep_nobody_out_for_long() {
    let hub = hub();
    let mut inside = client(&hub);
    inside.publish_with_receipt(&publish("c", "x")).unwrap();
    // As many as there is room for at the door, and one less and more.
    for count in [127, 128, 129, 200] {
        let strangers: Vec<_> = (0..count).map(|_| TcpStream::connect(hub.bus_addr().unwrap()).unwrap()).collect();
        inside.publish_with_receipt(&publish("c", "x")).unwrap();
        // It waits its turn; nobody is turned away.
        client(&hub).publish_with_receipt(&publish("c", "x")).unwrap();
        drop(strangers);
    }
}

#[test]
fn past_the_most_connections_the_next_one_waits_until_one_ends() {
    let hub = start(|config| {
        config.socket = Some("tcp://127.0.0.1:0".into());
        config.secret = SECRET.into();
        config.limits.max_bus_connections = 2;
    });
    let (mut first, mut second) = (client(&hub), client(&hub));
    first.publish_with_receipt(&publish("c", "x")).unwrap();
    second.publish_with_receipt(&publish("c", "x")).unwrap();
    let mut hasty = client(&hub);
    hasty.answer_within(Duration::from_millis(100));
    assert!(matches!(hasty.publish(&publish("c", "x")), Err(ClientError::Connect { .. })));
    drop(hasty);
    let mut third = client(&hub);
    let waiting = thread::spawn(move || third.publish_with_receipt(&publish("c", "x")).map(|receipt| receipt.position.offset));
    second.publish_with_receipt(&publish("c", "x")).unwrap();
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), 4);
    assert_eq!((hub.stats().published, hub.stats().bus_refused), (4, 0));
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToHub,
    ToClient,
}

/// Stands between a client and a hub, keeps what they say and may change it.
struct Proxy {
    address: SocketAddr,
    recorded: mpsc::Receiver<(Vec<u8>, Vec<u8>)>,
}

impl Proxy {
    fn before(hub: SocketAddr, change: impl Fn(Direction, Vec<u8>) -> Vec<u8> + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, recorded) = mpsc::channel();
        thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let hub = TcpStream::connect(hub).unwrap();
            let change = &change;
            let both = thread::scope(|scope| {
                let said = scope.spawn(|| pass(&client, &hub, |bytes| change(Direction::ToHub, bytes)));
                let heard = pass(&hub, &client, |bytes| change(Direction::ToClient, bytes));
                (said.join().unwrap(), heard)
            });
            drop(sender.send(both));
        });
        Proxy { address, recorded }
    }

    fn recorded(&self) -> (Vec<u8>, Vec<u8>) {
        self.recorded.recv_timeout(DEADLINE).unwrap()
    }
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
        if to.write_all(&change(buffer[..count].to_vec())).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
    all
}

enum Message {
    Challenge([u8; 32]),
    Failure(String),
    Other,
}

fn read_frame(stream: &mut TcpStream) -> Message {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).unwrap();
    frame.resize(4 + u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, 0);
    stream.read_exact(&mut frame[4..]).unwrap();
    assert_eq!(frame_length(&frame), Ok(Some(frame.len())));
    match Response::read(&frame).unwrap() {
        Response::Challenge { nonce, .. } => Message::Challenge(nonce),
        Response::Failure { message, .. } => Message::Failure(message.to_owned()),
        _ => Message::Other,
    }
}

/// Reads until the hub closes; a reset is a close too.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

//! The bus over TLS: as over TCP, and nobody on the way can read it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client, ClientError, ClientOptions};
use realtime_core::bus::frame::BusQuery;
use realtime_core::hooks::Kind;
use realtime_core::{Config, Hub};
use realtime_testkit::bus::{broadcast_and_exit, broadcast_as_told, publication as publish, publishes_in_order, survives_restarts};
use realtime_testkit::{Certified, Client as WebSocket, DEADLINE, config, eventually, start};
use serde_json::Value;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A hub over TLS with this certificate, on this port of localhost or a free one.
fn certified(certificate: &Path, key: &Path, port: u16) -> impl FnOnce(&mut Config) {
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    move |config| {
        config.socket = Some(format!("tls://127.0.0.1:{port}"));
        config.secret = SECRET.into();
        config.socket_cert = certificate;
        config.socket_key = key;
    }
}

fn hub_of(own: &Certified) -> Hub {
    start(certified(&own.certificate(), &own.key(), 0))
}

fn options(address: BusAddress, ca_file: &Path) -> ClientOptions {
    ClientOptions {
        secret: SECRET.into(),
        ca_file: ca_file.display().to_string(),
        connect_timeout: DEADLINE,
        answer_timeout: DEADLINE,
        ..ClientOptions::probing(vec![address])
    }
}

fn client_of(address: &str, bound: SocketAddr, trusts: &Certified) -> Client {
    Client::new(options(BusAddress::Tls(format!("{address}:{}", bound.port())), &trusts.certificate()))
}

fn client(hub: &Hub, trusts: &Certified) -> Client {
    client_of("localhost", hub.bus_addr().unwrap(), trusts)
}

/// Why a hub was not spoken to.
fn refused(client: &mut Client) -> String {
    match client.publish(&publish("c", "x")) {
        Err(ClientError::Connect { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => source.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn publications_receipts_and_questions_go_over_tls_in_order() {
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    let mut client = client(&hub, &own);
    let published = publishes_in_order(&hub, &mut client).await;
    let numbers: Vec<String> = (1..=100).map(|number| number.to_string()).collect();
    let receipts = client.publish_with_receipts(&numbers.iter().map(|number| publish("d", number)).collect::<Vec<_>>()).unwrap();
    assert!(receipts.iter().map(|receipt| receipt.position.offset).eq(1..=100));
    assert_eq!(client.query::<Value>(&BusQuery::Stats).unwrap()["published"], published + 100);
    let left = client.certificate_expiry().unwrap().duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(86_400) && left <= Duration::from_secs(2 * 86_400), "{left:?}");
}

#[test]
fn answers_of_many_records_come_whole() {
    let own = Certified::new("DNS:localhost");
    let hub = start(|config| {
        certified(&own.certificate(), &own.key(), 0)(config);
        config.channels = serde_json::from_value(serde_json::json!([{"match": "*", "history": {"size": 100, "ttl_ms": 600_000}}])).unwrap();
    });
    let mut client = client(&hub, &own);
    let body = "y".repeat(60_000);
    for _ in 0..3 {
        client.publish(&publish("c", &body)).unwrap();
    }
    let query = BusQuery::History { channel: "c".into(), since: None, limit: Some(100), reverse: false };
    let answer = client.query::<Value>(&query).unwrap();
    assert_eq!(answer.to_string().matches(&body).count(), 3);
}

#[tokio::test]
async fn a_program_is_told_of_connections_and_both_sides_say_much_at_once() {
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    let mut program = client(&hub, &own);
    program.handle(vec![Kind::Connect, Kind::Message], Vec::new()).unwrap();
    let mut web = WebSocket::connect(&hub).await;
    let line = program.next_event(DEADLINE).unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["kind"], "connect");
    let large = "z".repeat(10_000);
    for number in 0..20 {
        web.send_json(serde_json::json!({"action": "message", "event": number.to_string(), "data": "z".repeat(1_000)})).await;
    }
    // Reads nothing meanwhile.
    for _ in 0..100 {
        program.publish(&publish("c", &large)).unwrap();
    }
    for number in 0..20 {
        let line = program.next_event(DEADLINE).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], number.to_string());
    }
    eventually("all are published", || hub.stats().published == 100);
}

#[test]
fn nobody_on_the_way_reads_it() {
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let between = listener.local_addr().unwrap();
    let (to_hub, from_client) = (TcpStream::connect(hub.bus_addr().unwrap()).unwrap(), move || listener.accept().unwrap().0);
    let seen = thread::spawn(move || {
        let client = from_client();
        thread::scope(|scope| {
            let back = scope.spawn(|| pass(&to_hub, &client));
            [pass(&client, &to_hub), back.join().unwrap()].concat()
        })
    });
    let mut client = client_of("localhost", between, &own);
    client.publish_with_receipt(&publish("canary", "a canary sings")).unwrap();
    drop(client);
    let seen = seen.join().unwrap();
    assert!(seen.len() > 500 && !seen.windows(6).any(|window| window == b"canary"));
}

fn pass(mut from: &TcpStream, mut to: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(std::net::Shutdown::Write));
    all
}

#[test]
fn a_hub_is_who_its_certificate_says_or_is_not_spoken_to() {
    let (own, other, expired) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"), Certified::expired("DNS:localhost"));
    let hub = hub_of(&own);
    let bound = hub.bus_addr().unwrap();
    assert!(refused(&mut client(&hub, &other)).contains("signed by nobody that is trusted here"));
    // As the system does, where nothing is said.
    let mut nothing = Client::new(options(BusAddress::Tls(format!("localhost:{}", bound.port())), Path::new("")));
    let said = match nothing.publish(&publish("c", "x")) {
        Err(ClientError::Connect { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(said.contains("signed by nobody that is trusted here") || said.contains("no certificates to trust"), "{said}");
    let said = refused(&mut client_of("127.0.0.1", bound, &own));
    assert!(said.contains("is for another name") && said.contains("localhost"), "{said}");
    let late = hub_of(&expired);
    assert_eq!(refused(&mut client(&late, &expired)), "its certificate has expired");
    let numbered = Certified::new("IP:127.0.0.1");
    let by_number = hub_of(&numbered);
    client_of("127.0.0.1", by_number.bus_addr().unwrap(), &numbered).publish_with_receipt(&publish("c", "x")).unwrap();
    // The secret is asked for all the same.
    let wrong = ClientOptions {
        secret: SECRET.replace('0', "1").as_str().into(),
        ..options(BusAddress::Tls(format!("localhost:{}", bound.port())), &own.certificate())
    };
    assert_eq!(refused(&mut Client::new(wrong)), "it does not know the secret");
    // A file of whom to trust that cannot be used is named.
    let nowhere = options(BusAddress::Tls(format!("localhost:{}", bound.port())), Path::new("/nowhere/ca.pem"));
    let said = Client::new(nowhere).publish(&publish("c", "x")).unwrap_err().to_string();
    assert!(said.contains("`socket_ca`: cannot read `/nowhere/ca.pem`"), "{said}");
    // Nobody who was refused has kept others out.
    client(&hub, &own).publish_with_receipt(&publish("c", "x")).unwrap();
    assert_eq!(hub.stats().published, 1);
}

#[test]
fn who_speaks_without_tls_or_with_it_where_there_is_none_costs_one_connection() {
    let own = Certified::new("DNS:localhost");
    let (hub, plain) = (
        hub_of(&own),
        start(|config| {
            config.socket = Some("tcp://127.0.0.1:0".into());
            config.secret = SECRET.into();
        }),
    );
    let mut good = client(&hub, &own);
    good.publish_with_receipt(&publish("c", "x")).unwrap();
    let mut without = Client::new(options(BusAddress::Tcp(hub.bus_addr().unwrap().to_string()), Path::new("")));
    assert!(refused(&mut without).contains("tls://"));
    eventually("it is counted", || hub.stats().bus_errors == 1);
    assert!(refused(&mut client(&plain, &own)).contains("is its address tcp://?"));
    eventually("it is counted", || plain.stats().bus_errors == 1);
    for (answer, text) in [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "is not TLS"), (b"", "it hung up")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let stranger = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // All of the greeting, or the end would overtake the answer.
            let mut head = [0; 5];
            stream.read_exact(&mut head).unwrap();
            let mut rest = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            stream.read_exact(&mut rest).unwrap();
            stream.write_all(answer).unwrap();
        });
        let said = refused(&mut client_of("localhost", bound, &own));
        assert!(said.contains(text), "{said}");
        stranger.join().unwrap();
    }
    good.publish_with_receipt(&publish("c", "x")).unwrap();
    assert_eq!((hub.stats().published, plain.stats().published), (2, 0));
}

#[test]
fn who_is_slow_to_shake_hands_keeps_nobody_out_and_is_not_kept() {
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    // Half of a greeting each, and nothing more.
    let mut strangers: Vec<_> = (0..100).map(|_| TcpStream::connect(hub.bus_addr().unwrap()).unwrap()).collect();
    for stranger in &mut strangers {
        stranger.write_all(b"\x16\x03\x01\x01\x00\x01").unwrap();
    }
    client(&hub, &own).publish_with_receipt(&publish("c", "x")).unwrap();
    for stranger in &mut strangers {
        stranger.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut rest = Vec::new();
        drop(stranger.read_to_end(&mut rest));
    }
    eventually("all are counted", || hub.stats().bus_errors == 100);
}

#[test]
fn a_hub_that_is_silent_in_the_handshake_costs_one_deadline() {
    let own = Certified::new("DNS:localhost");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = client_of("localhost", silent.local_addr().unwrap(), &own);
    client.answer_within(Duration::from_millis(100));
    let outcome = client.publish(&publish("c", "x"));
    assert!(
        matches!(&outcome, Err(ClientError::Connect { source, .. }) if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)),
        "{outcome:?}"
    );
    assert!(matches!(client.publish(&publish("c", "x")), Err(ClientError::Paused { .. })));
}

#[test]
fn a_call_survives_a_restart_of_the_hub() {
    let own = Certified::new("DNS:localhost");
    let first = hub_of(&own);
    let bound = first.bus_addr().unwrap();
    survives_restarts(client(&first, &own), first, || start(certified(&own.certificate(), &own.key(), bound.port())));
}

#[test]
fn what_was_written_before_a_stop_is_carried_out() {
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    let mut client = client(&hub, &own);
    for _ in 0..2_000 {
        client.publish(&publish("c", "x")).unwrap();
    }
    assert!(hub.stop(Duration::from_secs(30)).complete);
    assert_eq!(hub.stats().published, 2_000);
}

#[test]
fn what_a_process_has_broadcast_at_its_end_is_carried_out() {
    broadcast_as_told(|access| {
        let (address, ca_file) = access.split_once(' ').unwrap();
        Client::new(options(BusAddress::Tls(address.into()), Path::new(ca_file)))
    });
    let own = Certified::new("DNS:localhost");
    let hub = hub_of(&own);
    let access = format!("localhost:{} {}", hub.bus_addr().unwrap().port(), own.certificate().display());
    let mut published = 0;
    for count in [1, 200, 2_000] {
        broadcast_and_exit("what_a_process_has_broadcast_at_its_end_is_carried_out", count, &access);
        published += count;
        eventually("all of it has come", || hub.stats().published == published);
    }
    assert_eq!(hub.stats().bus_errors, 0);
}

#[test]
fn a_certificate_that_was_renewed_is_used_for_the_next_connection() {
    let (own, next) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"));
    let hub = hub_of(&own);
    let mut before = client(&hub, &own);
    before.publish_with_receipt(&publish("c", "1")).unwrap();
    // A pair that does not fit leaves the hub what it had.
    std::fs::copy(own.certificate(), own.certificate().with_file_name("old.pem")).unwrap();
    std::fs::write(own.certificate(), "no certificate").unwrap();
    let old = own.certificate().with_file_name("old.pem");
    let place = BusAddress::Tls(format!("localhost:{}", hub.bus_addr().unwrap().port()));
    Client::new(options(place.clone(), &old)).publish_with_receipt(&publish("c", "2")).unwrap();
    let trusted = next.certificate().with_file_name("trusted.pem");
    std::fs::copy(next.certificate(), &trusted).unwrap();
    next.replace(&own);
    Client::new(options(place.clone(), &trusted)).publish_with_receipt(&publish("c", "3")).unwrap();
    assert!(refused(&mut Client::new(options(place, &old))).contains("signed by nobody"));
    // The connection of before goes on.
    before.publish_with_receipt(&publish("c", "4")).unwrap();
    assert_eq!(hub.stats().published, 4);
}

#[test]
fn a_hub_does_not_start_without_a_usable_certificate_and_names_the_setting_and_the_file() {
    let (own, other) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"));
    let nothing = own.key().with_file_name("empty.pem");
    std::fs::write(&nothing, "").unwrap();
    let (certificate, key, nowhere) = (own.certificate(), own.key(), Path::new("/nowhere/x.pem"));
    let unset = Path::new("");
    for (certificate, key, setting, reason) in [
        (unset, &*key, "socket_cert", "is not set"),
        (&*certificate, unset, "socket_key", "is not set"),
        (nowhere, &*key, "socket_cert", "cannot read `/nowhere/x.pem`"),
        (&*certificate, nowhere, "socket_key", "cannot read `/nowhere/x.pem`"),
        (&*nothing, &*key, "socket_cert", "empty.pem` holds no certificate"),
        (&*certificate, &*nothing, "socket_key", "empty.pem` holds no private key"),
        (&*certificate, &*other.key(), "socket_key", "is not the key of the certificate in"),
    ] {
        let said = Hub::start(config(certified(certificate, key, 0))).err().map_or_else(String::new, |error| error.to_string());
        assert!(said.contains(&format!("`{setting}`")) && said.contains(reason), "{said}");
    }
    // Nor without a secret.
    let without = config(|config| {
        certified(&own.certificate(), &own.key(), 0)(config);
        config.secret = "".into();
    });
    assert!(Hub::start(without).err().unwrap().to_string().contains("needs a secret"));
}

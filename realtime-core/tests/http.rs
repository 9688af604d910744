//! Everything that happens before a connection is one: plain requests, bad handshakes, who may come in.

use std::io::ErrorKind;
use std::thread;

use realtime_testkit::hub::resident_bytes;
use realtime_testkit::pusher::{ApiRequest, app};
use realtime_testkit::raw::{RawClient, Response, upgrade};
use realtime_testkit::{Client, eventually, start};
use serde_json::Value;

fn without(line: &str) -> String {
    let head = upgrade("/ws", "");
    assert!(head.contains(line), "{line}");
    head.replace(line, "")
}

#[test]
fn health_answers_and_unknown_paths_do_not_exist() {
    let hub = start(|_| {});
    let mut client = RawClient::tcp(hub.local_addr());
    // On one connection: the answer to the first does not end it.
    for _ in 0..2 {
        client.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        let body: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!((response.status, body["status"].as_str(), body["connections"].as_u64()), (200, Some("ok"), Some(0)));
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
    for path in ["/", "/healthz", "/wsx", "/application/key", "/ws%2Fnews"] {
        let mut client = RawClient::tcp(hub.local_addr());
        client.write(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        let response = client.response();
        assert_eq!((response.status, response.code().as_str()), (404, "not_found"), "{path}");
        client.expect_end();
    }
    let mut client = RawClient::tcp(hub.local_addr());
    client.write(b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status, 405);
    assert_eq!(hub.stats().refused, 6);
}

#[test]
fn a_handshake_that_is_not_in_order_is_told_why() {
    let hub = start(|_| {});
    for (head, status, code) in [
        ("GET /ws HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 426, "upgrade_required"),
        (upgrade("/ws", "").replace("Upgrade: websocket", "Upgrade: h2c"), 426, "upgrade_required"),
        (upgrade("/ws", "").replace("Version: 13", "Version: 8"), 426, "unsupported_version"),
        (upgrade("/ws", "").replace("Version: 13", "Version: 13, 8"), 426, "unsupported_version"),
        (without("Sec-WebSocket-Version: 13\r\n"), 426, "unsupported_version"),
        (without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400, "bad_key"),
        (upgrade("/ws", "").replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ="), 400, "bad_key"),
        (upgrade("/ws", "").replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ!=="), 400, "bad_key"),
        (upgrade("/ws", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 400, "duplicate_header"),
        (upgrade("/ws", "Origin: http://127.0.0.1\r\nOrigin: http://evil.test\r\n"), 400, "duplicate_header"),
        (without("Connection: Upgrade\r\n"), 400, "bad_connection_header"),
        (without("Host: 127.0.0.1\r\n"), 400, "missing_host"),
        (upgrade("/ws", "Content-Length: 5\r\n") + "hello", 400, "unexpected_body"),
        (upgrade("/ws", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400, "unexpected_body"),
        (upgrade("/ws", "").replace("GET ", "POST "), 405, "method_not_allowed"),
        (upgrade("/ws", "").replace("HTTP/1.1", "HTTP/1.0"), 400, "bad_version"),
        (upgrade("/nowhere", ""), 404, "not_found"),
    ] {
        let mut client = RawClient::tcp(hub.local_addr());
        client.write(head.as_bytes());
        let response = client.response();
        assert_eq!((response.status, response.code().as_str()), (status, code), "{head}");
        if status == 426 {
            assert_eq!((response.header("sec-websocket-version"), response.header("upgrade")), (Some("13"), Some("websocket")));
        }
        client.expect_end();
    }
    assert_eq!(hub.stats().connections, 0);
    // Forms that are unusual and in order.
    for head in [
        upgrade("/ws", "").replace("Connection: Upgrade", "Connection: keep-alive, upgrade"),
        upgrade("/ws", "").replace("Upgrade: websocket", "UPGRADE: WebSocket"),
        upgrade("/ws", "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n"),
    ] {
        let mut client = RawClient::tcp(hub.local_addr());
        client.write(head.as_bytes());
        let response = client.response();
        assert_eq!(response.status, 101, "{head}");
        assert_eq!((response.header("sec-websocket-extensions"), response.header("sec-websocket-protocol")), (None, None));
    }
}

#[test]
fn garbage_is_refused() {
    let hub = start(|_| {});
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &noise] {
        let mut client = RawClient::tcp(hub.local_addr());
        // The hub may close before it has read all of it.
        drop(client.try_write(bytes));
        client.finish();
        client.expect_end();
    }
    eventually("all are counted", || hub.stats().refused == 4);
    assert_eq!(hub.stats().connections, 0);
}

#[test]
fn a_request_head_is_bounded_in_bytes() {
    let hub = start(|_| {});
    let before = resident_bytes();
    let mut clients: Vec<_> = (0..8).map(|_| RawClient::tcp(hub.local_addr())).collect();
    for client in &mut clients {
        client.write(b"GET /ws HTTP/1.1\r\nHost: a\r\nX-Long: ");
        // 10 MiB of one header, as far as the hub takes it.
        for _ in 0..160 {
            if client.try_write(&[b'x'; 64 << 10]).is_err() {
                break;
            }
        }
    }
    eventually("all are refused", || hub.stats().refused == 8);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "80 MiB of headers made the process grow by {grown} bytes");
    let mut client = RawClient::tcp(hub.local_addr());
    client.write(format!("GET /ws HTTP/1.1\r\nX-Long: {}\r\n\r\n", "x".repeat(17 << 10)).as_bytes());
    assert_eq!(client.response().status, 431);
}

#[test]
fn a_request_head_is_bounded_in_headers() {
    let hub = start(|_| {});
    // An upgrade in order has five headers.
    for (headers, status) in [(63, 101), (64, 101), (65, 431), (10_000, 431)] {
        let more: String = (5..headers).map(|number| format!("X-{number}: 1\r\n")).take(1_000).collect();
        let mut client = RawClient::tcp(hub.local_addr());
        drop(client.try_write(upgrade("/ws", &more).as_bytes()));
        assert_eq!(client.response().status, status, "{headers}");
    }
}

#[test]
fn a_slow_handshake_ends_at_its_deadline() {
    let hub = start(|config| config.limits.handshake_timeout_ms = 3_000);
    let mut silent = RawClient::tcp(hub.local_addr());
    let mut half = RawClient::tcp(hub.local_addr());
    half.write(b"GET /ws HTTP/1.1\r\nHost: a\r\n");
    let mut idle = RawClient::tcp(hub.local_addr());
    idle.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.response().status, 200);
    let mut dripping = RawClient::tcp(hub.local_addr());
    // Every byte is on time, the head is not.
    eventually("a dripping head is cut", || dripping.try_write(b"G").is_err());
    for client in [&mut silent, &mut half, &mut idle] {
        client.expect_end();
    }
    // Once it is a connection the deadline is over.
    let (mut connected, _) = RawClient::connect(&hub, "/ws");
    silent = RawClient::tcp(hub.local_addr());
    silent.expect_end();
    connected.subscribe("still here");
}

#[test]
fn who_does_not_read_its_answers_loses_its_place() {
    // Case R51.
    let hub = start(|config| {
        (config.limits.max_handshakes, config.limits.handshake_timeout_ms) = (2, 2_000);
        config.monitoring.listen = "127.0.0.1:0".into();
    });
    let watched = hub.monitoring_addr().unwrap();
    thread::scope(|scope| {
        for (address, path) in [(hub.local_addr(), "/health"), (hub.local_addr(), "/health"), (watched, "/metrics")] {
            scope.spawn(move || {
                let mut greedy = RawClient::tcp_narrow(address);
                let requests = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(100);
                let ended = loop {
                    if let Err(error) = greedy.try_write(requests.as_bytes()) {
                        break error;
                    }
                };
                assert!(matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{path}: {ended}");
            });
        }
    });
    eventually("their places are free", || RawClient::tcp(hub.local_addr()).upgrade_if_possible("/ws"));
}

#[test]
fn a_stranger_cannot_stay_by_asking_again_and_who_shows_a_credential_can() {
    let hub = start(|config| {
        config.limits.handshake_timeout_ms = 3_000;
        config.monitoring.token = "a-token-of-16-by".into();
        config.apps = vec![app()];
    });
    let [mut stranger, mut forger, mut watching, mut server] = [(); 4].map(|()| RawClient::tcp(hub.local_addr()));
    let forged = ApiRequest { secret: "guessed".into(), ..ApiRequest::get("channels", &[]) };
    let ask = |client: &mut RawClient| {
        client.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a-token-of-16-by\r\n\r\n");
        client.response()
    };
    let sign = |client: &mut RawClient| ApiRequest::get("channels", &[]).send_over(client);
    let is_last = |response: &Response| response.header("connection") == Some("close");
    let mut ended = [false; 2];
    eventually("both have had their last answer", || {
        if !ended[0] {
            stranger.write(b"GET /ready HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = stranger.response();
            assert_eq!(answer.status, 200);
            ended[0] = is_last(&answer);
        }
        if !ended[1] {
            let answer = forged.send_over(&mut forger);
            assert_eq!(answer.status, 401);
            ended[1] = is_last(&answer);
        }
        for (answer, who) in [(ask(&mut watching), "token"), (sign(&mut server), "signature")] {
            assert_eq!((answer.status, is_last(&answer)), (200, false), "{who}");
        }
        ended == [true; 2]
    });
    stranger.expect_end();
    forger.expect_end();
    assert_eq!((ask(&mut watching).status, sign(&mut server).status), (200, 200));
}

#[tokio::test]
async fn pages_of_other_hosts_are_refused() {
    let hub = start(|_| {});
    for (origin, ok) in [
        (None, true),
        (Some("http://127.0.0.1:3000"), true),
        (Some("https://127.0.0.1"), true),
        (Some("http://evil.test"), false),
        (Some("http://127.0.0.1.evil.test"), false),
        (Some("null"), false),
    ] {
        let headers: Vec<_> = origin.into_iter().map(|origin| ("origin", origin)).collect();
        match Client::request(&hub, "/ws", &headers).await {
            Ok(_) => assert!(ok, "{origin:?}"),
            Err(refused) => assert_eq!((ok, refused.status, refused.code.as_str()), (false, 403, "origin_not_allowed"), "{origin:?}"),
        }
    }
    let hub = start(|config| config.allowed_origins = vec!["https://app.example.com".into(), "https://*.shop.example".into()]);
    for (origin, ok) in [
        ("https://app.example.com", true),
        ("https://eu.shop.example", true),
        ("http://app.example.com", false),
        ("https://shop.example", false),
        ("http://127.0.0.1", false),
    ] {
        assert_eq!(Client::request(&hub, "/ws", &[("origin", origin)]).await.is_ok(), ok, "{origin}");
    }
    let open = start(|config| config.allowed_origins = vec!["*".into()]);
    assert!(Client::request(&open, "/ws", &[("origin", "null")]).await.is_ok());
}

#[tokio::test]
async fn connections_end_at_their_limit_and_a_place_is_free_again() {
    let hub = start(|config| config.limits.max_connections = 3);
    let mut clients = Vec::new();
    for _ in 1..=3 {
        clients.push(Client::connect(&hub).await);
    }
    for _ in 0..2 {
        let refused = Client::request(&hub, "/ws", &[]).await.err().unwrap();
        assert_eq!((refused.status, refused.code.as_str()), (503, "too_many_connections"));
    }
    let mut raw = RawClient::tcp(hub.local_addr());
    raw.write(upgrade("/ws", "").as_bytes());
    assert!(raw.response().header("retry-after").is_some());
    assert_eq!((hub.stats().connections, hub.stats().refused), (3, 3));
    clients.pop().unwrap().close().await;
    eventually("the place is free", || hub.stats().connections == 2);
    clients.push(Client::connect(&hub).await);
    assert_eq!(Client::request(&hub, "/ws", &[]).await.err().unwrap().status, 503);
}

#[test]
fn handshakes_under_way_end_at_their_limit() {
    let hub = start(|config| config.limits.max_handshakes = 3);
    let ask = |client: &mut RawClient| client.try_write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut held: Vec<_> = (0..3).map(|_| RawClient::tcp(hub.local_addr())).collect();
    for client in &mut held {
        ask(client).unwrap();
        assert_eq!(client.response().status, 200);
    }
    for _ in 0..2 {
        RawClient::tcp(hub.local_addr()).expect_end();
    }
    assert_eq!(hub.stats().refused, 2);
    // One that becomes a connection, or ends, makes room.
    held[0].upgrade("/ws");
    let mut fourth = RawClient::tcp(hub.local_addr());
    ask(&mut fourth).unwrap();
    assert_eq!(fourth.response().status, 200);
    RawClient::tcp(hub.local_addr()).expect_end();
    drop(held);
    eventually("there is room again", || {
        let mut client = RawClient::tcp(hub.local_addr());
        client.upgrade_if_possible("/ws")
    });
}

#[test]
fn what_a_client_sends_behind_its_request_is_not_lost() {
    let hub = start(|_| {});
    let mut client = RawClient::tcp(hub.local_addr());
    let mut bytes = upgrade("/ws", "").into_bytes();
    bytes.extend(realtime_testkit::raw::frame(realtime_testkit::raw::TEXT, br#"{"action":"ping","id":1}"#));
    let half = realtime_testkit::raw::frame(realtime_testkit::raw::TEXT, br#"{"action":"ping","id":2}"#);
    bytes.extend(&half[..9]);
    client.write(&bytes);
    assert_eq!(client.response().status, 101);
    assert_eq!(client.next_frame().json()["type"], "connected");
    assert_eq!(client.next_frame().json()["id"], 1);
    client.write(&half[9..]);
    assert_eq!(client.next_frame().json()["id"], 2);
}

//! Whether the hub is there, whether it would serve, and what it has counted; and the path below which it serves everything.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use realtime_core::config::{AppConfig, Secret};
use realtime_core::{Config, Payload, Publish};
use realtime_testkit::raw::{RawClient, Response};
use realtime_testkit::{Client, DEADLINE, RedisServer, eventually, spare_port, start};

fn get(address: SocketAddr, path: &str, headers: &str) -> Response {
    let mut client = RawClient::tcp(address);
    client.write(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").as_bytes());
    client.response()
}

const TOKEN: &str = "a-token-of-16-by";

/// What one has to say where there is a token.
fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// The samples, by name and labels as they stand there; every line is one or belongs to one.
fn metrics(address: SocketAddr) -> HashMap<String, f64> {
    let response = get(address, "/metrics", &bearer(TOKEN));
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let mut typed = "";
    let mut samples = HashMap::new();
    for line in response.body.lines() {
        match line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>()[..].to_vec()) {
            Some(words) if words[0] == "TYPE" => {
                assert!(["counter", "gauge"].contains(&words[2]), "{line}");
                assert_eq!(words[1].ends_with("_total"), words[2] == "counter", "{line}");
                typed = words[1];
            }
            Some(words) => assert_eq!(words[0], "HELP", "{line}"),
            None => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next(), Some(typed), "{line}");
                assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line} is there twice");
            }
        }
    }
    samples
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let hub = start(|config| {
        config.monitoring.token = TOKEN.into();
        config.apps = vec![AppConfig { key: "k".into(), secret: "s".into(), id: "1".into(), ..AppConfig::default() }];
    });
    let address = hub.local_addr();
    let clients = [Client::subscribed(&hub, "c").await, Client::subscribed(&hub, "c").await];
    let _pusher = Client::open(&hub, "/app/k?protocol=7").await;
    for _ in 0..5 {
        hub.publish(&Publish::new("c", "e", Payload::Text("hello"))).unwrap();
    }
    eventually("deliveries are counted", || metrics(address)["realtime_deliveries_total"] == 10.0);
    let now = metrics(address);
    for (name, value) in [
        ("realtime_published_total", 5.0),
        ("realtime_connections{protocol=\"native\"}", 2.0),
        ("realtime_connections{protocol=\"pusher\"}", 1.0),
        ("realtime_subscriptions", 2.0),
        ("realtime_channels", 1.0),
        ("realtime_ready", 1.0),
        ("realtime_broker_up{broker=\"memory\"}", 1.0),
        ("realtime_closed_total{reason=\"other\"}", 0.0),
    ] {
        assert_eq!(now[name], value, "{name}");
    }
    assert!(now["realtime_delivered_bytes_total"] >= 10.0 * 5.0 && now["process_resident_memory_bytes"] > 1e6, "{now:?}");
    // Nothing of them has a channel's name.
    assert!(now.keys().all(|name| !name.contains("\"c\"")));
    drop(clients);
    eventually("the others have gone", || {
        let now = metrics(address);
        (now["realtime_connections{protocol=\"native\"}"], now["realtime_closed_total{reason=\"other\"}"]) == (0.0, 2.0)
    });
    assert_eq!(metrics(address)["realtime_deliveries_total"], 10.0);
}

#[test]
fn metrics_are_for_who_has_the_token_or_at_an_address_of_their_own() {
    let hub = start(|_| {});
    // A proxy on this host says nothing of who asks, if it is not told to: this may be anybody.
    for headers in ["", "X-Forwarded-For: 203.0.113.7\r\n", "X-Forwarded-For: 127.0.0.1\r\n", "Authorization: Bearer \r\n"] {
        let response = get(hub.local_addr(), "/metrics", headers);
        assert_eq!((response.status, response.code().as_str()), (403, "not_here"), "{headers}");
        assert_eq!(get(hub.local_addr(), "/ready", headers).status, 200);
    }
    for listen in ["", "127.0.0.1:0"] {
        let hub = start(|config| (config.monitoring.token, config.monitoring.listen) = (TOKEN.into(), listen.into()));
        let asked = hub.monitoring_addr().unwrap_or(hub.local_addr());
        for (headers, status) in [
            (bearer(TOKEN), 200),
            (bearer(TOKEN).replace("Bearer", "bearer"), 200),
            (String::new(), 401),
            (bearer(""), 401),
            (bearer(&TOKEN[1..]), 401),
            (bearer(&format!("{TOKEN}x")), 401),
            (bearer(TOKEN).replace("Bearer", "Basic"), 401),
        ] {
            assert_eq!(get(asked, "/metrics", &headers).status, status, "{headers}");
            assert_eq!(get(asked, "/health", &headers).status, 200);
        }
        assert_eq!(get(hub.local_addr(), "/metrics", &bearer(TOKEN)).status, if listen.is_empty() { 200 } else { 403 });
    }
    let hub = start(|config| config.monitoring.token = TOKEN.into());
    for path in ["/ready", "/metrics", "/health"] {
        let mut client = RawClient::tcp(hub.local_addr());
        client.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{}Content-Length: 0\r\n\r\n", bearer(TOKEN)).as_bytes());
        assert_eq!(client.response().status, 405, "{path}");
    }
    let hub = start(|config| config.monitoring.listen = "127.0.0.1:0".into());
    let watched = hub.monitoring_addr().unwrap();
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(get(watched, path, "X-Forwarded-For: 203.0.113.7\r\n").status, 200, "{path}");
    }
    for path in ["/ws", "/", "/apps/1/events"] {
        assert_eq!(get(watched, path, "").status, 404, "{path}");
    }
    assert_eq!((get(hub.local_addr(), "/metrics", "").status, get(hub.local_addr(), "/health", "").status), (403, 200));
    let taken = watched.to_string();
    assert!(realtime_core::Hub::start(realtime_testkit::config(|config| config.monitoring.listen = taken)).is_err());
}

#[test]
fn a_hub_that_drains_is_alive_and_not_ready() {
    let hub = start(|config| config.monitoring.listen = "127.0.0.1:0".into());
    let watched = hub.monitoring_addr().unwrap();
    // A client that does not answer the goodbye keeps the drain going.
    let mut client = RawClient::tcp(hub.local_addr());
    client.upgrade("/ws");
    eventually("its shard has it", || metrics(watched)["realtime_connections{protocol=\"native\"}"] == 1.0);
    let stopping = {
        let hub = hub.clone();
        std::thread::spawn(move || hub.stop(DEADLINE))
    };
    eventually("it says that it stops", || get(watched, "/ready", "").status == 503);
    assert!(get(watched, "/ready", "").body.contains("stopping"));
    assert_eq!((get(watched, "/health", "").status, metrics(watched)["realtime_ready"]), (200, 0.0));
    drop(client);
    assert!(stopping.join().unwrap().complete);
    eventually("nobody answers any more", || std::net::TcpStream::connect_timeout(&watched, Duration::from_secs(1)).is_err());
}

#[test]
fn a_hub_without_its_broker_is_not_ready() {
    let port = spare_port();
    let hub = start(|config| config.broker.url = Secret::from(format!("redis://127.0.0.1:{port}").as_str()));
    let response = get(hub.local_addr(), "/ready", "");
    assert!(response.status == 503 && response.body.contains("no broker"), "{}", response.body);
    let mut server = RedisServer::start();
    let hub = start(|config| {
        config.monitoring.token = TOKEN.into();
        config.broker.url = Secret::from(server.url().as_str());
    });
    let ready = || get(hub.local_addr(), "/ready", "").status == 200;
    eventually("it has its broker", ready);
    assert_eq!(metrics(hub.local_addr())["realtime_broker_up{broker=\"redis\"}"], 1.0);
    server.kill();
    eventually("it has lost its broker", || !ready());
    assert_eq!(metrics(hub.local_addr())["realtime_broker_up{broker=\"redis\"}"], 0.0);
}

#[tokio::test]
async fn everything_is_below_the_path_and_nothing_beside_it() {
    let prefix = |config: &mut Config| {
        config.path = "/a/rt".into();
        config.apps = vec![AppConfig { key: "k".into(), secret: "s".into(), id: "1".into(), ..AppConfig::default() }];
    };
    let hub = start(prefix);
    assert_eq!(hub.url(), format!("ws://{}/a/rt/ws", hub.local_addr()));
    for (path, status) in [
        ("/a/rt/health", 200),
        ("/a/rt/ready", 200),
        ("/a/rt/metrics", 403),
        ("/a/rt/ws", 426),
        ("/a/rt/app/k", 426),
        ("/a/rt/apps/1/channels", 401),
        ("/health", 404),
        ("/ws", 404),
        ("/app/k", 404),
        ("/apps/1/channels", 404),
        ("/a/rt", 404),
        ("/a/rtx/health", 404),
        ("/a/rt/a/rt/health", 404),
        ("/a/rthealth", 404),
        ("/A/rt/health", 404),
        ("/a//rt/health", 404),
    ] {
        assert_eq!(get(hub.local_addr(), path, "").status, status, "{path}");
    }
    let mut client = Client::open(&hub, "/a/rt/ws/news").await;
    client.expect("connected").await;
    client.expect("subscribed").await;
    hub.publish(&Publish::new("news", "e", Payload::Text("x"))).unwrap();
    assert_eq!(client.expect("message").await["data"], "x");
    assert!(Client::request(&hub, "/ws", &[]).await.is_err());
}

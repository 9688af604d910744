//! Publishers on hosts without a hub: what they publish is what a hub would have published, and nothing hangs.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use realtime_core::broker::redis::publisher::{Publisher, PublisherError, PublisherOptions};
use realtime_core::bus::frame::BusPublish;
use realtime_core::config::{AppConfig, ChannelPolicy, Secret};
use realtime_core::history::{Keeping, Query};
use realtime_core::{Config, Hub, Payload, PublishError, QueryError, Receipt};
use realtime_testkit::hub::history;
use realtime_testkit::{Certified, Client, RedisSentinels, RedisServer, config, eventually, spare_port};
use serde_json::json;

/// A test's patience; those that are about a deadline set it themselves.
const PATIENCE: Duration = Duration::from_secs(30);

fn publisher_at(url: &str) -> Publisher {
    let options = PublisherOptions { connect_timeout: PATIENCE, answer_timeout: PATIENCE, ..PublisherOptions::new(Secret::from(url)) };
    Publisher::new(options).unwrap()
}

/// A hub that has said what it goes by, and a publisher without one.
fn hub_and_publisher(server: &RedisServer, change: impl FnOnce(&mut Config)) -> (Hub, Publisher) {
    let hub = Hub::start(config(|config| {
        config.broker.url = Secret::from(server.url().as_str());
        config.channels = vec![history("h*", 100)];
        change(config);
    }))
    .unwrap();
    let mut publisher = publisher_at(&server.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    (hub, publisher)
}

fn message<'a>(target: &'a str, payload: Payload<'a>) -> BusPublish<'a> {
    BusPublish { target, to_user: false, event: "e", payload, except: Vec::new(), id: None, keeping: Keeping::default() }
}

fn text<'a>(target: &'a str, text: &'a str) -> BusPublish<'a> {
    message(target, Payload::Text(text))
}

fn all(publisher: &mut Publisher, publishes: &[BusPublish<'_>]) -> Result<Vec<Receipt>, PublisherError> {
    let mut receipts = Vec::new();
    publisher.publish_all(publishes, |receipt| receipts.push(receipt))?;
    Ok(receipts)
}

/// How many publications the channel has had.
fn count(publisher: &mut Publisher, channel: &str) -> u64 {
    publisher.history(channel, &Query::default()).unwrap().position.offset
}

#[test]
fn a_publisher_waits_for_replicas_as_the_hubs_do() {
    let redis = RedisSentinels::start(1, 120_000, &[]);
    let waiting = |config: &mut Config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 100);
    let (_hub, mut publisher) = hub_and_publisher(&redis.servers[0], waiting);
    let keyed = BusPublish { id: Some("key"), ..text("h1", "1") };
    publisher.publish(&keyed).unwrap();
    redis.servers[1].freeze(true);
    // The script has to be loaded again: what is repeated is waited for as well.
    redis.servers[0].command(&["SCRIPT", "FLUSH"]);
    for publish in [text("h1", "2"), text("h1", "3"), keyed] {
        let error = publisher.publish(&publish).unwrap_err().to_string();
        assert!(error.contains("0 of 1 replicas") && error.contains("may or may not"), "{error}");
    }
    redis.servers[1].freeze(false);
    eventually("the replica is there again", || publisher.publish(&text("h1", "4")).is_ok());
}

#[test]
fn a_new_master_is_found_as_the_sentinels_name_it() {
    let mut redis = RedisSentinels::start(1, 1_000, &[]);
    let change = |config: &mut Config| {
        config.broker.url = Secret::from(redis.url().as_str());
        // Answers do not come from a server that is dead, and the end of the hub waits for them.
        config.broker.patience = 2;
    };
    let (_hub, _) = hub_and_publisher(&redis.servers[0], change);
    let mut publisher = publisher_at(&redis.url());
    assert_eq!(publisher.publish(&text("h", "1")).unwrap().position.offset, 1);
    redis.catch_up();
    redis.fail_over();
    let mut offset = 0;
    eventually("it publishes to the new master", || {
        let keyed = BusPublish { id: Some("k"), ..text("h", "2") };
        offset = publisher.publish(&keyed).map_or(0, |receipt| receipt.position.offset);
        offset > 0
    });
    assert_eq!((offset, count(&mut publisher, "h")), (2, 2));
}

#[test]
fn sentinels_that_are_dead_are_left_out_until_there_is_none() {
    let mut redis = RedisSentinels::start(1, 120_000, &[]);
    let url = redis.url();
    let (_hub, mut publisher) = hub_and_publisher(&redis.servers[0], |_| {});
    for sentinel in &mut redis.sentinels {
        publisher_at(&url).publish(&text("h", "x")).unwrap();
        sentinel.kill();
    }
    let error = publisher_at(&url).publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Connect { .. }) && error.to_string().contains("sentinel 127.0.0.1"), "{error}");
    assert_eq!(count(&mut publisher, "h"), 3);
    redis.sentinels[0].restart();
    let error = publisher_at(&url.replace("/0", "x/0")).publish(&text("h", "x")).unwrap_err();
    assert!(error.is_unsent(), "{error}");
}

#[test]
fn tls_is_spoken_with_whom_the_file_names_and_with_nobody_else() {
    let own = Certified::new("IP:127.0.0.1");
    let port = spare_port().to_string();
    let (certificate, key) = (own.certificate(), own.key());
    let server = RedisServer::with(&[
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        certificate.to_str().unwrap(),
        "--tls-key-file",
        key.to_str().unwrap(),
        "--tls-ca-cert-file",
        certificate.to_str().unwrap(),
    ]);
    let (_hub, _) = hub_and_publisher(&server, |_| {});
    let secure = |ca_file: &str| {
        let url = Secret::from(format!("rediss://127.0.0.1:{port}/0").as_str());
        let options =
            PublisherOptions { ca_file: ca_file.into(), connect_timeout: PATIENCE, answer_timeout: PATIENCE, ..PublisherOptions::new(url) };
        Publisher::new(options).unwrap()
    };
    let mut publisher = secure(certificate.to_str().unwrap());
    for offset in 1..=3 {
        assert_eq!(publisher.publish(&text("h", &"x".repeat(200_000))).unwrap().position.offset, offset);
    }
    assert_eq!(publisher.history("h", &Query::default()).unwrap().publications.len(), 1, "as much as a hub gives at once");
    let foreign = Certified::new("IP:127.0.0.1");
    for (ca_file, fault) in
        [("", "certificate"), (foreign.certificate().to_str().unwrap(), "TLS: "), ("/nowhere", "cannot read `/nowhere`")]
    {
        let error = secure(ca_file).publish(&text("h", "x")).unwrap_err();
        assert!(matches!(error, PublisherError::Connect { .. }) && error.to_string().contains(fault), "{ca_file}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_reaches_the_subscribers_of_every_hub_as_if_a_hub_had_done_it() {
    let server = RedisServer::start();
    let (first, mut publisher) = hub_and_publisher(&server, |_| {});
    let (second, _) = hub_and_publisher(&server, |_| {});
    let mut clients = [Client::subscribed(&first, "h1").await, Client::subscribed(&second, "h1").await];
    let from_hub = first.publish(&realtime_core::Publish::new("h1", "e", Payload::Text("from a hub"))).unwrap();
    let receipt = publisher.publish(&text("h1", "from afar")).unwrap();
    assert_eq!((receipt.position.epoch, receipt.position.offset, receipt.matched), (from_hub.position.epoch, 2, 0));
    publisher.publish(&BusPublish { event: "other", ..message("h1", Payload::Json(r#"{"a":[1]}"#)) }).unwrap();
    let excepted = clients[0].socket_id();
    publisher.publish(&BusPublish { except: vec![excepted], ..text("h1", "not to all") }).unwrap();
    publisher.publish(&text("h1", "last")).unwrap();
    for (at, client) in clients.iter_mut().enumerate() {
        let mut expected = vec![
            ("e", json!("from a hub")),
            ("e", json!("from afar")),
            ("other", json!({"a": [1]})),
            ("e", json!("not to all")),
            ("e", json!("last")),
        ];
        if at == 0 {
            expected.remove(3);
        }
        for (event, data) in expected {
            let seen = client.expect("message").await;
            assert_eq!((&seen["event"], &seen["data"]), (&json!(event), &data), "hub {at}");
        }
    }
    // What is kept is the same, whoever asks.
    let kept = |history: realtime_core::history::History| serde_json::to_value(history).unwrap();
    let query = Query { limit: 3, newest_first: true, ..Query::default() };
    assert_eq!(kept(publisher.history("h1", &query).unwrap()), kept(first.history("h1", &query).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_go_in_one_call_with_a_receipt_each_in_their_order() {
    let server = RedisServer::start();
    let (hub, mut publisher) = hub_and_publisher(&server, |_| {});
    let mut client = Client::subscribed(&hub, "plain").await;
    let texts: Vec<String> = (0..600).map(|number| number.to_string()).collect();
    let mut publishes: Vec<_> = texts.iter().map(|number| text("plain", number)).collect();
    publishes.push(text("h1", "x"));
    let receipts = all(&mut publisher, &publishes).unwrap();
    let offsets: Vec<u64> = receipts.iter().map(|receipt| receipt.position.offset).collect();
    assert_eq!(offsets, (1..=600).chain([1]).collect::<Vec<_>>());
    for number in &texts {
        assert_eq!(client.expect("message").await["data"], json!(number));
    }
    // The first failure ends it; nothing that shared its round trip has gone.
    let mistakes = [text("h2", "good"), text("", "bad"), text("h2", "never")];
    let error = all(&mut publisher, &mistakes).unwrap_err();
    assert!(matches!(error, PublisherError::Publish(PublishError::InvalidChannel(_))), "{error}");
    assert_eq!(count(&mut publisher, "h2"), 0);
}

#[test]
fn the_rules_of_the_hubs_are_the_rules() {
    let server = RedisServer::start();
    let (_hub, mut publisher) = hub_and_publisher(&server, |config| {
        config.limits.publication_bytes = 10;
        config.channels.push(ChannelPolicy { pattern: "flood".into(), conflate_ms: 100, ..ChannelPolicy::default() });
        config.apps = vec![AppConfig { name: "shop".into(), ..AppConfig::default() }];
    });
    for (length, ok) in [(9, true), (10, true), (11, false)] {
        let outcome = publisher.publish(&text("c", &"x".repeat(length)));
        assert_eq!(outcome.is_ok(), ok, "{length}: {outcome:?}");
        assert!(ok || matches!(outcome, Err(PublisherError::Publish(PublishError::TooLarge { bytes: 11, limit: 10 }))));
    }
    for (publish, fault) in [
        (text("", "x"), "channel name is empty"),
        (text("#x", "x"), "internal to the hub"),
        (BusPublish { event: "pusher:x", ..text("c", "x") }, "event name starts with"),
        (BusPublish { id: Some(""), ..text("c", "x") }, "id has 0 bytes"),
        (BusPublish { to_user: true, ..text("", "x") }, "user id must be"),
        (message("c", Payload::Json("{")), "not valid JSON"),
        (text("flood", "x"), "channel `flood` has conflate_ms"),
    ] {
        let error = publisher.publish(&publish).unwrap_err().to_string();
        assert!(error.contains(fault), "{error}");
    }
    assert!(matches!(publisher.history("c", &Query::default()), Err(PublisherError::Query(QueryError::NoHistory { .. }))));
    for (limit, ok) in [(0, false), (1, true), (1_000, true), (1_001, false)] {
        assert_eq!(publisher.history("h", &Query { limit, ..Query::default() }).is_ok(), ok, "{limit}");
    }
    // Apps do not meet, and are the hubs'.
    publisher.publish(&text("h", "default")).unwrap();
    publisher.use_app("shop");
    assert_eq!(publisher.publish(&text("h", "shop")).unwrap().position.offset, 1);
    publisher.use_app("shp");
    let error = publisher.publish(&text("h", "x")).unwrap_err().to_string();
    assert_eq!(error, "there is no app `shp`, did you mean `shop`?");
}

#[test]
fn the_hub_that_started_last_is_heeded_within_seconds() {
    let server = RedisServer::start();
    let (old, mut publisher) = hub_and_publisher(&server, |_| {});
    assert!(matches!(publisher.history("new", &Query::default()), Err(PublisherError::Query(QueryError::NoHistory { .. }))));
    let (_new, _) = hub_and_publisher(&server, |config| config.channels = vec![history("new", 10)]);
    eventually("the publisher has heard of the new channel", || publisher.history("new", &Query::default()).is_ok());
    assert!(publisher.history("h", &Query::default()).is_err());
    // The older one goes on saying what it goes by, and is not heeded.
    eventually("the older hub has said so again", || old.stats().uptime_ms > 3_000);
    assert!(publisher_at(&server.url()).history("new", &Query::default()).is_ok());
    // What the server forgets comes back.
    server.command(&["FLUSHALL"]);
    eventually("the hubs have said it again", || publisher_at(&server.url()).history("new", &Query::default()).is_ok());
}

#[test]
fn nobody_publishes_where_no_hub_has_ever_been() {
    let server = RedisServer::start();
    let mut publisher = publisher_at(&server.url());
    let error = publisher.publish(&text("c", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::NoHub { .. }) && error.is_unsent(), "{error}");
    assert!(error.to_string().contains("broker.prefix `realtime`"), "{error}");
    assert_eq!(server.command(&["DBSIZE"]), ":0");
    // Nor where what stands there is not what a hub writes.
    server.command(&["HSET", "realtime:rules", "d", "{\"version\":9}"]);
    let error = publisher.publish(&text("c", "x")).unwrap_err();
    assert!(error.to_string().contains("rules have version 9"), "{error}");
    server.command(&["DEL", "realtime:rules"]);
    server.command(&["SET", "realtime:rules", "x"]);
    let error = publisher.publish(&text("c", "x")).unwrap_err();
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
}

#[test]
fn a_server_that_was_started_anew_is_reached_within_the_next_call() {
    // What it knew it keeps, what hubs go by included.
    let mut server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (_hub, mut publisher) = hub_and_publisher(&server, |config| config.broker.fence = false);
    for offset in 1..=3 {
        assert_eq!(publisher.publish(&text("h", "x")).unwrap().position.offset, offset);
        server.restart();
        eventually("it has read its disk", || server.command(&["PING"]) == "+PONG");
    }
    server.command(&["SCRIPT", "FLUSH"]);
    let receipts = all(&mut publisher, &[text("h", "a"), text("h", "b")]).unwrap();
    assert_eq!(receipts.iter().map(|receipt| receipt.position.offset).collect::<Vec<_>>(), [4, 5]);
    server.kill();
    let error = publisher.publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Connect { .. }) && error.is_unsent(), "{error}");
    assert!(error.to_string().contains(&format!("redis at 127.0.0.1:{}", server.port())), "{error}");
}

/// A way to a server that, while told to, cuts connections when their answer comes: what was asked has been done.
struct Cutter {
    address: SocketAddr,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    cuts: AtomicBool,
    /// The answer passes, and nothing behind it.
    after_it: AtomicBool,
    /// Nobody comes through any more.
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Cutter {
    fn before(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, told, port) = (listener.local_addr().unwrap(), Arc::new(Told::default()), server.port());
        let cutter = Cutter { address, told: told.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let told = told.clone();
                if told.closed.load(Ordering::Relaxed) {
                    continue;
                }
                told.connections.lock().unwrap().push(client.try_clone().unwrap());
                let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
                std::thread::spawn(move || {
                    let (mut from, mut to, mut bytes) = (upstream, client, [0; 4096]);
                    while let Ok(count @ 1..) = from.read(&mut bytes) {
                        let cuts = told.cuts.swap(false, Ordering::Relaxed);
                        let passes = !cuts || told.after_it.load(Ordering::Relaxed);
                        if (passes && to.write_all(&bytes[..count]).is_err()) || cuts {
                            break;
                        }
                    }
                    drop((to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both)));
                });
            }
        });
        cutter
    }

    fn publisher(&self) -> Publisher {
        publisher_at(&format!("redis://{}", self.address))
    }

    fn cut_next_answer(&self) {
        self.told.cuts.store(true, Ordering::Relaxed);
    }

    fn cut_behind_next_answer(&self) {
        self.told.after_it.store(true, Ordering::Relaxed);
        self.cut_next_answer();
    }

    /// To those who come from now on.
    fn close(&self) {
        self.told.closed.store(true, Ordering::Relaxed);
    }

    /// Cuts those who are there.
    fn cut(&self) {
        self.told.connections.lock().unwrap().drain(..).for_each(|client| drop(client.shutdown(Shutdown::Both)));
    }
}

#[test]
fn what_was_sent_before_a_connection_broke_is_never_called_unsent() {
    let server = RedisServer::start();
    let (_hub, mut direct) = hub_and_publisher(&server, |_| {});
    let cutter = Cutter::before(&server);
    let mut publisher = cutter.publisher();
    publisher.reach().unwrap();
    cutter.close();
    cutter.cut_next_answer();
    // It may be sent again, and then there is no connection for that.
    let error = publisher.publish(&BusPublish { id: Some("k"), ..text("h", "x") }).unwrap_err();
    assert!(!error.is_unsent() && error.to_string().contains("may or may not have been accepted"), "{error}");
    assert_eq!(count(&mut direct, "h"), 1);
    let error = publisher.publish(&text("h", "x")).unwrap_err();
    assert!(error.is_unsent(), "{error}");
    assert_eq!(count(&mut direct, "h"), 1);
}

#[test]
fn of_many_publications_none_is_unsent_once_some_were_sent() {
    let server = RedisServer::start();
    let (_hub, mut direct) = hub_and_publisher(&server, |_| {});
    let cutter = Cutter::before(&server);
    let mut publisher = cutter.publisher();
    let publishes: Vec<_> = (0..257).map(|_| text("h", "x")).collect();
    let mut receipts = 0;
    let error = publisher.publish_all(&publishes, |_| {
        receipts += 1;
        // The first round trip has its answers: the second one finds nobody.
        if receipts == 256 {
            cutter.close();
            cutter.cut();
        }
    });
    let error = error.unwrap_err();
    assert!(receipts == 256 && !error.is_unsent(), "{receipts}: {error}");
    assert_eq!(count(&mut direct, "h"), 256);
}

#[test]
fn a_wait_that_is_asked_again_elsewhere_does_not_confirm() {
    // On a connection that has written nothing all replicas have everything.
    let redis = RedisSentinels::start(1, 120_000, &[]);
    let waiting = |config: &mut Config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 100);
    let (_hub, mut direct) = hub_and_publisher(&redis.servers[0], waiting);
    let cutter = Cutter::before(&redis.servers[0]);
    let mut publisher = cutter.publisher();
    publisher.reach().unwrap();
    redis.servers[1].freeze(true);
    // The publication's answer passes, that of the wait does not.
    cutter.cut_behind_next_answer();
    let error = publisher.publish(&BusPublish { id: Some("k"), ..text("h", "x") }).unwrap_err().to_string();
    assert!(error.contains("0 of 1 replicas") && error.contains("may or may not"), "{error}");
    publisher.reach().unwrap();
    cutter.cut_behind_next_answer();
    let error = publisher.publish(&text("h", "without a key")).unwrap_err();
    assert!(matches!(error, PublisherError::Broken { .. }), "{error}");
    redis.servers[1].freeze(false);
    eventually("both are there once", || direct.history("h", &Query::default()).is_ok_and(|history| history.position.offset == 2));
}

#[test]
fn a_wait_for_replicas_is_longer_than_a_call_may_be_and_still_has_its_answer() {
    let redis = RedisSentinels::start(1, 120_000, &[]);
    let waiting = |config: &mut Config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 400);
    let (_hub, _) = hub_and_publisher(&redis.servers[0], waiting);
    let options = PublisherOptions {
        connect_timeout: PATIENCE,
        answer_timeout: Duration::from_millis(300),
        ..PublisherOptions::new(Secret::from(redis.servers[0].url().as_str()))
    };
    let mut publisher = Publisher::new(options).unwrap();
    eventually("there is a connection", || publisher.reach().is_ok());
    redis.servers[1].freeze(true);
    eventually("the wait has its answer", || {
        let error = publisher.publish(&text("h", "x")).unwrap_err().to_string();
        error.contains("0 of 1 replicas had it within 400 ms")
    });
    redis.servers[1].freeze(false);
}

#[test]
fn what_may_have_been_done_is_done_again_only_with_a_key() {
    let server = RedisServer::start();
    let (_hub, mut direct) = hub_and_publisher(&server, |_| {});
    let cutter = Cutter::before(&server);
    let mut publisher = cutter.publisher();
    publisher.reach().unwrap();
    cutter.cut_next_answer();
    let error = publisher.publish(&text("h", "once")).unwrap_err();
    assert!(matches!(error, PublisherError::Broken { .. }) && !error.is_unsent(), "{error}");
    assert!(error.to_string().contains("may or may not have been accepted"), "{error}");
    assert_eq!(count(&mut direct, "h"), 1);
    publisher.reach().unwrap();
    cutter.cut_next_answer();
    let keyed = BusPublish { id: Some("k"), ..text("h", "twice") };
    assert_eq!(publisher.publish(&keyed).unwrap().position.offset, 2);
    assert_eq!(count(&mut direct, "h"), 2);
    // One without a key among them is enough.
    publisher.reach().unwrap();
    cutter.cut_next_answer();
    all(&mut publisher, &[BusPublish { id: Some("l"), ..text("h", "a") }, text("h", "b")]).unwrap_err();
    assert_eq!(count(&mut direct, "h"), 4);
    publisher.reach().unwrap();
    cutter.cut_next_answer();
    assert_eq!(count(&mut publisher, "h"), 4, "reading changes nothing");
}

#[test]
fn a_server_that_stands_still_costs_one_deadline_and_then_none() {
    let server = RedisServer::start();
    let (_hub, mut patient) = hub_and_publisher(&server, |_| {});
    let options =
        PublisherOptions { answer_timeout: Duration::from_millis(100), ..PublisherOptions::new(Secret::from(server.url().as_str())) };
    let mut publisher = Publisher::new(options).unwrap();
    eventually("there is a connection", || publisher.reach().is_ok());
    server.freeze(true);
    let error = publisher.publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Timeout { .. }) && !error.is_unsent(), "{error}");
    // How many it is within the pause depends on the machine; the first one is.
    let error = publisher.publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Paused { .. } | PublisherError::Connect { .. }) && error.is_unsent(), "{error}");
    server.freeze(false);
    eventually("it publishes again", || publisher.publish(&text("h", "again")).is_ok());
    assert!(count(&mut patient, "h") >= 1);
    publisher.allow_waiting(Some(Duration::ZERO));
    assert!(matches!(publisher.publish(&text("h", "x")), Err(PublisherError::WaitedEnough { .. })));
}

#[test]
fn an_answer_that_comes_a_byte_at_a_time_is_late_as_a_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        // A string that never ends, while each read gets something.
        client.write_all(b"$100000\r\n").unwrap();
        while client.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let options = PublisherOptions {
        answer_timeout: Duration::from_millis(200),
        ..PublisherOptions::new(Secret::from(format!("redis://{address}").as_str()))
    };
    let error = Publisher::new(options).unwrap().publish(&text("c", "x")).unwrap_err();
    assert!(matches!(&error, PublisherError::Connect { source, .. } if source.kind() == std::io::ErrorKind::TimedOut), "{error}");
    server.join().unwrap();
}

#[test]
fn nonsense_instead_of_redis_is_an_error() {
    for said in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"$5\r\nhello\r\n", b"*-1\r\n*1\r\n*1\r\n", b"\r\n\r\n", b""] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            client.write_all(said).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            drop(client.read_to_end(&mut Vec::new()));
        });
        let error = publisher_at(&format!("redis://{address}")).publish(&text("c", "x")).unwrap_err();
        assert!(error.is_unsent() || matches!(error, PublisherError::Refused { .. }), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn who_may_not_come_in_is_told_so_without_the_password() {
    let server = RedisServer::start();
    let (_hub, _) = hub_and_publisher(&server, |_| {});
    // The rights that `docs/redis.md` names are enough.
    let rights = "+@connection +eval +evalsha +script|load +info +time +publish +subscribe +unsubscribe +@hash +@stream +get +set +del +exists +pexpire";
    let mut acl = vec!["ACL", "SETUSER", "php", "on", ">geheim", "~realtime:*", "&realtime:*"];
    acl.extend(rights.split(' '));
    assert_eq!(server.command(&acl), "+OK");
    let url = |user: &str, password: &str| format!("redis://{user}:{password}@127.0.0.1:{}/0", server.port());
    publisher_at(&url("php", "geheim")).publish(&text("h", "x")).unwrap();
    let mut wrong = publisher_at(&url("php", "geheimnis"));
    let error = wrong.publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Connect { .. }) && error.to_string().contains("WRONGPASS"), "{error}");
    assert!(!format!("{error} {error:?} {wrong:?}").contains("geheim"), "{error:?}");
    assert_eq!(server.command(&["ACL", "SETUSER", "php", "-publish"]), "+OK");
    let error = publisher_at(&url("php", "geheim")).publish(&text("h", "x")).unwrap_err();
    assert!(matches!(error, PublisherError::Refused { .. }), "{error}");
    for url in ["redis://:geheim@", "http://geheim@h/", "geheim", "", "rediss://geheim@h/#insecure"] {
        let options = PublisherOptions::new(Secret::from(url));
        let error = Publisher::new(options).map(drop).unwrap_err().to_string();
        assert!(error.starts_with("broker.url: ") && !error.contains("geheim"), "{error}");
    }
}

//! Hubs that share a Redis: one order, nothing lost that was acknowledged, a word where something is missing.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashSet;

use realtime_core::config::{ChannelPolicy, Secret};
use realtime_core::history::Query;
use realtime_core::{Config, Hub, Payload, Position, Publish, PublishError, QueryError};
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::ledger::kept;
use realtime_testkit::{Client, RedisServer, config, eventually, sized};
use serde_json::{Value, json};

/// A hub that has reached its Redis with both connections.
fn hub(server: &RedisServer, change: impl FnOnce(&mut Config)) -> Hub {
    on_broker(&server.url(), |config| {
        config.channels = vec![history("h*", 10_000)];
        change(config);
    })
}

fn try_publish(hub: &Hub, channel: &str, text: &str) -> Result<Position, PublishError> {
    hub.publish(&Publish::new(channel, "e", Payload::Text(text))).map(|receipt| receipt.position)
}

fn publish(hub: &Hub, channel: &str, text: &str) -> Position {
    try_publish(hub, channel, text).unwrap()
}

fn recover(channel: &str, position: Position) -> Value {
    json!({"action": "subscribe", "channel": channel, "recover": {"epoch": position.epoch.to_string(), "offset": position.offset}})
}

/// Publishes until it succeeds; what is on its way back fails meanwhile.
fn publish_when_back(hub: &Hub, channel: &str, text: &str) -> Position {
    let mut position = None;
    eventually("publishing works again", || {
        position = try_publish(hub, channel, text).ok();
        position.is_some()
    });
    position.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_have_one_order() {
    // Case R07: all get the same, each publisher's own order is kept.
    let (publishers, each) = (sized(4, 8), sized(50, 1_000));
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    for channel in ["h-order", "plain-order"] {
        let mut clients = Vec::new();
        for at in 0..sized(6, 100) {
            clients.push(Client::subscribed(&hubs[at % 2], channel).await);
        }
        std::thread::scope(|scope| {
            for publisher in 0..publishers {
                let hub = &hubs[publisher % 2];
                scope.spawn(move || {
                    for number in 0..each {
                        publish(hub, channel, &format!("{publisher} {number}"));
                    }
                });
            }
        });
        let first = clients[0].texts(publishers * each).await;
        for publisher in 0..publishers {
            let own = first.iter().filter_map(|text| text.strip_prefix(&format!("{publisher} ")));
            assert!(own.map(|number| number.parse::<usize>().unwrap()).eq(0..each));
        }
        for client in &mut clients[1..] {
            assert_eq!(client.texts(publishers * each).await, first);
            client.expect_nothing().await;
        }
    }
}

#[tokio::test]
async fn a_sender_is_excepted_on_every_hub() {
    // Case R09.
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let mut sender = Client::subscribed(&hubs[0], "c").await;
    let mut other = Client::subscribed(&hubs[1], "c").await;
    let except = [sender.socket_id()];
    let mut message = Publish::new("c", "e", Payload::Json("[1]"));
    message.except = &except;
    hubs[1].publish(&message).unwrap();
    publish(&hubs[0], "c", "to all");
    assert_eq!(other.expect("message").await["data"], json!([1]));
    assert_eq!((other.texts(1).await, sender.texts(1).await), (vec!["to all".to_owned()], vec!["to all".to_owned()]));
}

#[test]
fn a_repeated_key_is_one_publication_whichever_hub_gets_it() {
    // Case R05: the same answer, and one entry.
    let keys = sized(200, 2_000);
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let send = |hub: &Hub, key: &str| {
        let mut message = Publish::new("h", "e", Payload::Text(key));
        message.id = Some(key);
        let receipt = hub.publish(&message).unwrap();
        (key.to_owned(), receipt.position.offset)
    };
    let answers: Vec<HashSet<(String, u64)>> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|sender| {
                let hub = &hubs[sender % 2];
                scope.spawn(move || (0..keys).map(|key| send(hub, &format!("key {key}"))).collect())
            })
            .collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let kept = kept(&hubs[0], "h");
    assert_eq!((kept.len(), kept.last().unwrap().0.offset), (keys, keys as u64));
}

#[tokio::test]
async fn without_redis_publishing_fails_at_once_and_clients_stay() {
    // Case R21, nothing on disk: I5, no false `recovered`.
    let mut server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut client = Client::subscribed(&hub, "h").await;
    let mut plain = Client::subscribed(&hub, "plain").await;
    let before = publish(&hub, "h", "before");
    publish(&hub, "plain", "before");
    assert_eq!((client.texts(1).await, plain.texts(1).await), (vec!["before".to_owned()], vec!["before".to_owned()]));
    server.kill();
    eventually(
        "publishing fails",
        || matches!(try_publish(&hub, "h", "lost"), Err(PublishError::Broker(error)) if error.to_string().contains("redis")),
    );
    for _ in 0..20 {
        assert!(matches!(try_publish(&hub, "h", "lost"), Err(PublishError::Broker(_))), "it waits for nobody");
    }
    assert!(matches!(hub.history("h", &Query::default()), Err(QueryError::Broker(_))));
    client.send_json(json!({"action": "subscribe", "channel": "h-new", "id": 1})).await;
    assert_eq!(client.expect_error("unavailable").await["id"], 1);
    client.expect_nothing().await;

    server.restart();
    let after = publish_when_back(&hub, "h", "after");
    assert_ne!(before.epoch, after.epoch);
    assert_eq!(client.expect("unsubscribed").await["code"], "interrupted");
    let answer = client.ask(recover("h", before)).await;
    assert_eq!(answer["recovered"], false);
    publish_when_back(&hub, "plain", "after");
    assert_eq!(plain.texts(1).await, ["after"]);
    let mut back = Client::connect(&hub).await;
    assert_eq!(back.ask(recover("h", Position { offset: after.offset - 1, ..after })).await["recovered"], true);
}

#[tokio::test]
async fn a_server_that_keeps_everything_costs_no_client_its_recovery() {
    // Case R21, everything on disk and the epoch not fenced: I1–I3.
    let mut server = RedisServer::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    let hub = hub(&server, |config| config.broker.fence = false);
    let mut client = Client::subscribed(&hub, "h").await;
    let mut acked = Vec::new();
    for number in 0..20 {
        publish(&hub, "h", &number.to_string());
        acked.push(number.to_string());
    }
    assert_eq!(client.texts(20).await, acked);
    server.restart();
    publish_when_back(&hub, "h", "after");
    assert_eq!(client.texts(1).await, ["after"]);
    let page = hub.history("h", &Query { limit: 1_000, ..Query::default() }).unwrap();
    assert_eq!(page.publications.len() as u64, page.position.offset);
    client.expect_nothing().await;
}

#[tokio::test]
async fn what_was_missed_while_the_link_was_cut_is_handed_on() {
    // Cases R23 and R24 in small: only the link of subscriptions is lost, and what is published meanwhile is read.
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut client = Client::subscribed(&hub, "h").await;
    let mut expected = Vec::new();
    for round in 0..10 {
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        for number in 0..20 {
            let text = format!("{round} {number}");
            publish(&hub, "h", &text);
            expected.push(text);
        }
    }
    assert_eq!(client.texts(expected.len()).await, expected);
    assert_eq!(hub.stats().interrupted, 0);
}

#[tokio::test]
async fn what_goes_missing_in_redis_is_told() {
    // Case R26: counts alone, the log alone, everything.
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    for (at, what) in ["meta", "log", "all", "log, seen by a publication"].into_iter().enumerate() {
        let channel = format!("h{at}");
        let mut position = publish(&hub, &channel, "1");
        for _ in 0..5 {
            position = publish(&hub, &channel, "x");
        }
        match what {
            "all" => server.command(&["FLUSHALL"]),
            "meta" => server.command(&["DEL", &format!("realtime:{{{channel}}}:meta")]),
            _ => server.command(&["DEL", &format!("realtime:{{{channel}}}:log")]),
        };
        if what == "log, seen by a publication" {
            publish(&hub, &channel, "after");
        }
        let mut client = Client::connect(&hub).await;
        let answer = client.ask(recover(&channel, Position { offset: 2, ..position })).await;
        assert_eq!(answer["recovered"], false, "{what}");
        client.expect_nothing().await;
        publish(&hub, &channel, "live");
        assert_eq!(client.texts(1).await, ["live"]);
    }
}

#[tokio::test]
async fn what_is_no_publication_is_dropped() {
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut client = Client::subscribed(&hub, "h").await;
    let first = publish(&hub, "h", "1");
    for hostile in ["", "x", "00000000000000010000000000000001", &format!("{}{:016x}garbage", first.epoch, 2), &"z".repeat(100_000)] {
        server.command(&["PUBLISH", "realtime:{h}:live", hostile]);
    }
    server.command(&["XADD", "realtime:{h}:log", "9-0", "d", "nonsense", "x", "99999999999999"]);
    for number in 2..=8 {
        publish(&hub, "h", &number.to_string());
    }
    // What is missing because of the forged announcement is told, or found.
    let mut seen = HashSet::new();
    loop {
        let message = client.json().await;
        match message["type"].as_str() {
            Some("message") => seen.insert(message["data"].as_str().unwrap().to_owned()),
            _ => break assert_eq!(message["code"], "interrupted"),
        };
        if seen.contains("8") {
            break;
        }
    }
    assert!(seen.iter().all(|text| text.parse::<u8>().is_ok_and(|number| (1..=8).contains(&number))), "{seen:?}");
    // What is not the hub's begins anew, whatever it is.
    let mut epochs = HashSet::new();
    for damage in [
        &["SET", "realtime:{h9}:meta", "text"] as &[&str],
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 999999999999999 0 0 0 0 0 0"],
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 1 0 0 -1 0 0 0"],
        &["SET", "realtime:{h9}:meta", &"z".repeat(1_000)],
        &["HSET", "realtime:{h9}:meta", "e", "0000000000000001"],
        &["SADD", "realtime:{h9}:meta", "x"],
    ] {
        publish(&hub, "h9", "x");
        server.command(&["DEL", "realtime:{h9}:meta"]);
        server.command(damage);
        let position = publish(&hub, "h9", "y");
        assert!(position.offset == 1 && epochs.insert(position.epoch), "{damage:?}: {position:?}");
    }
    server.command(&["SET", "realtime:{h9}:log", "no stream"]);
    let newest = publish(&hub, "h9", "z");
    let kept = hub.history("h9", &Query::default()).unwrap().publications;
    assert_eq!(kept.iter().map(|publication| publication.position).collect::<Vec<_>>(), [newest]);
    publish(&hub, "h8", "fine");
}

#[test]
fn refusals_are_errors_and_the_script_comes_back() {
    // Case R27.
    let server = RedisServer::with(&["--save", "", "--requirepass", "", "--maxmemory-policy", "noeviction"]);
    let hub = hub(&server, |_| {});
    publish(&hub, "h", "1");
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(publish(&hub, "h", "2").offset, 2);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(matches!(try_publish(&hub, "h", "3"), Err(PublishError::Broker(error)) if error.to_string().contains("OOM")));
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let before = publish_when_back(&hub, "h", "3");
    assert_eq!(before.offset, 3);
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    eventually("a replica refuses", || try_publish(&hub, "h", "4").is_err());
    server.command(&["REPLICAOF", "NO", "ONE"]);
    // Another server counts, as far as anybody can tell: a new epoch, with what there is.
    let after = publish_when_back(&hub, "h", "4");
    assert_eq!((after.offset, after.epoch == before.epoch), (4, false));
    assert_eq!(hub.history("h", &Query::default()).unwrap().publications.len(), 4);
}

#[test]
fn a_frozen_server_is_an_error_and_a_key_makes_one_of_two_attempts() {
    // Case R22: no call hangs, the hub goes on, a key makes one publication of both attempts.
    let server = RedisServer::start();
    let hub = hub(&server, |config| config.broker.patience = 1);
    let mut first = Publish::new("h", "e", Payload::Text("1"));
    first.id = Some("the first");
    eventually("it is there", || hub.publish(&first).is_ok());
    server.freeze(true);
    let mut message = Publish::new("h", "e", Payload::Text("2"));
    message.id = Some("key");
    let refused = hub.publish(&message).unwrap_err();
    // Whether it was sent depends on whether the probe before it was; then the message says that nobody knows.
    assert!(refused.to_string().contains("redis"), "{refused}");
    assert!(refused.is_retryable());
    server.freeze(false);
    eventually("it is answered", || hub.publish(&message).is_ok());
    assert_eq!(hub.history("h", &Query::default()).unwrap().publications.len(), 2);
}

#[test]
fn a_broker_url_that_is_none_is_an_error_of_the_start() {
    for nonsense in ["http://secret", "redis://:secret@host:port", "redis+sentinel://secret,,b/main", "redis+sentinel://:secret@a"] {
        let error = Hub::start(config(|config| config.broker.url = Secret::from(nonsense))).err().unwrap().to_string();
        assert!(error.contains("broker.url") && !error.contains("secret"), "{error}");
    }
    // One that nobody answers at is not: the hub is there before its Redis.
    let hub = Hub::start(config(|config| config.broker.url = Secret::from("redis://127.0.0.1:1/0"))).unwrap();
    eventually("publishing fails", || matches!(try_publish(&hub, "c", "x"), Err(PublishError::Broker(_))));
}

#[test]
fn replicas_are_waited_for_within_bounds() {
    let valid = |replicas, timeout_ms| {
        let settings = config(|config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (replicas, timeout_ms));
        settings.validate().map_err(|error| error.to_string())
    };
    for (replicas, timeout_ms) in [(0, 500), (63, 500), (64, 500), (1, 1), (1, 2), (1, 9_999), (1, 10_000)] {
        assert_eq!(valid(replicas, timeout_ms), Ok(()));
    }
    for (replicas, timeout_ms, key) in [(65, 500, "wait_replicas"), (1, 0, "wait_timeout_ms"), (1, 10_001, "wait_timeout_ms")] {
        assert!(valid(replicas, timeout_ms).is_err_and(|error| error.contains(key)), "{replicas} {timeout_ms}");
    }
}

#[tokio::test]
async fn the_last_value_is_everybodys() {
    let server = RedisServer::start();
    let prices = |config: &mut Config| {
        config.channels = vec![ChannelPolicy { pattern: "price".into(), last_value: true, ..ChannelPolicy::default() }]
    };
    let hubs = [hub(&server, prices), hub(&server, prices)];
    publish(&hubs[0], "price", "1");
    publish(&hubs[0], "price", "2");
    let mut client = Client::connect(&hubs[1]).await;
    assert_eq!(client.subscribe("price").await["offset"], 2);
    assert_eq!(client.texts(1).await, ["2"]);
    publish(&hubs[0], "price", "3");
    assert_eq!(client.texts(1).await, ["3"]);
}

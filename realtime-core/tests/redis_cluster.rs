//! Hubs on a Redis Cluster: each channel is on one of the masters, and what happens to one concerns its channels only.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use realtime_core::broker::redis::Redis;
use realtime_core::broker::redis::publisher::{Publisher, PublisherError, PublisherOptions};
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::bus::frame::BusPublish;
use realtime_core::config::{BrokerConfig, ChannelPolicy, Secret};
use realtime_core::history::{Keeping, Query};
use realtime_core::{Config, Hub, Payload, Position, Publish};
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::publishing::{publish, try_publish};
use realtime_testkit::{Certified, Client, DEADLINE, RedisCluster, RedisServer, config, eventually, sized, spare_port};
use serde_json::json;

/// How long a silent node is believed in, where one is to fail and where none is.
const TIMEOUT_MS: u64 = 1_500;
const NEVER_MS: u64 = 30_000;

fn hub(redis: &RedisCluster, change: impl FnOnce(&mut Config)) -> Hub {
    on_broker(&redis.url(), |config| {
        config.channels = vec![history("h*", 10_000)];
        change(config);
    })
}

/// A channel of each master.
fn channels(redis: &RedisCluster, masters: usize) -> Vec<String> {
    let on = |master| (0..).map(|number| format!("h{number}")).find(|channel| redis.owner(&key(channel)) == master).unwrap();
    (0..masters).map(on).collect()
}

fn key(channel: &str) -> String {
    format!("realtime:{{{channel}}}:meta")
}

#[tokio::test]
async fn hubs_have_one_order_on_every_master() {
    // Case R07 on a cluster: all get the same, and who comes back gets what it has missed.
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let hubs = [hub(&redis, |_| {}), hub(&redis, |_| {})];
    for channel in channels(&redis, 3) {
        let mut clients = [Client::subscribed(&hubs[0], &channel).await, Client::subscribed(&hubs[1], &channel).await];
        std::thread::scope(|scope| {
            for hub in &hubs {
                let channel = &channel;
                scope.spawn(move || (0..50).for_each(|number| drop(try_publish(hub, channel, &format!("{} {number}", hub.local_addr())))));
            }
        });
        let first = clients[0].texts(100).await;
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 100);
        assert_eq!(clients[1].texts(100).await, first);
        let page = hubs[0].history(&channel, &Query { limit: 1_000, ..Query::default() }).unwrap();
        assert_eq!(page.publications.len(), 100);
        let mut back = Client::connect(&hubs[1]).await;
        let recover = json!({"epoch": page.position.epoch.to_string(), "offset": 40});
        let answer = back.ask(json!({"action": "subscribe", "channel": channel, "recover": recover})).await;
        assert_eq!(answer["recovered"], true);
        assert_eq!(back.texts(60).await, first[40..]);
    }
    let keys: Vec<String> = redis.nodes.iter().map(|node| node.command(&["DBSIZE"])).collect();
    assert!(keys.iter().all(|count| count != ":0"), "each master has some: {keys:?}");
}

/// Subscribers of a topic at each node, by its `PUBSUB`.
fn subscribers(redis: &RedisCluster, how: &str, topic: &str) -> Vec<String> {
    let script = "return tostring(redis.call('PUBSUB', ARGV[1], ARGV[2])[2])";
    redis.nodes.iter().map(|node| node.command(&["EVAL", script, "0", how, topic])).collect()
}

/// Until one hub hears a channel, at this node and at no other.
fn wait_until_heard(redis: &RedisCluster, channel: &str, at: usize) {
    let topic = format!("realtime:{{{channel}}}:live");
    let expected: Vec<&str> = (0..redis.nodes.len()).map(|node| if node == at { "1" } else { "0" }).collect();
    eventually("it is heard where it is", || subscribers(redis, "SHARDNUMSUB", &topic) == expected);
}

#[tokio::test]
async fn a_publication_goes_to_its_slots_node_only() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let hubs = [hub(&redis, |_| {}), hub(&redis, |_| {})];
    let before: Vec<usize> = redis.nodes.iter().map(|node| calls(node, "spublish")).collect();
    for (at, channel) in channels(&redis, 3).iter().enumerate() {
        let mut clients = [Client::subscribed(&hubs[0], channel).await, Client::subscribed(&hubs[1], channel).await];
        let topic = format!("realtime:{{{channel}}}:live");
        let mut expected = vec!["0"; 3];
        assert_eq!(subscribers(&redis, "NUMSUB", &topic), expected, "nobody hears it everywhere");
        expected[at] = "2";
        assert_eq!(subscribers(&redis, "SHARDNUMSUB", &topic), expected, "both hubs hear it where it is");
        let sent: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        for text in &sent {
            publish(&hubs[0], channel, text);
        }
        for client in &mut clients {
            assert_eq!(client.texts(100).await, sent);
        }
    }
    for (node, before) in redis.nodes.iter().zip(before) {
        assert!(calls(node, "spublish") >= before + 100, "each master has announced what is its own");
        // What crosses between the masters is little: hubs' probes and letters.
        let crossed = node.command(&["CLUSTER", "INFO"]);
        assert!(!crossed.contains("messages_publishshard"), "{crossed}");
    }
}

#[tokio::test]
async fn a_hub_that_starts_again_and_one_that_stays_miss_nothing() {
    // I1, I2, on every master.
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let stays = hub(&redis, |_| {});
    let names = channels(&redis, 3);
    let mut clients = Vec::new();
    for name in &names {
        clients.push(Client::subscribed(&stays, name).await);
    }
    let mut sent = Vec::new();
    for round in 0..3 {
        let goes = hub(&redis, |_| {});
        let mut theirs = Vec::new();
        for name in &names {
            let mut client = Client::connect(&goes).await;
            let position = stays.history(name, &Query::default()).unwrap().position;
            let recover = json!({"epoch": position.epoch.to_string(), "offset": 0});
            let answer = client.ask(json!({"action": "subscribe", "channel": name, "recover": recover})).await;
            assert_eq!(answer["recovered"], true);
            assert_eq!(client.texts(sent.len()).await, sent);
            theirs.push(client);
        }
        let fresh: Vec<String> = (0..50).map(|number| format!("{round} {number}")).collect();
        for text in &fresh {
            for name in &names {
                publish(&goes, name, text);
            }
        }
        for client in clients.iter_mut().chain(&mut theirs) {
            assert_eq!(client.texts(fresh.len()).await, fresh);
        }
        sent.extend(fresh);
        goes.stop(DEADLINE);
    }
    assert_eq!(stays.stats().interrupted, 0);
}

#[tokio::test]
async fn a_slot_that_moves_to_another_master_takes_its_channels_along() {
    // I1, I2: without a fence nothing is missed and nobody has to begin anew; with it there is a new epoch.
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let (open, fenced) = (hub(&redis, |config| config.broker.fence = false), hub(&redis, |config| config.broker.prefix = "fenced".into()));
    let channel = channels(&redis, 3).swap_remove(0);
    let mut clients = [Client::subscribed(&open, &channel).await, Client::subscribed(&fenced, &channel).await];
    let before = publish(&fenced, &channel, "before");
    assert_eq!(clients[1].texts(1).await, ["before"]);
    let slot = redis.slot(&key(&channel));
    let mut expected = Vec::new();
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| redis.migrate(slot, 0, 1));
        while !moving.is_finished() || expected.len() < 50 {
            let text = format!("open {}", expected.len());
            match try_publish(&open, &channel, &text) {
                Ok(_) => expected.push(text),
                // Some of its keys are here and some there; nothing else goes wrong.
                Err(error) => assert!(error.to_string().contains("TRYAGAIN"), "{error}"),
            }
        }
        moving.join().unwrap();
    });
    for _ in 0..20 {
        let text = format!("open {}", expected.len());
        try_publish(&open, &channel, &text).unwrap();
        expected.push(text);
    }
    assert_eq!(clients[0].texts(expected.len()).await, expected);
    wait_until_heard(&redis, &channel, 1);
    assert_eq!(open.stats().interrupted, 0);
    let page = open.history(&channel, &Query { limit: 1_000, ..Query::default() }).unwrap();
    assert_eq!(page.publications.len(), expected.len());

    // It has not been told, and follows what the master says that had the slot.
    let after = try_publish(&fenced, &channel, "after").unwrap();
    assert_eq!((after.offset, after.epoch == before.epoch), (2, false));
    assert_eq!(clients[1].expect("unsubscribed").await["code"], "interrupted");
    assert_eq!(fenced.history(&channel, &Query::default()).unwrap().publications.len(), 2);
}

struct Nobody;

impl Deliver for Nobody {
    fn deliver(&self, _publish: &Publish<'_>, _position: Position) -> usize {
        0
    }

    fn interrupted(&self, _channel: &str, _position: Position) {}
}

/// Offsets of what is published without waiting for the one before.
fn publish_at_once(broker: &Redis, channel: &str, count: usize) -> Vec<u64> {
    let replies: Vec<_> = (0..count).map(|_| broker.publish(&Publish::new(channel, "e", Payload::Text("x")))).collect();
    let offset = |reply: Reply<Published>| match reply {
        Reply::Later(promise) => promise.wait(DEADLINE).unwrap().unwrap().position.offset,
        Reply::Now(answer) => answer.unwrap().position.offset,
    };
    replies.into_iter().map(offset).collect()
}

#[test]
fn what_one_publisher_sends_keeps_its_order_when_a_slot_changes_hands() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let config = BrokerConfig { url: Secret::from(redis.url().as_str()), patience: 30, ..BrokerConfig::default() };
    let broker = Redis::new(&config).unwrap();
    broker.start(Arc::new(Nobody)).unwrap();
    channels(&redis, 3).iter().for_each(|channel| assert_eq!(publish_at_once(&broker, channel, 1), [1]));
    let at_first = (0..).map(|number| format!("moved {number}")).filter(|channel| redis.owner(&key(channel)) == 0);
    for channel in at_first.take(10) {
        // Nobody tells the broker: it sends to the one that had the slot, and later ones may know better.
        redis.migrate(redis.slot(&key(&channel)), 0, 1);
        assert_eq!(publish_at_once(&broker, &channel, 3_000), (1..=3_000).collect::<Vec<_>>());
    }
    broker.stop();
}

#[tokio::test]
async fn a_master_that_fails_concerns_its_own_channels_only() {
    // I2, I5: the other channels go on without an error; those of the failed master are back with its replica.
    let mut redis = RedisCluster::start(3, true, TIMEOUT_MS);
    let hub = hub(&redis, |config| config.broker.patience = 4);
    let names = channels(&redis, 3);
    let mut clients = Vec::new();
    for name in &names {
        clients.push(Client::subscribed(&hub, name).await);
    }
    let before: Vec<Position> = names.iter().map(|name| publish(&hub, name, "before")).collect();
    redis.nodes[0].kill();
    let mut others = 0;
    eventually("the replica takes over", || {
        for name in &names[1..] {
            try_publish(&hub, name, &format!("meanwhile {others}")).unwrap();
        }
        others += 1;
        try_publish(&hub, &names[0], "after").is_ok()
    });
    for client in &mut clients[1..] {
        let mut expected = vec!["before".to_owned()];
        expected.extend((0..others).map(|number| format!("meanwhile {number}")));
        assert_eq!(client.texts(others + 1).await, expected);
        client.expect_nothing().await;
    }
    let after = publish(&hub, &names[0], "after");
    assert_ne!(after.epoch, before[0].epoch);
    assert_eq!(clients[0].texts(1).await, ["before"]);
    assert_eq!(clients[0].expect("unsubscribed").await["code"], "interrupted");
    let recover = json!({"epoch": before[0].epoch.to_string(), "offset": before[0].offset});
    let answer = clients[0].ask(json!({"action": "subscribe", "channel": names[0], "recover": recover})).await;
    assert_eq!(answer["recovered"], false);
}

/// The connection on which a hub hears the others, by its number, and the node that it is at.
fn heard_at(redis: &RedisCluster) -> (usize, String) {
    let line = |node: &RedisServer| {
        let clients = node.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        clients.lines().find(|line| !line.contains(" sub=0 ")).map(|line| line.split(' ').next().unwrap().to_owned())
    };
    let mut heard = redis.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, line(node)?)));
    heard.next().unwrap()
}

fn calls(node: &RedisServer, command: &str) -> usize {
    let stats = node.command(&["INFO", "commandstats"]);
    let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse().unwrap())
}

/// What a user of ours may do, as the documentation has it.
fn documented_rules() -> Vec<String> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md")).unwrap();
    let at = text.find("`~realtime:*").unwrap();
    let quoted: Vec<&str> = text[at..].split('`').skip(1).step_by(2).take(3).collect();
    assert_eq!(quoted[1], "+role");
    [quoted[0], quoted[2]].iter().flat_map(|rules| rules.split(' ')).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_user_with_the_documented_rights_is_enough() {
    let redis = RedisCluster::start(2, false, NEVER_MS);
    let rules = documented_rules();
    for node in &redis.nodes {
        let user = ["ACL", "SETUSER", "app", "on", ">secret"].into_iter().chain(rules.iter().map(String::as_str)).collect::<Vec<_>>();
        assert_eq!(node.command(&user), "+OK");
        node.command(&["CONFIG", "SET", "requirepass", "nobody knows"]);
    }
    let hub = on_broker(&redis.url().replace("://", "://app:secret@"), |config| {
        let present = ChannelPolicy { presence: true, ..history("h*", 10) };
        config.channels = vec![present];
    });
    let names: Vec<String> = (0..10).map(|number| format!("h{number}")).collect();
    for name in &names {
        let mut client = Client::subscribed(&hub, name).await;
        publish(&hub, name, "1");
        assert_eq!(client.texts(1).await, ["1"]);
    }
}

#[tokio::test]
async fn a_cluster_is_heard_over_tls() {
    let own = Certified::new("IP:127.0.0.1");
    let (port, bus) = (spare_port().to_string(), spare_port().to_string());
    let (certificate, key) = (own.certificate(), own.key());
    let certificate = certificate.to_str().unwrap();
    let files = ["--tls-cert-file", certificate, "--tls-key-file", key.to_str().unwrap(), "--tls-ca-cert-file", certificate];
    let tls = [
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "no",
        "--tls-cluster",
        "yes",
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--save",
        "",
    ];
    let server = RedisServer::with(&[&files[..], &tls].concat());
    assert_eq!(server.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "+OK");
    eventually("it has all slots", || server.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let hub = on_broker(&format!("rediss+cluster://127.0.0.1:{port}"), |config| config.broker.ca_file = certificate.into());
    let mut client = Client::subscribed(&hub, "c").await;
    publish(&hub, "c", "1");
    assert_eq!(client.texts(1).await, ["1"]);
    assert!(server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().any(|line| !line.contains(" ssub=0 ")));
}

#[tokio::test]
async fn a_connection_that_is_cut_loses_nothing() {
    // I1, I2: the subscriptions of one master, or of all, are cut while others publish.
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let hub = hub(&redis, |_| {});
    let names = channels(&redis, 3);
    // What is kept would be found by and by, heard or not.
    let plain: Vec<String> = (0..9).map(|number| format!("plain {number}")).collect();
    let (mut clients, mut plain_clients) = (Vec::new(), Vec::new());
    for name in &names {
        clients.push(Client::subscribed(&hub, name).await);
    }
    for name in &plain {
        plain_clients.push(Client::subscribed(&hub, name).await);
    }
    let mut expected = Vec::new();
    for round in 0..sized(10, 100) {
        for (at, node) in redis.nodes.iter().enumerate() {
            if round % 4 == 3 || round % 4 == at {
                node.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            }
        }
        for number in 0..20 {
            expected.push(format!("{round} {number}"));
            for name in &names {
                publish(&hub, name, expected.last().unwrap());
            }
        }
    }
    for client in &mut clients {
        assert_eq!(client.texts(expected.len()).await, expected);
        client.expect_nothing().await;
    }
    for (name, client) in plain.iter().zip(&mut plain_clients) {
        wait_until_heard(&redis, name, redis.owner(&key(name)));
        publish(&hub, name, "still here");
        assert_eq!(client.texts(1).await, ["still here"]);
    }
    assert_eq!(hub.stats().interrupted, 0);
}

#[test]
fn a_dead_master_is_not_taken_for_silence() {
    // The hub loses patience after six seconds in which it hears nothing of itself.
    let mut redis = RedisCluster::start(3, false, NEVER_MS);
    let _hub = hub(&redis, |config| config.broker.patience = 2);
    let heard = heard_at(&redis);
    let (dead, alive) = ((heard.0 + 1) % 3, (heard.0 + 2) % 3);
    redis.nodes[dead].kill();
    let before = calls(&redis.nodes[alive], "publish");
    eventually("it has probed for longer than its patience", || calls(&redis.nodes[alive], "publish") >= before + 14);
    redis.nodes.remove(dead);
    let still = heard_at(&redis);
    assert_eq!(still.1, heard.1);
}

#[test]
fn a_cluster_that_nobody_answers_for_is_an_error_of_the_call() {
    let hub = Hub::start(config(|config| {
        config.broker.url = Secret::from("redis+cluster://127.0.0.1:1,127.0.0.1:2");
        config.broker.patience = 1;
    }))
    .unwrap();
    eventually("publishing fails", || try_publish(&hub, "c", "x").is_err_and(|error| error.to_string().contains("127.0.0.1:")));
    for nonsense in ["redis+cluster://secret,,b", "redis+cluster://:secret@a/1", "redis+cluster://"] {
        let error = Hub::start(config(|config| config.broker.url = Secret::from(nonsense))).err().unwrap().to_string();
        assert!(error.contains("broker.url") && !error.contains("secret"), "{error}");
    }
}

/// A publisher on a host without a hub.
fn publisher(url: &str) -> Publisher {
    let options = PublisherOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..PublisherOptions::new(Secret::from(url)) };
    Publisher::new(options).unwrap()
}

fn from_afar<'a>(channel: &'a str, text: &'a str) -> BusPublish<'a> {
    let payload = Payload::Text(text);
    BusPublish { target: channel, to_user: false, event: "e", payload, except: Vec::new(), id: Some(text), keeping: Keeping::default() }
}

fn offsets(publisher: &mut Publisher, publishes: &[BusPublish<'_>]) -> Vec<u64> {
    let mut offsets = Vec::new();
    publisher.publish_all(publishes, |receipt| offsets.push(receipt.position.offset)).unwrap();
    offsets
}

#[tokio::test]
async fn publishers_without_a_hub_reach_every_master() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let mut publisher = publisher(&redis.url());
    let error = publisher.publish(&from_afar("h", "nobody is there")).unwrap_err();
    assert!(matches!(error, PublisherError::NoHub { .. }), "{error}");
    let hub = hub(&redis, |_| {});
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    eventually("the hub has said that it is there", || publisher.hubs().is_ok_and(|count| count == 1));
    let names = channels(&redis, 3);
    let mut clients = Vec::new();
    for name in &names {
        clients.push(Client::subscribed(&hub, name).await);
    }
    // In turn, so that every round trip is for all masters.
    let sent: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let all: Vec<_> = sent.iter().flat_map(|text| names.iter().map(move |name| from_afar(name, text))).collect();
    let expected: Vec<u64> = (1..=200).flat_map(|offset| [offset; 3]).collect();
    assert_eq!(offsets(&mut publisher, &all), expected);
    assert_eq!(offsets(&mut publisher, &all), expected, "with the same ids they are the same");
    for (name, client) in names.iter().zip(&mut clients) {
        assert_eq!(client.texts(200).await, sent);
        let query = Query { limit: 1_000, ..Query::default() };
        let (theirs, ours) = (publisher.history(name, &query).unwrap(), hub.history(name, &query).unwrap());
        assert_eq!(serde_json::to_value(theirs).unwrap(), serde_json::to_value(ours).unwrap());
    }
}

#[tokio::test]
async fn a_publisher_without_a_hub_keeps_its_order_when_a_slot_changes_hands() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let hub = hub(&redis, |config| config.broker.fence = false);
    let channel = channels(&redis, 3).swap_remove(0);
    let mut publisher = publisher(&redis.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    let mut client = Client::subscribed(&hub, &channel).await;
    let slot = redis.slot(&key(&channel));
    let mut sent: Vec<String> = Vec::new();
    let mut publish_more = || {
        let texts: Vec<String> = (sent.len()..sent.len() + 50).map(|number| number.to_string()).collect();
        let publishes: Vec<_> = texts.iter().map(|text| from_afar(&channel, text)).collect();
        let expected: Vec<u64> = (sent.len() as u64 + 1..).take(50).collect();
        assert_eq!(offsets(&mut publisher, &publishes), expected);
        sent.extend(texts);
    };
    publish_more();
    // The slot is elsewhere, and nobody has told the publisher.
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        redis.migrate(slot, from, to);
        publish_more();
    }
    assert_eq!(client.texts(sent.len()).await, sent);
    let page = publisher.history(&channel, &Query { limit: 1_000, newest_first: true, ..Query::default() }).unwrap();
    assert_eq!(page.position.offset as usize, sent.len(), "each once");
    assert_eq!(hub.stats().interrupted, 0);
}

#[test]
fn a_publisher_without_a_hub_follows_the_replica_that_takes_over() {
    let mut redis = RedisCluster::start(3, true, TIMEOUT_MS);
    let _hub = hub(&redis, |config| config.broker.patience = 4);
    let names = channels(&redis, 3);
    let mut publisher = publisher(&redis.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    for name in &names {
        publisher.publish(&from_afar(name, "before")).unwrap();
    }
    // What hubs go by is somewhere, too: of the others one that does not have it.
    let dead = (0..3).find(|at| *at != redis.owner("realtime:rules")).unwrap();
    redis.nodes[dead].kill();
    let others: Vec<&String> = names.iter().enumerate().filter(|(at, _)| *at != dead).map(|(_, name)| name).collect();
    let mut round = 0;
    eventually("the replica takes over", || {
        round += 1;
        let text = format!("meanwhile {round}");
        for name in &others {
            publisher.publish(&from_afar(name, &text)).unwrap();
        }
        publisher.publish(&from_afar(&names[dead], "after")).is_ok()
    });
}

#[test]
fn a_master_that_stands_still_costs_a_publisher_without_a_hub_its_own_channels_only() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let _hub = hub(&redis, |_| {});
    let names = channels(&redis, 3);
    let timeouts = Duration::from_secs(2);
    let options = PublisherOptions {
        connect_timeout: timeouts,
        answer_timeout: timeouts,
        ..PublisherOptions::new(Secret::from(redis.url().as_str()))
    };
    let mut publisher = Publisher::new(options).unwrap();
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    eventually("all are connected", || names.iter().all(|name| publisher.publish(&from_afar(name, "before")).is_ok()));
    let still = (0..3).find(|at| *at != redis.owner("realtime:rules")).unwrap();
    redis.nodes[still].freeze(true);
    let (mut late, mut left_alone) = (false, false);
    eventually("it is late, and then left alone", || {
        match publisher.publish(&from_afar(&names[still], "x")) {
            Err(PublisherError::Timeout { .. } | PublisherError::Connect { .. }) => late = true,
            Err(PublisherError::Paused { .. }) => left_alone = true,
            outcome => panic!("{outcome:?}"),
        }
        for (at, name) in names.iter().enumerate().filter(|(at, _)| *at != still) {
            let outcome = publisher.publish(&from_afar(name, "meanwhile"));
            assert!(!matches!(outcome, Err(PublisherError::Paused { .. })), "master {at}: {outcome:?}");
        }
        late && left_alone
    });
    redis.nodes[still].freeze(false);
    eventually("it is back", || publisher.publish(&from_afar(&names[still], "after")).is_ok());
}

/// Longer than a publisher goes without asking for what hubs go by.
const PAST_FRESH: Duration = Duration::from_secs(6);

#[test]
fn a_publisher_without_a_hub_goes_on_while_the_master_is_dead_that_knows_what_hubs_go_by() {
    let mut redis = RedisCluster::start(3, false, NEVER_MS);
    let _hub = hub(&redis, |config| config.broker.patience = 4);
    let names = channels(&redis, 3);
    let mut publisher = publisher(&redis.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    for name in &names {
        publisher.publish(&from_afar(name, "before")).unwrap();
    }
    let dead = redis.owner("realtime:rules");
    redis.nodes[dead].kill();
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < PAST_FRESH {
        round += 1;
        for name in names.iter().enumerate().filter(|(at, _)| *at != dead).map(|(_, name)| name) {
            publisher.publish(&from_afar(name, &round.to_string())).unwrap();
        }
    }
    // What has no rules to go by does not begin.
    let error = self::publisher(&redis.url()).publish(&from_afar(&names[(dead + 1) % 3], "x")).unwrap_err();
    assert!(error.is_unsent(), "{error}");
    assert!(publisher.publish(&from_afar(&names[dead], "x")).is_err());
    redis.nodes[dead].restart();
    eventually("it is back", || publisher.publish(&from_afar(&names[dead], "after")).is_ok());
}

#[test]
fn a_master_that_stands_still_and_knows_what_hubs_go_by_costs_no_other_channel_a_call() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let _hub = hub(&redis, |_| {});
    let names = channels(&redis, 3);
    // Half of it is for asking.
    let options = PublisherOptions {
        connect_timeout: Duration::from_secs(4),
        answer_timeout: Duration::from_secs(4),
        ..PublisherOptions::new(Secret::from(redis.url().as_str()))
    };
    let mut publisher = Publisher::new(options).unwrap();
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    eventually("all are connected", || names.iter().all(|name| publisher.publish(&from_afar(name, "before")).is_ok()));
    let still = redis.owner("realtime:rules");
    redis.nodes[still].freeze(true);
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < PAST_FRESH {
        round += 1;
        for name in names.iter().enumerate().filter(|(at, _)| *at != still).map(|(_, name)| name) {
            publisher.publish(&from_afar(name, &round.to_string())).unwrap();
        }
    }
    redis.nodes[still].freeze(false);
    eventually("it is back", || publisher.publish(&from_afar(&names[still], "after")).is_ok());
}

#[test]
fn a_publisher_without_a_hub_asks_others_about_a_master_that_has_lost_the_cluster() {
    let redis = RedisCluster::start(3, false, NEVER_MS);
    let hub = hub(&redis, |_| {});
    let rules = redis.owner("realtime:rules");
    let (lost, next) = ((rules + 1) % 3, (rules + 2) % 3);
    let channel = channels(&redis, 3).swap_remove(lost);
    let mut publisher = publisher(&redis.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    publisher.publish(&from_afar(&channel, "before")).unwrap();
    drop(hub);
    // It knows no others for a minute, nor who has the slot, which another one has taken.
    let slot = redis.slot(&key(&channel)).to_string();
    let ids: Vec<String> = redis.nodes.iter().map(|node| node.command(&["CLUSTER", "MYID"])).collect();
    for other in [rules, next] {
        assert_eq!(redis.nodes[lost].command(&["CLUSTER", "FORGET", &ids[other]]), "+OK");
    }
    assert_eq!(redis.nodes[lost].command(&["CLUSTER", "DELSLOTS", &slot]), "+OK");
    for node in [rules, next] {
        assert_eq!(redis.nodes[node].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &ids[next]]), "+OK");
    }
    publisher.publish(&from_afar(&channel, "after")).unwrap();
}

#[test]
fn a_publisher_that_announces_in_another_way_than_the_hubs_hear_is_told() {
    // One master has all slots: both addresses lead to it.
    let redis = RedisCluster::start(1, false, NEVER_MS);
    let single = redis.nodes[0].url();
    let _hub = hub(&redis, |_| {});
    let mut publisher = publisher(&single);
    let mut said = String::new();
    eventually("the hub has said what it goes by", || {
        said = publisher.publish(&from_afar("h", "x")).unwrap_err().to_string();
        !said.contains("no hub has been")
    });
    assert!(said.contains("one of a cluster (redis+cluster://)"), "{said}");
}

#[test]
fn a_publisher_without_a_hub_waits_for_the_replicas_of_each_master() {
    let redis = RedisCluster::start(2, true, NEVER_MS);
    let _hub = hub(&redis, |config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 300));
    let names = channels(&redis, 2);
    let mut publisher = publisher(&redis.url());
    eventually("the hub has said what it goes by", || publisher.reach().is_ok());
    let both = [from_afar(&names[0], "1"), from_afar(&names[1], "1")];
    eventually("both have a replica", || publisher.publish_all(&both, |_| {}).is_ok());
    redis.nodes[3].freeze(true);
    publisher.publish(&from_afar(&names[0], "2")).unwrap();
    let error = publisher.publish(&from_afar(&names[1], "2")).unwrap_err().to_string();
    assert!(error.contains("0 of 1 replicas") && error.contains("may or may not"), "{error}");
    redis.nodes[3].freeze(false);
}

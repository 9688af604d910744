//! Hubs on a Redis Cluster: each channel is on one of the masters, and what happens to one concerns its channels only.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::BTreeSet;
use std::sync::Arc;

use realtime_core::broker::redis::Redis;
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::config::{BrokerConfig, Secret};
use realtime_core::history::Query;
use realtime_core::{Config, Hub, Payload, Position, Publish};
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::publishing::{publish, try_publish};
use realtime_testkit::{Client, DEADLINE, RedisCluster, RedisServer, config, eventually};
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

//! Hubs that share a Redis are one: who is on a channel is told once, whichever hub it is on.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use realtime_core::bus::client::{Client as BusClient, ClientOptions};
use realtime_core::bus::frame::BusQuery;
use realtime_core::config::{AuthMode, AuthModes, ChannelPolicy, Secret};
use realtime_core::{Config, Hub, Payload, QueryError, User};
use realtime_testkit::pusher::{ApiRequest, PusherClient, app};
use realtime_testkit::{Client, DEADLINE, RawClient, RedisServer, config, eventually, fresh_directory, on_time, sized, within};
use serde_json::{Value, json};

fn shown(pattern: &str) -> ChannelPolicy {
    ChannelPolicy { pattern: pattern.into(), presence: true, ..ChannelPolicy::default() }
}

/// A hub with rooms that show who is there and forget who has gone at once. It has reached its Redis.
fn hub(server: &RedisServer, change: impl FnOnce(&mut Config)) -> Hub {
    let hub = Hub::start(config(|config| {
        config.broker.url = Secret::from(server.url().as_str());
        config.channels = vec![shown("room*")];
        config.presence_grace_ms = 0;
        change(config);
    }))
    .unwrap();
    eventually("the hub reaches its Redis", || hub.channel_users("room-warm-up").is_ok());
    hub
}

async fn somebody(hub: &Hub, id: &str) -> Client {
    let client = Client::connect(hub).await;
    let info = json!({"name": id}).to_string();
    let mut set = false;
    eventually("the user's own channel is heard", || {
        set = hub.set_user(client.socket_id(), Some(User::new(id, Some(&info)).unwrap())).unwrap();
        set
    });
    client
}

/// What a client knows of a channel's users: each change is checked against what it knew.
struct View {
    client: Client,
    channel: String,
    known: BTreeSet<String>,
    told: Vec<String>,
}

impl View {
    async fn new(hub: &Hub, id: &str, channel: &str) -> View {
        let mut client = somebody(hub, id).await;
        let answer = loop {
            let answer = client.ask(json!({"action": "subscribe", "channel": channel})).await;
            if answer["code"] != "unavailable" {
                break answer;
            }
        };
        let users = answer["users"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let known: BTreeSet<String> = users.iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(known.len(), users.len(), "somebody twice: {answer}");
        assert!(known.contains(id), "{id} is not in its own list: {answer}");
        View { client, channel: channel.into(), known, told: Vec::new() }
    }

    fn note(&mut self, value: &Value) {
        assert_eq!(value["channel"], self.channel.as_str(), "{value}");
        let user = value["user"]["id"].as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        match value["type"].as_str() {
            Some("joined") => {
                self.told.push(format!("+{user}"));
                assert!(self.known.insert(user), "{value} again");
            }
            Some("left") => {
                self.told.push(format!("-{user}"));
                assert!(self.known.remove(&user), "{value} of nobody");
            }
            _ => panic!("{value}"),
        }
    }

    /// Follows until it knows of these users and no others.
    async fn until(&mut self, users: &[&str]) {
        let wanted: BTreeSet<String> = users.iter().map(|user| (*user).to_owned()).collect();
        while self.known != wanted {
            let value = self.client.json().await;
            self.note(&value);
        }
    }

    async fn leave(mut self) {
        self.client.send_json(json!({"action": "unsubscribe", "channel": self.channel})).await;
        while self.client.json().await["type"] != "unsubscribed" {}
    }
}

fn present(hub: &Hub, channel: &str) -> BTreeMap<String, usize> {
    hub.channel_users(channel).unwrap().into_iter().map(|user| (user.user.id().to_owned(), user.connections)).collect()
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    of.iter().map(|(id, count)| ((*id).to_owned(), *count)).collect()
}

#[tokio::test]
async fn a_user_on_two_hubs_comes_once_and_leaves_once() {
    // Invariant I8.
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let mut bob = View::new(&hubs[1], "bob", "room").await;
    assert_eq!(bob.known, ["ada", "bob"].map(str::to_owned).into());
    ada.until(&["ada", "bob"]).await;
    let second = View::new(&hubs[0], "bob", "room").await;
    for hub in &hubs {
        assert_eq!(present(hub, "room"), counts(&[("ada", 1), ("bob", 2)]));
        assert_eq!((hub.count_users("room").unwrap(), hub.channel_user("room", "bob").unwrap().unwrap().connections), (2, 2));
        assert_eq!(hub.channel_user("room", "bob").unwrap().unwrap().user.info(), Some("{\"name\":\"bob\"}"));
    }
    second.leave().await;
    let eve = View::new(&hubs[1], "eve", "room").await;
    ada.until(&["ada", "bob", "eve"]).await;
    bob.until(&["ada", "bob", "eve"]).await;
    eve.leave().await;
    bob.leave().await;
    ada.until(&["ada"]).await;
    assert_eq!(ada.told, ["+bob", "+eve", "-eve", "-bob"]);
    ada.client.expect_nothing().await;
}

#[tokio::test]
async fn a_page_that_reloads_onto_the_other_hub_is_nobodys_news() {
    // Case R34 over two hubs, and I8.
    let server = RedisServer::start();
    let patient = |config: &mut Config| config.presence_grace_ms = 600_000;
    let hubs = [hub(&server, patient), hub(&server, patient)];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let mut at = 0;
    let mut bob = View::new(&hubs[at], "bob", "room").await;
    for _ in 0..10 {
        bob.client.reset();
        eventually("the connection's end is seen", || present(&hubs[1 - at], "room")["bob"] == 0);
        at = 1 - at;
        bob = View::new(&hubs[at], "bob", "room").await;
    }
    // Who unsubscribes leaves at once.
    bob.leave().await;
    ada.until(&["ada", "bob"]).await;
    ada.until(&["ada"]).await;
    assert_eq!(ada.told, ["+bob", "-bob"]);
    // A grace that nobody comes back in ends, also when the hub on which it began has gone.
    let short = |config: &mut Config| config.presence_grace_ms = 300;
    let third = hub(&server, short);
    let eve = View::new(&third, "eve", "room").await;
    ada.until(&["ada", "eve"]).await;
    eve.client.reset();
    eventually("the connection's end is seen", || present(&hubs[0], "room").get("eve") != Some(&1));
    third.stop(Duration::from_secs(30));
    ada.until(&["ada"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_get_in_as_there_are_places_on_all_hubs_together() {
    let server = RedisServer::start();
    let two = |config: &mut Config| config.channels[0].max_members = 2;
    let hubs = [hub(&server, two), hub(&server, two)];
    for round in 0..10 {
        let channel = format!("room{round}");
        let coming: Vec<_> = (0..8)
            .map(|number| {
                let (hub, channel) = (hubs[number % 2].clone(), channel.clone());
                tokio::spawn(async move {
                    let mut client = Client::connect(&hub).await;
                    let answer = client.ask(json!({"action": "subscribe", "channel": channel})).await;
                    (client, answer)
                })
            })
            .collect();
        let mut inside = Vec::new();
        for coming in coming {
            let (client, answer) = coming.await.unwrap();
            match answer["type"].as_str() {
                Some("subscribed") => inside.push(client),
                _ => assert_eq!(answer["code"], "channel_full"),
            }
        }
        assert_eq!(inside.len(), 2);
        inside.pop().unwrap().reset();
        let mut client = Client::connect(&hubs[round % 2]).await;
        while client.ask(json!({"action": "subscribe", "channel": channel})).await["type"] != "subscribed" {}
    }
}

#[tokio::test]
async fn a_hub_that_stops_gives_its_users_up_at_once() {
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let _others = [View::new(&hubs[1], "bob", "room").await, View::new(&hubs[1], "eve", "room").await];
    let _both = View::new(&hubs[0], "bob", "room").await;
    ada.until(&["ada", "bob", "eve"]).await;
    hubs[1].stop(Duration::from_secs(30));
    assert_eq!(present(&hubs[0], "room"), counts(&[("ada", 1), ("bob", 1)]));
    ada.until(&["ada", "bob"]).await;
    assert_eq!(ada.told, ["+bob", "+eve", "-eve"]);
}

#[tokio::test]
async fn what_redis_forgets_is_put_back_and_nobody_leaves_meanwhile() {
    // Case R26 for presence, and I8: everything, each key, counts that lie.
    let server = RedisServer::start();
    let brief = |config: &mut Config| config.broker.presence_ttl_ms = 3_000;
    let hubs = [hub(&server, brief), hub(&server, brief)];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let mut bob = View::new(&hubs[1], "bob", "room").await;
    ada.until(&["ada", "bob"]).await;
    let truth = counts(&[("ada", 1), ("bob", 1)]);
    for what in ["all", "here", "users", "seats", "due", "lies"] {
        match what {
            "all" => drop(server.command(&["FLUSHALL"])),
            "lies" => {
                server.command(&["HSET", "realtime:{room}:here", "v", "1e300", "c", "-1", "b", "x", "u", "99"]);
                server.command(&["HSET", "realtime:{room}:seats", "+bob", "nonsense", "ghost", "1"]);
                server.command(&["ZADD", "realtime:{room}:due", "1", "n", "1", "x", "1", "gghost"]);
            }
            what => drop(server.command(&["DEL", &format!("realtime:{{room}}:{what}")])),
        }
        eventually(what, || present(&hubs[0], "room") == truth);
        let eve = View::new(&hubs[1], "eve", "room").await;
        ada.until(&["ada", "bob", "eve"]).await;
        bob.until(&["ada", "bob", "eve"]).await;
        eve.leave().await;
        ada.until(&["ada", "bob"]).await;
        bob.until(&["ada", "bob"]).await;
        eventually(what, || present(&hubs[1], "room") == truth);
    }
    for view in [&mut ada, &mut bob] {
        view.client.expect_nothing().await;
        assert!(view.told.iter().all(|told| ["+bob", "+eve", "-eve"].contains(&told.as_str())), "{:?}", view.told);
    }
}

#[tokio::test]
async fn while_redis_is_away_clients_stay_and_nobody_comes() {
    // Case R21 for presence: nothing on disk, so that everything is put back.
    let mut server = RedisServer::start();
    let brief = |config: &mut Config| config.broker.presence_ttl_ms = 3_000;
    let hubs = [hub(&server, brief), hub(&server, brief)];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let bob = View::new(&hubs[1], "bob", "room").await;
    let mut eve = View::new(&hubs[1], "eve", "room").await;
    ada.until(&["ada", "bob", "eve"]).await;
    server.kill();
    let mut late = Client::connect(&hubs[0]).await;
    late.send_json(json!({"action": "subscribe", "channel": "room-late", "id": 1})).await;
    assert_eq!(late.expect_error("unavailable").await["id"], 1);
    assert!(hubs[0].channel_users("room").is_err());
    // One leaves meanwhile: the others hear of it when Redis is back.
    bob.client.reset();
    server.restart();
    ada.until(&["ada", "eve"]).await;
    eve.until(&["ada", "eve"]).await;
    eventually("all is put back", || hubs[0].channel_users("room").is_ok_and(|users| users.len() == 2));
    let dan = View::new(&hubs[0], "dan", "room").await;
    eve.until(&["ada", "dan", "eve"]).await;
    ada.until(&["ada", "dan", "eve"]).await;
    dan.leave().await;
    ada.until(&["ada", "eve"]).await;
    assert_eq!(ada.told, ["+bob", "+eve", "-bob", "+dan", "-dan"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_that_ask_each_other_at_once_all_have_their_answers() {
    // More than either has threads for questions of its own: answers need none of those.
    let server = RedisServer::start();
    let place = fresh_directory("realtime-cluster");
    let socket = |at: usize| place.join(format!("{at}.sock"));
    let hubs = [0, 1].map(|at| hub(&server, |config| config.socket = Some(socket(at).to_str().unwrap().to_owned())));
    let mut there = Vec::new();
    for (hub, id) in hubs.iter().zip(["ada", "bob"]) {
        let mut client = somebody(hub, id).await;
        client.subscribe("news").await;
        there.push(client);
    }
    let both = |answer: &Value| answer.as_array().is_some_and(|users| users.len() == 2);
    let ask = |at: usize| -> Value {
        let options = ClientOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..ClientOptions::new(&socket(at)) };
        BusClient::new(options).query(&BusQuery::ChannelUsers { channel: "news".into() }).unwrap()
    };
    tokio::task::block_in_place(|| {
        eventually("each knows of the other", || [0, 1].iter().all(|at| both(&ask(*at))));
        let begin = std::sync::Barrier::new(24);
        std::thread::scope(|scope| {
            let asked = (0..24).map(|number| {
                let (begin, ask) = (&begin, &ask);
                scope.spawn(move || {
                    begin.wait();
                    ask(number % 2)
                })
            });
            for answer in asked.collect::<Vec<_>>() {
                let answer = answer.join().unwrap();
                assert!(both(&answer), "{answer}");
            }
        });
    });
    drop(hubs);
    std::fs::remove_dir_all(&place).unwrap();
}

#[tokio::test]
async fn a_restart_from_the_disk_has_nobody_leave() {
    // Nobody can renew a lease while the server is away.
    let mut server = RedisServer::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let mut bob = View::new(&hubs[1], "bob", "room").await;
    ada.until(&["ada", "bob"]).await;
    // As if the leases' time had passed meanwhile.
    let end =
        "local all = redis.call('ZRANGE', KEYS[1], 0, -1) for _, one in ipairs(all) do redis.call('ZADD', KEYS[1], 1, one) end return #all";
    server.aside(|server| assert_eq!(server.command(&["EVAL", end, "1", "realtime:{room}:due"]), ":2"));
    server.restart();
    let eve = View::new(&hubs[1], "eve", "room").await;
    for view in [&mut ada, &mut bob] {
        view.until(&["ada", "bob", "eve"]).await;
    }
    eve.leave().await;
    for view in [&mut ada, &mut bob] {
        view.until(&["ada", "bob"]).await;
        view.client.expect_nothing().await;
        assert!(!view.told.iter().any(|told| told == "-ada" || told == "-bob"), "{:?}", view.told);
    }
}

#[tokio::test]
async fn what_no_hub_has_announced_is_dropped() {
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    for hostile in ["", "x", &"0".repeat(60), &format!("{}J0003eve{{", "0".repeat(48)), &"z".repeat(100_000)] {
        server.command(&["PUBLISH", "realtime:{room}:who", hostile]);
    }
    // As a hub would write it, but of another epoch and version: the truth is read.
    server.command(&["PUBLISH", "realtime:{room}:who", &format!("{}J0003eve", "0000000000000009".repeat(3))]);
    // A user whose info is no JSON is not shown to anybody.
    server.command(&["HSET", "realtime:{room}:users", "mallory", "{"]);
    server.command(&["HSET", "realtime:{room}:here", "u", "2"]);
    let mut bob = View::new(&hubs[1], "bob", "room").await;
    ada.until(&["ada", "bob"]).await;
    // Counts that contradict each other begin anew, and every hub puts back what it has.
    bob.until(&["ada", "bob"]).await;
    eventually("all is put back", || present(&hubs[1], "room") == counts(&[("ada", 1), ("bob", 1)]));
    for view in [&mut ada, &mut bob] {
        view.client.expect_nothing().await;
    }
    // A key of the wrong type is an error, not an end.
    server.command(&["SET", "realtime:{room9}:here", "text"]);
    let mut client = Client::connect(&hubs[0]).await;
    let answer = client.ask(json!({"action": "subscribe", "channel": "room9"})).await;
    assert_eq!(answer["code"], "unavailable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_churn_on_two_hubs_every_view_follows_the_truth() {
    // Case R32, invariants I8 and I9; 300 users at full size, as fast as it goes.
    let server = RedisServer::start();
    let brief = |config: &mut Config| config.presence_grace_ms = 5;
    let hubs = [hub(&server, brief), hub(&server, brief)];
    let mut watchers = Vec::new();
    for (at, hub) in hubs.iter().enumerate() {
        watchers.push(View::new(hub, &format!("watcher{at}"), "room").await);
    }
    let rounds = sized(6, 12);
    // Users with one to three connections each, spread over the hubs.
    let churners: Vec<_> = (0..sized(16, 300))
        .map(|user| {
            let hubs = hubs.clone();
            tokio::spawn(async move {
                let id = format!("u{user}");
                let mut kept = Vec::new();
                for round in 0..rounds {
                    kept.push(View::new(&hubs[(user + round) % 2], &id, "room").await);
                    if kept.len() > (user + round) % 3 {
                        let gone: View = kept.remove((user * 7 + round) % kept.len());
                        match round % 3 {
                            0 => gone.client.reset(),
                            1 => gone.client.close().await,
                            _ => gone.leave().await,
                        }
                    }
                }
                let id = |view| (id.clone(), view);
                if user % 2 == 0 { kept.into_iter().map(id).collect() } else { Vec::new() }
            })
        })
        .collect();
    let mut kept = Vec::new();
    for churner in churners {
        kept.extend(on_time("the churn", churner).await.unwrap());
    }
    let end = View::new(&hubs[0], "end", "room").await;
    let truth: BTreeSet<&str> = kept.iter().map(|(id, _)| id.as_str()).chain(["watcher0", "watcher1", "end"]).collect();
    assert!(truth.len() > 3);
    let truth: Vec<&str> = truth.into_iter().collect();
    for watcher in &mut watchers {
        watcher.until(&truth).await;
    }
    for hub in &hubs {
        eventually("Redis has the truth", || present(hub, "room").keys().map(String::as_str).eq(truth.iter().copied()));
        let connections: usize = present(hub, "room").values().sum();
        assert_eq!(connections, kept.len() + 3);
    }
    drop((kept, watchers, end));
    for hub in &hubs {
        eventually("everybody has gone", || hub.count_users("room").unwrap() == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_have_vanished_without_a_word_leave_once_on_every_hub() {
    // Case R33, invariants I8 and I9 (100 of them at full size; of a killed hub: the server's tests): they are read no more, and answer no ping.
    let server = RedisServer::start();
    let watched = hub(&server, |_| {});
    let haunted = hub(&server, |config| {
        config.heartbeat.ping_interval_ms = 200;
        config.heartbeat.pong_timeout_ms = 2_000;
    });
    let mut watcher = View::new(&watched, "watcher", "room").await;
    let ghosts: Vec<RawClient> = (0..sized(20, 100))
        .map(|number| {
            let (mut ghost, greeting) = RawClient::connect(&haunted, "/ws");
            let socket = greeting["socket_id"].as_str().unwrap().parse().unwrap();
            // Where the machine is slow it has been taken for gone already.
            haunted.set_user(socket, Some(User::new(&format!("ghost{number}"), None).unwrap())).unwrap();
            ghost.send_text(&json!({"action": "subscribe", "channel": "room"}).to_string());
            ghost
        })
        .collect();
    // They are to be gone a second after ping and pong.
    let limit = Duration::from_millis(200 + 2_000 + 1_000) * 5;
    within(limit, "all have gone", || haunted.stats().connections == 0 && present(&watched, "room") == counts(&[("watcher", 1)]));
    let last = View::new(&haunted, "last", "room").await;
    watcher.until(&["watcher", "last"]).await;
    last.leave().await;
    watcher.until(&["watcher"]).await;
    let mut told: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for change in &watcher.told {
        told.entry(&change[1..]).or_default().push(&change[..1]);
    }
    assert!(told.len() > ghosts.len() / 2 && told.values().all(|changes| changes == &["+", "-"]), "{told:?}");
    drop(ghosts);
}

#[tokio::test]
async fn who_is_named_while_the_place_is_asked_for_is_shown() {
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut clients = Vec::new();
    for number in 0..20 {
        // The subscription is on its way when the connection gets its user.
        let (client, greeting) = RawClient::connect(&hub, "/ws/room");
        let socket = greeting["socket_id"].as_str().unwrap().parse().unwrap();
        assert!(hub.set_user(socket, Some(User::new(&format!("u{number}"), None).unwrap())).unwrap());
        clients.push(client);
    }
    eventually("all are shown", || present(&hub, "room").len() == 20);
    assert!(present(&hub, "room").values().all(|connections| *connections == 1));
}

#[tokio::test]
async fn the_documented_rights_are_enough_for_all_that_hubs_share() {
    let server = RedisServer::start();
    let documentation = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md")).unwrap();
    let rules = documentation.lines().find(|line| line.starts_with("`~realtime:*")).unwrap().split('`').nth(1).unwrap();
    let user: Vec<&str> = ["ACL", "SETUSER", "app", "on", ">geheim"].into_iter().chain(rules.split(' ')).collect();
    assert_eq!(server.command(&user), "+OK");
    server.command(&["CONFIG", "SET", "requirepass", "nobody knows"]);
    let url = format!("redis://app:geheim@127.0.0.1:{}/0", server.port());
    let hubs = two(&server, |config| config.broker.url = Secret::from(url.as_str()));
    let mut ada = View::new(&hubs[0], "ada", "room").await;
    let bob = View::new(&hubs[1], "bob", "room").await;
    ada.until(&["ada", "bob"]).await;
    assert_eq!(present(&hubs[0], "room"), counts(&[("ada", 1), ("bob", 1)]));
    assert_eq!(hubs[0].disconnect_user("bob", 4009, "").unwrap(), 1);
    ada.until(&["ada"]).await;
    drop(bob);
}

/// Two hubs that know of each other.
fn two(server: &RedisServer, change: impl Fn(&mut Config)) -> [Hub; 2] {
    let hubs = [hub(server, &change), hub(server, &change)];
    for hub in &hubs {
        eventually("the hubs know of each other", || hub.cluster().is_ok_and(|cluster| cluster["hubs"].as_array().unwrap().len() == 2));
    }
    hubs
}

#[tokio::test]
async fn what_is_asked_of_one_hub_is_answered_for_all() {
    let server = RedisServer::start();
    let hubs = two(&server, |_| {});
    let mut clients = Vec::new();
    for (at, id) in [(0, "ada"), (1, "ada"), (1, "bob")] {
        let mut client = somebody(&hubs[at], id).await;
        client.subscribe("news").await;
        clients.push(client);
    }
    for hub in &hubs {
        assert_eq!(present(hub, "news"), counts(&[("ada", 2), ("bob", 1)]));
        assert_eq!(hub.count_users("news").unwrap(), 2);
        assert_eq!(hub.channel_user("news", "bob").unwrap().unwrap().user.info(), Some("{\"name\":\"bob\"}"));
    }
    // What is sent to a user reaches all of the user's connections, and can except one of them.
    hubs[0].publish_to_user("ada", "e", Payload::Text("to both"), &[]).unwrap();
    hubs[0].publish_to_user("ada", "e", Payload::Text("to one"), &[clients[1].socket_id()]).unwrap();
    assert_eq!(clients[0].expect("message").await["data"], "to both");
    assert_eq!(clients[1].expect("message").await["data"], "to both");
    assert_eq!(clients[0].expect("message").await["data"], "to one");
    clients[1].expect_nothing().await;

    assert_eq!(hubs[0].disconnect_user("ada", 4009, "away").unwrap(), 2);
    for client in &mut clients[..2] {
        assert_eq!(client.closed().await, (4009, "away".to_owned()));
    }
    clients[2].expect_nothing().await;
    assert_eq!(hubs[0].disconnect_user("nobody", 4009, "").unwrap(), 0);
    assert!(matches!(hubs[0].disconnect_user("bob", 1001, ""), Err(QueryError::InvalidCloseCode { code: 1001 })));
}

#[tokio::test]
async fn who_is_banned_is_kept_out_of_every_hub() {
    let server = RedisServer::start();
    let hubs = two(&server, |config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
    });
    let path = format!("/ws?token={}", application::token("ada"));
    let mut ada = Client::connect_to(&hubs[1], &path).await;
    assert_eq!(hubs[0].ban_user("ada", Duration::from_secs(3_600), 4009, "signed out").unwrap(), 1);
    assert_eq!(ada.closed().await, (4009, "signed out".to_owned()));
    for hub in &hubs {
        let mut back = Client::open(hub, &path).await;
        assert_eq!(back.closed().await, (4009, "the user is banned".to_owned()));
    }
}

#[tokio::test]
async fn the_http_api_of_any_hub_speaks_for_all() {
    // Case R09 for clients of the Pusher protocol: the sender is excepted, whichever hub it and the request are on.
    let server = RedisServer::start();
    let hubs = two(&server, |config| config.apps = vec![app()]);
    let mut sender = PusherClient::subscribed(&hubs[0], "news").await;
    let mut other = PusherClient::subscribed(&hubs[1], "news").await;
    for hub in &hubs {
        let body = json!({"name": "e", "channel": "news", "data": "1", "socket_id": sender.socket_id.to_string()});
        ApiRequest::post("events", &body).ask(hub);
        ApiRequest::post("events", &json!({"name": "all", "channel": "news", "data": "2"})).ask(hub);
        assert_eq!(other.expect("e").await["data"], 1);
        assert_eq!((other.expect("all").await["data"].clone(), sender.expect("all").await["data"].clone()), (json!(2), json!(2)));
    }
    let mut members = Vec::new();
    for (at, user) in [(0, "u1"), (1, "u1"), (1, "u2")] {
        let mut client = PusherClient::connect(&hubs[at]).await;
        let data = json!({"user_id": user}).to_string();
        let auth = client.auth("presence-a", Some(&data));
        client.send("pusher:subscribe", json!({"auth": auth, "channel_data": data, "channel": "presence-a"})).await;
        client.expect("pusher_internal:subscription_succeeded").await;
        members.push(client);
    }
    for hub in &hubs {
        let get = |path: &str, params: &[(&str, &str)]| ApiRequest::get(path, params).ask(hub);
        assert_eq!(get("channels", &[]), json!({"channels": {"presence-a": {}, "news": {}}}));
        assert_eq!(get("channels", &[("info", "subscription_count")])["channels"]["news"]["subscription_count"], 2);
        assert_eq!(
            get("channels/presence-a", &[("info", "user_count,subscription_count")]),
            json!({"occupied": true, "user_count": 2, "subscription_count": 3})
        );
        assert_eq!(get("channels/presence-a/users", &[]), json!({"users": [{"id": "u1"}, {"id": "u2"}]}));
    }
    let user = json!({"id": "u1"}).to_string();
    let mut signed_in = PusherClient::connect(&hubs[1]).await;
    signed_in.sign_in(&user).await;
    ApiRequest::new("POST", "users/u1/terminate_connections", &[], "{}").ask(&hubs[0]);
    assert_eq!(signed_in.client.closed().await.0, 4009);
}

#[tokio::test]
async fn a_hub_that_does_not_answer_is_named_and_letters_that_are_none_are_dropped() {
    let server = RedisServer::start();
    let hubs = two(&server, |config| config.broker.patience = 4);
    let _ada = {
        let mut client = somebody(&hubs[1], "ada").await;
        client.subscribe("news").await;
        client
    };
    for hostile in ["", "x", "{}", "{\"from\":1,\"number\":1,\"ask\":{\"op\":\"format\"}}", &"[".repeat(100_000)] {
        server.command(&["PUBLISH", "realtime:control", hostile]);
    }
    // An answer that nobody asked for, and a question whose asker is not there.
    server.command(&["PUBLISH", "realtime:control", "{\"from\":1,\"number\":1,\"answer\":[]}"]);
    server.command(&["PUBLISH", "realtime:control", "{\"from\":1,\"number\":1,\"ask\":{\"op\":\"status\"}}"]);
    assert_eq!(present(&hubs[0], "news"), counts(&[("ada", 1)]));
    // One that says that it is there, and is not; and something that is no hub.
    server.command(&["ZADD", "realtime:hubs", "99999999999999", "00000000000000aa", "99999999999999", "nobody"]);
    assert_eq!(present(&hubs[0], "news"), counts(&[("ada", 1)]), "those who answer are heard");
    let cluster = hubs[0].cluster().unwrap();
    assert_eq!((cluster["missing"].clone(), cluster["hubs"].as_array().unwrap().len()), (json!(["00000000000000aa"]), 2));
    // Who stops is not waited for.
    server.command(&["ZREM", "realtime:hubs", "00000000000000aa"]);
    hubs[1].stop(Duration::from_secs(30));
    let cluster = hubs[0].cluster().unwrap();
    assert_eq!((cluster["missing"].clone(), cluster["hubs"].as_array().unwrap().len()), (json!([]), 1));
}

#[test]
fn the_life_of_a_lease_has_its_limits() {
    for (ttl, fits) in [(999, false), (1_000, true), (1_001, true), (599_999, true), (600_000, true), (600_001, false)] {
        let config = config(|config| config.broker.presence_ttl_ms = ttl);
        match config.validate() {
            Ok(()) => assert!(fits, "{ttl}"),
            Err(error) => assert!(!fits && error.to_string().contains("presence_ttl_ms"), "{error}"),
        }
    }
}

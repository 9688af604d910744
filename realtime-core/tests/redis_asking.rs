//! What publishers without a hub ask of the hubs: the answers are those that a hub would give, and nobody is waited for longer than
//! the deadline.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use realtime_core::broker::redis::publisher::{Gathered, Publisher, PublisherError, PublisherOptions};
use realtime_core::config::{AppConfig, AuthMode, AuthModes, ChannelPolicy, Secret};
use realtime_core::{ChannelUser, Config, Hub, QueryError, User};
use realtime_testkit::hub::start;
use realtime_testkit::{Client, DEADLINE, RedisCluster, RedisSentinels, RedisServer, eventually};
use serde_json::{Value, json};

/// As long as it takes; tests about a deadline set it themselves.
fn publisher(url: &str) -> Publisher {
    waiting(url, DEADLINE)
}

fn waiting(url: &str, hubs_timeout: Duration) -> Publisher {
    let timeouts = PublisherOptions::new(Secret::from(url));
    let options = PublisherOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, hubs_timeout, ..timeouts };
    let mut publisher = Publisher::new(options).unwrap();
    eventually("hubs have said what they go by", || publisher.reach().is_ok());
    publisher
}

/// A hub with rooms that show who is there and forget who has gone at once. It has reached its Redis.
fn hub(url: &str, change: impl FnOnce(&mut Config)) -> Hub {
    let hub = start(|config| {
        config.broker.url = Secret::from(url);
        config.channels = vec![ChannelPolicy { pattern: "room*".into(), presence: true, ..ChannelPolicy::default() }];
        config.presence_grace_ms = 0;
        change(config);
    });
    eventually("the hub reaches its Redis", || hub.channel_users("room-warm-up").is_ok());
    hub
}

async fn somebody(hub: &Hub, id: &str, channels: &[&str]) -> Client {
    let mut client = Client::connect(hub).await;
    let user = User::new(id, Some(&json!({"name": id}).to_string())).unwrap();
    let mut is_set = false;
    eventually("the user's own channel is heard", || {
        is_set = hub.set_user(client.socket_id(), Some(user.clone())).unwrap();
        is_set
    });
    for channel in channels {
        while client.ask(json!({"action": "subscribe", "channel": channel})).await["type"] != "subscribed" {}
    }
    client
}

fn of(users: &[ChannelUser]) -> Vec<(&str, Option<&str>, usize)> {
    users.iter().map(|found| (found.user.id(), found.user.info(), found.connections)).collect()
}

/// All that can be asked about a channel's users is what a hub says.
fn compare(publisher: &mut Publisher, hub: &Hub, channel: &str) {
    let (users, of_hub) = (publisher.channel_users(channel).unwrap(), hub.channel_users(channel).unwrap());
    assert_eq!((of(&users.answer), users.missing), (of(&of_hub), 0), "{channel}");
    assert_eq!(publisher.count_users(channel).unwrap().answer, hub.count_users(channel).unwrap(), "{channel}");
    for id in ["ada", "bob", "eve", "nobody"] {
        let (one, of_hub) = (publisher.channel_user(channel, id).unwrap().answer, hub.channel_user(channel, id).unwrap());
        assert_eq!(of(one.as_slice()), of(of_hub.as_slice()), "{channel} {id}");
    }
}

/// Two hubs, users on both, and what a publisher at this address learns of them.
async fn two_hubs_answer_together(hub_url: &str, url: &str) {
    let hubs = [hub(hub_url, |_| {}), hub(hub_url, |_| {})];
    let mut publisher = publisher(url);
    eventually("both hubs are there", || publisher.hubs().unwrap() == 2);
    compare(&mut publisher, &hubs[0], "plain");
    compare(&mut publisher, &hubs[0], "room");
    let mut clients = Vec::new();
    for (at, id) in [(0, "ada"), (1, "ada"), (1, "bob"), (0, "eve")] {
        clients.push(somebody(&hubs[at], id, &["plain", "room"]).await);
    }
    for channel in ["plain", "room"] {
        let users = publisher.channel_users(channel).unwrap();
        let found: Vec<_> = users.answer.iter().map(|found| (found.user.id(), found.connections)).collect();
        assert_eq!((found, users.missing), (vec![("ada", 2), ("bob", 1), ("eve", 1)], 0), "{channel}");
        assert!(users.hubs == 2, "{users:?}");
        compare(&mut publisher, &hubs[0], channel);
        compare(&mut publisher, &hubs[1], channel);
    }
    assert_eq!(publisher.disconnect_user("ada", 4010, "away").unwrap(), Gathered { answer: 2, hubs: 2, missing: 0 });
    for client in &mut clients[..2] {
        assert_eq!(client.closed().await, (4010, "away".to_owned()));
    }
    assert_eq!(publisher.disconnect_user("nobody", 4009, "").unwrap().answer, 0);
    eventually("she has left", || publisher.channel_users("room").unwrap().answer.len() == 2);
    compare(&mut publisher, &hubs[0], "room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hubs_say_to_a_publisher_is_what_one_of_them_says() {
    let server = RedisServer::start();
    two_hubs_answer_together(&server.url(), &server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_of_a_cluster_are_asked_through_whichever_master() {
    let redis = RedisCluster::start(3, false, 30_000);
    two_hubs_answer_together(&redis.url(), &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hubs_are_asked_at_the_master_that_the_sentinels_name() {
    let redis = RedisSentinels::start(1, 120_000, &[]);
    two_hubs_answer_together(&redis.servers[0].url(), &redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_keeps_the_user_out_on_every_hub_and_apps_do_not_meet() {
    let server = RedisServer::start();
    let signed = |config: &mut Config| {
        config.apps = vec![AppConfig { name: "shop".into(), ..AppConfig::default() }];
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
    };
    let hubs = [hub(&server.url(), signed), hub(&server.url(), signed)];
    let mut publisher = publisher(&server.url());
    eventually("both hubs are there", || publisher.hubs().unwrap() == 2);
    let path = format!("/ws?token={}", application::token("ada"));
    let mut ada = Client::connect_to(&hubs[1], &path).await;
    while ada.ask(json!({"action": "subscribe", "channel": "plain"})).await["type"] != "subscribed" {}
    publisher.use_app("shop");
    assert_eq!(publisher.channel_users("plain").unwrap().answer.len(), 0);
    assert_eq!(publisher.ban_user("ada", Duration::from_secs(3_600), 4009, "").unwrap().answer, 0);
    publisher.use_app("default");
    assert_eq!(publisher.channel_users("plain").unwrap().answer.len(), 1);
    assert_eq!(publisher.ban_user("ada", Duration::from_secs(3_600), 4009, "out").unwrap().answer, 1);
    assert_eq!(ada.closed().await, (4009, "out".to_owned()));
    for hub in &hubs {
        let mut back = Client::open(hub, &path).await;
        assert_eq!(back.closed().await, (4009, "the user is banned".to_owned()));
    }
    publisher.use_app("shp");
    let error = publisher.channel_users("plain").unwrap_err();
    assert!(matches!(error, PublisherError::Query(QueryError::App(_))), "{error}");
    assert_eq!(error.to_string(), "there is no app `shp`, did you mean `shop`?");
}

#[test]
fn what_a_hub_would_refuse_is_refused() {
    let server = RedisServer::start();
    let _hub = hub(&server.url(), |_| {});
    let mut publisher = publisher(&server.url());
    for channel in ["", "#x", &"x".repeat(201)] {
        let error = publisher.channel_users(channel).unwrap_err();
        assert!(matches!(error, PublisherError::Query(QueryError::InvalidChannel(_))), "{error}");
    }
    publisher.channel_users(&"x".repeat(200)).unwrap();
    for (code, ok) in [(999, false), (1000, true), (1001, false), (2999, false), (3000, true), (4999, true), (5000, false)] {
        let outcome = publisher.disconnect_user("ada", code, "");
        assert_eq!(outcome.is_ok(), ok, "{code}: {outcome:?}");
    }
    for (length, ok) in [(122, true), (123, true), (124, false)] {
        let outcome = publisher.ban_user("ada", Duration::from_millis(1), 4009, &"x".repeat(length));
        assert_eq!(outcome.is_ok(), ok, "{length}: {outcome:?}");
    }
    let error = publisher.disconnect_user("", 4009, "").unwrap_err();
    assert!(matches!(error, PublisherError::Query(QueryError::InvalidUser(_))), "{error}");
}

#[test]
fn where_no_hub_is_there_is_nobody_to_ask() {
    let server = RedisServer::start();
    let options = PublisherOptions {
        connect_timeout: DEADLINE,
        answer_timeout: DEADLINE,
        ..PublisherOptions::new(Secret::from(server.url().as_str()))
    };
    let error = Publisher::new(options).unwrap().channel_users("plain").unwrap_err();
    assert!(matches!(error, PublisherError::NoHub { .. }), "none has ever been: {error}");
    let hub = hub(&server.url(), |_| {});
    let mut publisher = publisher(&server.url());
    publisher.channel_users("plain").unwrap();
    hub.stop(Duration::from_secs(30));
    for channel in ["plain", "room"] {
        let error = publisher.channel_users(channel).unwrap_err();
        assert!(matches!(error, PublisherError::NoHubNow { .. }) && error.is_unsent(), "{error}");
    }
    let error = publisher.disconnect_user("ada", 4009, "").unwrap_err();
    assert!(matches!(error, PublisherError::NoHubNow { .. }), "{error}");
}

#[test]
fn hubs_that_cannot_answer_are_told_from_those_that_do_not() {
    let server = RedisServer::start();
    let shop = |config: &mut Config| config.apps = vec![AppConfig { name: "shop".into(), ..AppConfig::default() }];
    let (_without, with) = (hub(&server.url(), |_| {}), hub(&server.url(), shop));
    let mut publisher = publisher(&server.url());
    publisher.use_app("shop");
    eventually("both hubs are there", || publisher.hubs().unwrap() == 2);
    assert_eq!(publisher.disconnect_user("ada", 4009, "").unwrap(), Gathered { answer: 0, hubs: 2, missing: 1 });
    // What it went by outlives it.
    with.stop(Duration::from_secs(30));
    let error = publisher.channel_users("plain").unwrap_err();
    assert!(matches!(error, PublisherError::Unable { hubs: 1 }), "{error}");
}

/// One that says that it is a hub, and what it hears.
struct Impostor {
    reader: BufReader<TcpStream>,
}

const IMPOSTOR: &str = "00000000000000ff";
const ID: u64 = 0xff;

impl Impostor {
    fn among(server: &RedisServer) -> Self {
        server.command(&["ZADD", "realtime:hubs", "9000000000000000", IMPOSTOR]);
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("SUBSCRIBE realtime:control realtime:control:{IMPOSTOR}\r\n").as_bytes()).unwrap();
        let mut impostor = Impostor { reader: BufReader::new(stream) };
        // Two confirmations, of topic and number each.
        for _ in 0..2 {
            assert_eq!(impostor.strings(2)[0], "subscribe");
            impostor.line();
        }
        impostor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn strings(&mut self, count: usize) -> Vec<String> {
        self.line();
        let mut string = || {
            let length: usize = self.line()[1..].parse().unwrap();
            let mut bytes = vec![0; length + 2];
            self.reader.read_exact(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        (0..count).map(|_| string()).collect()
    }

    /// The next question, and where its answer is heard.
    fn question(&mut self) -> (String, Value) {
        loop {
            let letter: Value = serde_json::from_str(&self.strings(3)[2]).unwrap();
            if letter.get("ask").is_some() {
                return (format!("realtime:control:{:016x}", letter["from"].as_u64().unwrap()), letter);
            }
        }
    }
}

fn answer(from: u64, number: &Value, answer: Value) -> String {
    json!({"from": from, "number": number, "answer": answer}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hub_that_does_not_answer_is_missing_and_the_others_are_not() {
    let server = RedisServer::start();
    let hub = hub(&server.url(), |_| {});
    let _client = somebody(&hub, "ada", &["plain", "room"]).await;
    server.command(&["ZADD", "realtime:hubs", "9000000000000000", IMPOSTOR]);
    let mut publisher = waiting(&server.url(), Duration::from_millis(600));
    // How fast the hub is depends on the machine.
    let mut users = None;
    eventually("the hub has answered in time", || {
        users = publisher.channel_users("plain").ok();
        users.is_some()
    });
    let users = users.unwrap();
    assert_eq!((of(&users.answer)[0].0, users.hubs, users.missing), ("ada", 2, 1));
    // Whoever answers knows all who are shown.
    let mut count = None;
    eventually("the hub has answered in time", || {
        count = publisher.count_users("room").ok();
        count.is_some()
    });
    assert_eq!(count, Some(Gathered { answer: 1, hubs: 2, missing: 0 }));
    // Publishing goes on meanwhile: nothing is wrong with Redis.
    hub.stop(Duration::from_secs(30));
    let mut publisher = waiting(&server.url(), Duration::from_millis(50));
    for _ in 0..3 {
        let error = publisher.disconnect_user("ada", 4009, "").unwrap_err();
        assert!(matches!(error, PublisherError::NoAnswer { hubs: 1, .. }) && !error.is_unsent(), "{error}");
        publisher.reach().unwrap();
    }
}

#[test]
fn what_is_late_or_made_up_is_no_answer() {
    let server = RedisServer::start();
    let _hub = hub(&server.url(), |_| {});
    let mut impostor = Impostor::among(&server);
    let url = server.url();
    let asking = std::thread::spawn(move || {
        // The first question is given up, and the second one is not.
        let first = waiting(&url, Duration::from_millis(50)).channel_users("plain");
        (first.map(|users| users.answer.len()).unwrap_or(0), publisher(&url).channel_users("plain").unwrap())
    });
    let (late_topic, late) = impostor.question();
    let (topic, question) = impostor.question();
    assert!(topic != late_topic && question["number"] != late["number"]);
    let users = |id: &str| json!([{"id": id, "info": null, "connections": 1}]);
    let say = |text: &str| assert_eq!(server.command(&["PUBLISH", &topic, text]), ":1");
    let number = &question["number"];
    for text in [
        // The late one, of another question; of somebody who was not asked; of the asker itself.
        answer(ID, &late["number"], users("late")),
        answer(0xaa, number, users("forged")),
        answer(question["from"].as_u64().unwrap(), number, users("forged")),
        // No letters, and none that is an answer.
        String::new(),
        "{}".into(),
        "[".repeat(100_000),
        question.to_string(),
        json!({"from": ID, "number": -1, "answer": users("forged")}).to_string(),
        // What is there to be believed, in part, and what comes behind it is not.
        answer(
            ID,
            number,
            json!([
                {"id": "eve", "info": "{}", "connections": 1},
                {"id": "", "info": null, "connections": 1},
                {"id": "bad", "info": "{", "connections": 1},
            ]),
        ),
    ] {
        say(&text);
    }
    server.command(&["PUBLISH", &topic, &answer(ID, number, users("twice"))]);
    let (first, users) = asking.join().unwrap();
    assert_eq!((first, of(&users.answer), users.missing), (0, vec![("eve", Some("{}"), 1)], 0));
    // Nobody hears that topic any more.
    eventually("the connection has gone", || server.command(&["PUBLISH", &topic, "x"]) == ":0");
}

#[test]
fn an_answer_that_is_too_long_ends_the_question() {
    let server = RedisServer::start();
    let hub = hub(&server.url(), |_| {});
    let mut impostor = Impostor::among(&server);
    hub.stop(Duration::from_secs(30));
    let url = server.url();
    let asking = std::thread::spawn(move || publisher(&url).channel_users("plain"));
    let (topic, _) = impostor.question();
    server.command(&["PUBLISH", &topic, &"x".repeat(17 << 20)]);
    let error = asking.join().unwrap().unwrap_err();
    assert!(matches!(error, PublisherError::Broken { .. }) && error.to_string().contains("more than can be"), "{error}");
}

#[test]
fn the_rights_that_the_documentation_names_are_enough_and_without_them_the_server_says_so() {
    let server = RedisServer::start();
    let _hub = hub(&server.url(), |_| {});
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md")).unwrap();
    let rights = text.lines().find_map(|line| line.strip_prefix("`~realtime:* ")?.strip_suffix("`,")).unwrap();
    let mut acl = vec!["ACL", "SETUSER", "php", "on", ">secret", "~realtime:*"];
    acl.extend(rights.split(' '));
    assert_eq!(server.command(&acl), "+OK");
    let url = format!("redis://php:secret@127.0.0.1:{}/0", server.port());
    let mut publisher = publisher(&url);
    assert_eq!(publisher.disconnect_user("ada", 4009, "").unwrap().answer, 0);
    for right in ["subscribe", "publish"] {
        assert_eq!(server.command(&["ACL", "SETUSER", "php", &format!("-{right}")]), "+OK");
        let error = publisher.channel_users("plain").unwrap_err();
        assert!(matches!(error, PublisherError::Refused { .. }) && error.to_string().contains("NOPERM"), "{error}");
        assert_eq!(server.command(&["ACL", "SETUSER", "php", &format!("+{right}")]), "+OK");
    }
}

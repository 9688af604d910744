//! Who is on a channel: what newcomers are sent, what the others are told, and that both agree with the truth.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use realtime_core::auth::signature::sign;
use realtime_core::config::{AppConfig, ChannelPolicy};
use realtime_core::presence::user_bytes;
use realtime_core::{Config, Hub, HubBuilder, Payload, Publish, User};
use realtime_testkit::presence::Late;
use realtime_testkit::{Client, config, eventually, sized, start};
use serde_json::{Value, json};

fn shown(pattern: &str) -> ChannelPolicy {
    ChannelPolicy { pattern: pattern.into(), presence: true, client_events: true, ..ChannelPolicy::default() }
}

/// Rooms that show who is there, and forget who has gone at once.
fn rooms(config: &mut Config) {
    config.apps = vec![AppConfig { name: "default".into(), key: "k".into(), secret: "geheim".into(), ..AppConfig::default() }];
    config.channels = vec![shown("room*")];
    config.presence_grace_ms = 0;
}

async fn somebody(hub: &Hub, id: &str) -> Client {
    let client = Client::connect(hub).await;
    let info = json!({"name": id}).to_string();
    assert!(hub.set_user(client.socket_id(), Some(User::new(id, Some(&info)).unwrap())).unwrap());
    client
}

fn ids(users: &Value) -> BTreeSet<String> {
    let ids: Vec<_> = users.as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect();
    let set: BTreeSet<_> = ids.iter().cloned().collect();
    assert_eq!(set.len(), ids.len(), "somebody twice: {users}");
    set
}

fn set<const N: usize>(ids: [&str; N]) -> BTreeSet<String> {
    ids.map(str::to_owned).into()
}

fn present(hub: &Hub, channel: &str) -> BTreeMap<String, usize> {
    hub.channel_users(channel).unwrap().into_iter().map(|user| (user.user.id().to_owned(), user.connections)).collect()
}

#[tokio::test]
async fn newcomers_are_sent_who_is_here_and_the_others_are_told_of_them() {
    let hub = start(rooms);
    let mut ada = somebody(&hub, "ada").await;
    assert_eq!(ada.subscribe("room").await["users"], json!([{"id": "ada", "info": {"name": "ada"}}]));
    let mut bob = somebody(&hub, "bob").await;
    assert_eq!(ids(&bob.subscribe("room").await["users"]), set(["ada", "bob"]));
    assert_eq!(ada.expect("joined").await, json!({"type": "joined", "channel": "room", "user": {"id": "bob", "info": {"name": "bob"}}}));

    // A second connection of a user is nobody's news, neither when it comes nor when it goes.
    let mut bob_again = somebody(&hub, "bob").await;
    assert_eq!(ids(&bob_again.subscribe("room").await["users"]), set(["ada", "bob"]));
    assert_eq!(present(&hub, "room"), [("ada".into(), 1), ("bob".into(), 2)].into());
    assert_eq!(hub.count_users("room").unwrap(), 2);
    assert_eq!(hub.channel_user("room", "bob").unwrap().unwrap().connections, 2);
    assert_eq!(hub.channel_user("room", "eve").unwrap(), None);
    bob_again.close().await;
    eventually("the second connection is gone", || present(&hub, "room") == [("ada".into(), 1), ("bob".into(), 1)].into());
    ada.expect_nothing().await;
    bob.ask(json!({"action": "unsubscribe", "channel": "room"})).await;
    assert_eq!(ada.expect("left").await, json!({"type": "left", "channel": "room", "user": {"id": "bob", "info": {"name": "bob"}}}));

    let answer = ada.ask(json!({"action": "presence", "channel": "room", "id": 7})).await;
    assert_eq!(answer, json!({"type": "presence", "channel": "room", "id": 7, "users": [{"id": "ada", "info": {"name": "ada"}}]}));
    bob.send_json(json!({"action": "presence", "channel": "room"})).await;
    bob.expect_error("not_subscribed").await;
    bob.subscribe("quiet").await;
    bob.send_json(json!({"action": "presence", "channel": "quiet"})).await;
    bob.expect_error("presence_disabled").await;
}

#[tokio::test]
async fn those_whom_nobody_knows_see_without_being_seen() {
    let hub = start(rooms);
    let mut nobody = Client::connect(&hub).await;
    assert_eq!(nobody.subscribe("room").await["users"], json!([]));
    let mut ada = somebody(&hub, "ada").await;
    assert_eq!(ids(&ada.subscribe("room").await["users"]), set(["ada"]));
    assert_eq!(nobody.expect("joined").await["user"]["id"], "ada");

    // Once it is somebody's, it is seen, and told so itself: its list did not have it.
    hub.set_user(nobody.socket_id(), Some(User::new("eve", None).unwrap())).unwrap();
    for client in [&mut ada, &mut nobody] {
        assert_eq!(client.expect("joined").await["user"], json!({"id": "eve"}));
    }
    hub.set_user(nobody.socket_id(), Some(User::new("ida", None).unwrap())).unwrap();
    for client in [&mut ada, &mut nobody] {
        assert_eq!(client.expect("joined").await["user"]["id"], "ida");
        assert_eq!(client.expect("left").await["user"]["id"], "eve");
    }
    hub.set_user(nobody.socket_id(), None).unwrap();
    assert_eq!(ada.expect("left").await["user"]["id"], "ida");
    assert_eq!(present(&hub, "room"), [("ada".into(), 1)].into());
}

#[tokio::test]
async fn the_application_signs_who_a_presence_channel_shows() {
    let hub = start(rooms);
    let mut client = Client::connect(&hub).await;
    let socket = client.socket_id();
    let signed = |channel: &str, data: &str| {
        let auth = format!("k:{}", sign("geheim", &format!("{socket}:{channel}:{data}")));
        json!({"action": "subscribe", "channel": channel, "auth": auth, "channel_data": data})
    };
    for (data, names) in [
        ("{", "channel_data"),
        ("[]", "channel_data"),
        ("{}", "user_id"),
        (r#"{"user_id":null}"#, "user_id"),
        (r#"{"user_id":""}"#, "user id"),
    ] {
        client.send_json(signed("presence-a", data)).await;
        let error = client.expect_error("unauthorized").await;
        assert!(error["message"].as_str().unwrap().contains(names), "{data}: {error}");
    }
    let unnamed =
        json!({"action": "subscribe", "channel": "presence-a", "auth": format!("k:{}", sign("geheim", &format!("{socket}:presence-a")))});
    client.send_json(unnamed).await;
    client.expect_error("unauthorized").await;

    let info = r#"{"z":1,"a":{"__proto__":"<b>"}}"#;
    let answer = client.ask(signed("presence-a", &format!(r#"{{"user_id":10,"user_info":{info}}}"#))).await;
    assert_eq!(ids(&answer["users"]), set(["10"]));
    assert_eq!(hub.channel_users("presence-a").unwrap()[0].user.info(), Some(info), "as it was signed");
    // The connection is that user's from now on.
    assert_eq!(hub.publish_to_user("10", "e", Payload::Text("x"), &[]).unwrap().matched, 1);
    assert_eq!(client.expect("message").await["data"], "x");

    // Signed as somebody else for one channel: shown as such there, and the connection stays whose it was.
    let other = client.ask(signed("presence-b", r#"{"user_id":"__proto__"}"#)).await;
    assert_eq!(ids(&other["users"]), set(["__proto__"]));
    assert_eq!(present(&hub, "presence-b"), [("__proto__".into(), 1)].into());
    assert_eq!(hub.publish_to_user("__proto__", "e", Payload::Text("x"), &[]).unwrap().matched, 0);
    hub.set_user(socket, Some(User::new("11", None).unwrap())).unwrap();
    assert_eq!(present(&hub, "presence-a"), [("10".into(), 1)].into(), "a signature outlasts that");
}

#[tokio::test]
async fn a_reload_within_the_grace_makes_no_noise_and_an_absence_beyond_it_does() {
    let hub = start(|config| {
        rooms(config);
        config.presence_grace_ms = 60_000;
        config.channels.insert(0, ChannelPolicy { presence_grace_ms: Some(1), ..shown("room-short") });
    });
    let mut watcher = somebody(&hub, "watcher").await;
    for channel in ["room", "room-short"] {
        watcher.subscribe(channel).await;
    }
    let mut crowd = Vec::new();
    let users = sized(50, 200);
    for n in 0..users {
        let mut client = somebody(&hub, &format!("u{n}")).await;
        client.subscribe("room").await;
        watcher.expect("joined").await;
        crowd.push(client);
    }
    for (n, client) in crowd.into_iter().enumerate() {
        client.reset();
        let id = format!("u{n}");
        eventually("its connection is gone", || present(&hub, "room").get(&id) == Some(&0));
        let mut back = somebody(&hub, &id).await;
        assert_eq!(ids(&back.subscribe("room").await["users"]).len(), users + 1);
        assert_eq!(present(&hub, "room")[&id], 1);
    }
    watcher.expect_nothing().await;
    assert_eq!(hub.count_users("room").unwrap(), users + 1);

    let mut brief = somebody(&hub, "brief").await;
    brief.subscribe("room-short").await;
    watcher.expect("joined").await;
    brief.reset();
    assert_eq!(watcher.expect("left").await["user"]["id"], "brief");
    // Who says so, or is thrown out, has no grace.
    let mut polite = somebody(&hub, "polite").await;
    polite.subscribe("room").await;
    watcher.expect("joined").await;
    polite.ask(json!({"action": "unsubscribe", "channel": "room"})).await;
    assert_eq!(watcher.expect("left").await["user"]["id"], "polite");
    polite.subscribe("room").await;
    watcher.expect("joined").await;
    assert_eq!(hub.disconnect_user("polite", 4009, "").unwrap(), 1);
    assert_eq!(watcher.expect("left").await["user"]["id"], "polite");
}

#[tokio::test]
async fn a_user_is_known_before_it_is_heard() {
    let hub = start(|config| {
        rooms(config);
        config.shards = 4;
    });
    let mut watchers = Vec::new();
    for n in 0..8 {
        let mut watcher = somebody(&hub, &format!("watcher{n}")).await;
        watcher.subscribe("room").await;
        watchers.push(watcher);
    }
    for (n, watcher) in watchers.iter_mut().enumerate() {
        for _ in n + 1..8 {
            watcher.expect("joined").await;
        }
    }
    for round in 0..20 {
        let id = format!("speaker{round}");
        let mut speaker = somebody(&hub, &id).await;
        speaker.send_json(json!({"action": "subscribe", "channel": "room"})).await;
        speaker.send_json(json!({"action": "publish", "channel": "room", "event": "e", "data": round})).await;
        speaker.send_json(json!({"action": "unsubscribe", "channel": "room"})).await;
        for watcher in &mut watchers {
            assert_eq!(watcher.expect("joined").await["user"]["id"], id.as_str());
            assert_eq!(watcher.expect("message").await["user_id"], id.as_str());
            assert_eq!(watcher.expect("left").await["user"]["id"], id.as_str());
        }
    }
}

/// What a client knows: it checks each change against what it knew.
struct View {
    client: Client,
    id: String,
    known: BTreeSet<String>,
}

impl View {
    async fn new(hub: &Hub, id: &str) -> View {
        let mut client = somebody(hub, id).await;
        let known = ids(&client.subscribe("room").await["users"]);
        assert!(known.contains(id), "{id} is not in its own list");
        View { client, id: id.into(), known }
    }

    /// Follows until it knows of `end`.
    async fn follow(&mut self, end: &str) {
        while !self.known.contains(end) {
            let value = self.client.json().await;
            let user = value["user"]["id"].as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
            assert_ne!(user, self.id, "{value}");
            match value["type"].as_str() {
                Some("joined") => assert!(self.known.insert(user), "{value} again, seen by {}", self.id),
                Some("left") => assert!(self.known.remove(&user), "{value} of nobody, seen by {}", self.id),
                _ => panic!("{value}"),
            }
        }
    }
}

fn churning(config: &mut Config) {
    rooms(config);
    config.shards = 4;
    config.presence_grace_ms = 5;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_churn_every_view_follows_the_truth() {
    churn(start(churning)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_churn_every_view_follows_the_truth_when_presence_answers_later() {
    churn(HubBuilder::new(config(churning)).presence(Arc::new(Late::default())).start().unwrap()).await;
}

async fn churn(hub: Hub) {
    let rounds = sized(30, 12);
    // Users with one to three connections each, which come and go in no order.
    let churners: Vec<_> = (0..sized(24, 300))
        .map(|user| {
            let hub = hub.clone();
            tokio::spawn(async move {
                let id = format!("u{user}");
                let mut kept = Vec::new();
                for round in 0..rounds {
                    kept.push(View::new(&hub, &id).await);
                    if kept.len() > (user + round) % 3 {
                        let gone = kept.remove((user * 7 + round) % kept.len());
                        match round % 3 {
                            0 => gone.client.reset(),
                            1 => gone.client.close().await,
                            _ => {
                                let mut client = gone.client;
                                client.send_json(json!({"action": "unsubscribe", "channel": "room"})).await;
                                while client.json().await["type"] != "unsubscribed" {}
                            }
                        }
                    }
                }
                if user % 2 == 0 { kept } else { Vec::new() }
            })
        })
        .collect();
    let mut views = Vec::new();
    for churner in churners {
        views.extend(tokio::time::timeout(Duration::from_secs(300), churner).await.unwrap().unwrap());
    }
    let expected: BTreeMap<String, usize> = views.iter().fold(BTreeMap::new(), |mut users, view| {
        *users.entry(view.id.clone()).or_default() += 1;
        users
    });
    eventually("those who are gone are not counted", || present(&hub, "room") == expected);
    let end = View::new(&hub, "end").await;
    let truth: BTreeSet<String> = expected.into_keys().chain(["end".to_owned()]).collect();
    assert_eq!(end.known, truth);
    for view in &mut views {
        view.follow("end").await;
        assert_eq!(view.known, truth, "as {} sees it", view.id);
    }
    drop((end, views));
    eventually("nobody is left", || hub.count_users("room").unwrap() == 0 && hub.channels().is_empty());
}

#[tokio::test]
async fn a_connection_that_moves_neither_leaves_nor_misses_anything() {
    let hub = start(|config| {
        rooms(config);
        config.shards = 3;
    });
    let mut traveller = View::new(&hub, "traveller").await;
    let mut watcher = View::new(&hub, "watcher").await;
    let socket = traveller.client.socket_id();
    let mover = {
        let hub = hub.clone();
        std::thread::spawn(move || (0..60).filter(|n| hub.move_connection(socket, n % 3).is_ok_and(|moved| moved)).count())
    };
    let mut kept = Vec::new();
    for n in 0..60 {
        let view = View::new(&hub, &format!("u{n}")).await;
        if n % 3 > 0 {
            kept.push(view);
        }
    }
    assert!(mover.join().unwrap() > 0, "it never moved");
    let end = View::new(&hub, "end").await;
    for view in [&mut traveller, &mut watcher] {
        view.follow("end").await;
    }
    eventually("those who are gone are not counted", || hub.count_users("room").unwrap() == kept.len() + 3);
    traveller.client.close().await;
    while watcher.client.json().await["user"]["id"] != "traveller" {}
    drop(end);
}

#[tokio::test]
async fn a_room_has_as_many_places_as_it_says_whoever_comes_at_the_same_moment() {
    for (limit, late) in [(1, false), (2, true), (2, false), (5, true)] {
        let config = config(|config| {
            config.shards = 4;
            config.channels = vec![ChannelPolicy { pattern: "full".into(), max_members: limit, ..ChannelPolicy::default() }];
        });
        let builder = HubBuilder::new(config);
        let hub = if late { builder.presence(Arc::new(Late::default())) } else { builder }.start().unwrap();
        let mut clients = Vec::new();
        for _ in 0..12 {
            clients.push(Client::connect(&hub).await);
        }
        for client in &mut clients {
            client.send_json(json!({"action": "subscribe", "channel": "full"})).await;
        }
        let mut inside = Vec::new();
        let mut outside = Vec::new();
        for mut client in clients {
            let answer = client.json().await;
            match answer["type"].as_str() {
                Some("subscribed") => {
                    assert_eq!(answer.get("users"), None);
                    inside.push(client);
                }
                _ => {
                    assert_eq!(answer["code"], "channel_full", "{answer}");
                    assert!(answer["message"].as_str().unwrap().contains(&limit.to_string()), "{answer}");
                    outside.push(client);
                }
            }
        }
        assert_eq!(inside.len(), limit);
        assert_eq!(hub.publish(&Publish::new("full", "e", Payload::Text(""))).unwrap().matched, limit);
        // A place that becomes free is given again, once.
        let mut leaving = inside.pop().unwrap();
        leaving.send_json(json!({"action": "unsubscribe", "channel": "full"})).await;
        // Behind the publication.
        while leaving.json().await["type"] != "unsubscribed" {}
        let mut next = outside.pop().unwrap();
        next.subscribe("full").await;
        leaving.send_json(json!({"action": "subscribe", "channel": "full"})).await;
        while leaving.json().await["code"] != "channel_full" {}
    }
}

#[tokio::test]
async fn the_list_of_users_is_bounded() {
    for spare in [-1isize, 0, 1] {
        let bytes: usize = (0..3).map(|n| user_bytes(&User::new(&format!("u{n}"), Some(r#"{"name":"u0"}"#)).unwrap())).sum();
        let hub = start(|config| {
            rooms(config);
            config.limits.presence_bytes = bytes.checked_add_signed(spare).unwrap();
        });
        let mut clients = Vec::new();
        for n in 0..3 {
            let mut client = somebody(&hub, &format!("u{n}")).await;
            client.send_json(json!({"action": "subscribe", "channel": "room"})).await;
            match n == 2 && spare < 0 {
                false => drop(client.expect("subscribed").await),
                true => drop(client.expect_error("channel_full").await),
            }
            clients.push(client);
        }
        assert_eq!(hub.count_users("room").unwrap(), if spare < 0 { 2 } else { 3 });
        assert_eq!(hub.stats().subscriptions, if spare < 0 { 5 } else { 6 }, "with each user's own channel");
    }
}

#[tokio::test]
async fn a_subscription_against_a_close_leaves_nobody_behind() {
    let hub = start(rooms);
    for n in 0..sized(300, 5_000) {
        let mut client = somebody(&hub, &format!("u{}", n % 40)).await;
        client.send_json(json!({"action": "subscribe", "channel": format!("room{}", n % 5)})).await;
        match n % 3 {
            0 => client.reset(),
            1 => tokio::time::timeout(Duration::from_secs(30), client.close()).await.unwrap(),
            _ => drop(client),
        }
    }
    eventually("all is as before", || {
        let stats = hub.stats();
        let empty = (0..5).all(|n| hub.count_users(&format!("room{n}")).unwrap() == 0);
        empty && stats.connections == 0 && stats.subscriptions == 0 && hub.channels().is_empty()
    });
}

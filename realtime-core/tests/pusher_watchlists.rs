//! Who signs in with a watchlist hears who comes online and who goes offline, over real sockets.

use realtime_core::config::AppConfig;
use realtime_core::{Config, Hub, User};
use realtime_testkit::pusher::{PusherClient, app};
use realtime_testkit::{Client, eventually, on_time, start};
use serde_json::{Value, json};

const EVENTS: &str = "pusher_internal:watchlist_events";

fn hub(change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.apps.push(AppConfig { watchlists: true, ..app() });
        config.shards = 2;
        config.presence_grace_ms = 0;
        change(config);
    })
}

async fn signed_in(hub: &Hub, id: &str, watchlist: &[&str]) -> PusherClient {
    let mut client = PusherClient::connect(hub).await;
    client.sign_in(&json!({"id": id, "watchlist": watchlist}).to_string()).await;
    client
}

/// The next message, which has to tell of these users.
async fn expect(client: &mut PusherClient, online: &[&str], offline: &[&str]) {
    let told = client.expect(EVENTS).await;
    let lists = [("online", online), ("offline", offline)];
    let events: Vec<Value> =
        lists.iter().filter(|(_, users)| !users.is_empty()).map(|(name, users)| json!({"name": name, "user_ids": users})).collect();
    assert_eq!(told["data"], json!({"events": events}));
}

#[tokio::test]
async fn first_connections_come_online_and_last_ones_go_offline() {
    let hub = hub(|_| {});
    let bo = signed_in(&hub, "bo", &[]).await;
    let mut ann = signed_in(&hub, "ann", &["bo", "cy", "ann"]).await;
    expect(&mut ann, &["bo", "ann"], &["cy"]).await;
    let mut cy = signed_in(&hub, "cy", &["ann"]).await;
    expect(&mut cy, &["ann"], &[]).await;
    expect(&mut ann, &["cy"], &[]).await;
    let second = signed_in(&hub, "bo", &[]).await;
    ann.expect_nothing().await;
    let open = hub.stats().connections;
    drop(bo);
    eventually("one connection less", || hub.stats().connections == open - 1);
    ann.expect_nothing().await;
    drop(second);
    expect(&mut ann, &[], &["bo"]).await;
    // Whoever makes a connection bo's, not only who signs in.
    let native = Client::connect_to(&hub, "/ws").await;
    assert!(hub.set_user(native.socket_id(), Some(User::new("bo", None).unwrap())).unwrap());
    expect(&mut ann, &["bo"], &[]).await;
    assert!(hub.set_user(native.socket_id(), None).unwrap());
    expect(&mut ann, &[], &["bo"]).await;
    // Somebody else's list is not hers.
    assert!(hub.set_user(ann.socket_id, None).unwrap());
    expect(&mut cy, &[], &["ann"]).await;
    let _bo = signed_in(&hub, "bo", &[]).await;
    ann.expect_nothing().await;
}

#[tokio::test]
async fn who_signs_in_again_brings_a_new_list() {
    let hub = hub(|_| {});
    let mut ann = signed_in(&hub, "ann", &["bo"]).await;
    expect(&mut ann, &[], &["bo"]).await;
    ann.sign_in(r#"{"id":"ann","watchlist":["cy"]}"#).await;
    expect(&mut ann, &[], &["cy"]).await;
    let _bo = signed_in(&hub, "bo", &[]).await;
    let _cy = signed_in(&hub, "cy", &[]).await;
    expect(&mut ann, &["cy"], &[]).await;
}

#[tokio::test]
async fn who_comes_back_in_time_was_never_away() {
    let hub = hub(|config| config.presence_grace_ms = 60_000);
    let bo = signed_in(&hub, "bo", &[]).await;
    let mut ann = signed_in(&hub, "ann", &["bo", "cy"]).await;
    expect(&mut ann, &["bo"], &["cy"]).await;
    drop(bo);
    eventually("bo's end", || hub.stats().connections == 1);
    let _bo = signed_in(&hub, "bo", &[]).await;
    let _cy = signed_in(&hub, "cy", &[]).await;
    expect(&mut ann, &["cy"], &[]).await;
    ann.expect_nothing().await;
}

#[tokio::test]
async fn an_app_that_has_not_asked_tells_nothing() {
    let off = start(|config| config.apps.push(app()));
    let mut ann = PusherClient::connect(&off).await;
    // It is not even looked at.
    ann.sign_in(r#"{"id":"ann","watchlist":["ann",7]}"#).await;
    ann.expect_nothing().await;
}

#[tokio::test]
async fn a_list_has_100_users_and_the_rest_of_it_is_an_error() {
    let hub = hub(|_| {});
    for count in [99, 100, 101] {
        let users: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        let mut ids: Vec<&str> = users.iter().map(String::as_str).collect();
        // Counted once.
        ids.insert(1, "0");
        let mut ann = signed_in(&hub, "ann", &ids).await;
        ids.remove(1);
        if count > 100 {
            let error = ann.expect_error(Some(4302)).await;
            assert!(error["data"]["message"].as_str().unwrap().contains("100"), "{error}");
        }
        expect(&mut ann, &[], &ids[..count.min(100)]).await;
        let last = signed_in(&hub, &(count - 1).to_string(), &[]).await;
        if count <= 100 {
            expect(&mut ann, &[ids[count - 1]], &[]).await;
        }
        ann.expect_nothing().await;
        drop((ann, last));
        eventually("everybody's end", || hub.stats().connections == 0);
        // Without a grace, and yet on another thread.
        let mut next = signed_in(&hub, "next", &[ids[count - 1]]).await;
        if next.expect(EVENTS).await["data"]["events"][0]["name"] == "online" {
            expect(&mut next, &[], &[ids[count - 1]]).await;
        }
        drop(next);
    }
    let mut ann = PusherClient::connect(&hub).await;
    for bad in [json!([7]), json!("bo"), json!([""]), json!(["x".repeat(129)])] {
        let user_data = json!({"id": "ann", "watchlist": bad}).to_string();
        let auth = ann.auth(&format!(":user::{user_data}"), None);
        ann.send("pusher:signin", json!({"auth": auth, "user_data": user_data})).await;
        let error = ann.expect_error(Some(4009)).await;
        assert!(error["data"]["message"].as_str().unwrap().contains("watchlist"), "{error}");
    }
}

#[tokio::test]
async fn so_many_users_are_watched_on_a_hub() {
    let hub = hub(|config| config.limits.watches = 3);
    let mut ann = signed_in(&hub, "ann", &["a", "b"]).await;
    expect(&mut ann, &[], &["a", "b"]).await;
    let mut bo = signed_in(&hub, "bo", &["a", "b"]).await;
    bo.expect_error(Some(4302)).await;
    let mut cy = signed_in(&hub, "cy", &["a"]).await;
    expect(&mut cy, &[], &["a"]).await;
    let mut di = signed_in(&hub, "di", &["c"]).await;
    di.expect_error(Some(4302)).await;
    // Who signs in all the same is online, and gets a list when there is room again.
    drop(ann);
    eventually("ann's end", || hub.stats().connections == 3);
    bo.sign_in(r#"{"id":"bo","watchlist":["a","di"]}"#).await;
    expect(&mut bo, &["di"], &["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_moves_misses_nothing_and_hears_nothing_twice() {
    let hub = hub(|_| {});
    let mut ann = signed_in(&hub, "ann", &["bo", "cy"]).await;
    expect(&mut ann, &[], &["bo", "cy"]).await;
    let bo = signed_in(&hub, "bo", &[]).await;
    expect(&mut ann, &["bo"], &[]).await;
    for shard in [0, 1, 0] {
        assert!(hub.move_connection(ann.socket_id, shard).unwrap());
        assert!(hub.move_connection(bo.socket_id, 1 - shard).unwrap());
    }
    ann.expect_nothing().await;
    let _cy = signed_in(&hub, "cy", &[]).await;
    expect(&mut ann, &["cy"], &[]).await;
    drop(bo);
    expect(&mut ann, &[], &["bo"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_watchers_hears_in_the_end_what_is_true() {
    let hub = hub(|_| {});
    let mut crowd = Vec::new();
    // More than are told in one turn of a shard.
    for number in 0..300 {
        let mut watcher = signed_in(&hub, &format!("w{number}"), &["star", "never"]).await;
        expect(&mut watcher, &[], &["star", "never"]).await;
        crowd.push(watcher);
    }
    // Comes and goes without waiting for anybody.
    for _ in 0..20 {
        drop(signed_in(&hub, "star", &[]).await);
    }
    let _star = signed_in(&hub, "star", &[]).await;
    eventually("the others' end", || hub.stats().connections == 301);
    on_time("what is true", async {
        for watcher in &mut crowd {
            let mut online = false;
            loop {
                watcher.send("pusher:ping", json!({})).await;
                let mut quiet = true;
                loop {
                    let message = watcher.raw().await;
                    if message["event"] == "pusher:pong" {
                        break;
                    }
                    quiet = false;
                    let data: Value = serde_json::from_str(message["data"].as_str().unwrap()).unwrap();
                    let now = data["events"][0]["name"] == "online";
                    assert_eq!(data["events"][0]["user_ids"], json!(["star"]));
                    assert_ne!(now, online, "twice the same");
                    online = now;
                }
                if quiet && online {
                    break;
                }
            }
        }
    })
    .await;
}

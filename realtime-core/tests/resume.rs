//! Pages of Pusher clients that come back on another connection: they go on where they were, or are told that they cannot.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use realtime_core::config::{Access, ChannelPolicy};
use realtime_core::hub::HubBuilder;
use realtime_core::{Config, Hub, Payload, Position, Publish};
use realtime_testkit::bus::join;
use realtime_testkit::chaos::{Chaos, Fault};
use realtime_testkit::client::Received;
use realtime_testkit::hub::{history, on_broker, resumed};
use realtime_testkit::ledger::kept;
use realtime_testkit::pages::{PageLog, Seen, check, follow};
use realtime_testkit::pusher::{KEY, PusherClient, app, page_path, path};
use realtime_testkit::{Client, Delayed, RedisServer, config, eventually, sized, start};
use serde_json::json;

const PAGE: &str = "3f0e8a54-5a3f-4d6c-9a51-000000000001";
const SUBSCRIBED: &str = "pusher_internal:subscription_succeeded";
const FAILED: &str = "realtime:recovery_failed";

fn publish(hub: &Hub, channel: &str, json: u64) {
    hub.publish(&Publish::new(channel, "e", Payload::Json(&json.to_string()))).unwrap();
}

fn with(change: impl Fn(&mut Config)) -> [Hub; 2] {
    let change = |config: &mut Config| {
        config.apps.push(app());
        change(config);
    };
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    [start(change), HubBuilder::new(config(change)).broker(broker).start().unwrap()]
}

/// Subscribes a page, which begins anew and hears that.
async fn anew(client: &mut PusherClient, channel: &str) {
    client.subscribe(channel).await;
    assert_eq!(client.expect(FAILED).await["channel"], channel);
}

/// The next publications; the hub's questions between them are answered or not.
async fn numbers(client: &mut PusherClient, count: usize, answers: bool) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let message = client.raw().await;
        match message["event"].as_str().unwrap() {
            "pusher:ping" if answers => client.send("pusher:pong", json!({})).await,
            "pusher:ping" => {}
            "e" => numbers.push(message["data"].as_str().unwrap().parse().unwrap()),
            other => panic!("expected a publication, got {other}"),
        }
    }
    numbers
}

/// Answers the hub's next ping, and waits until the answer has been heard.
async fn answer(client: &mut PusherClient) {
    client.expect("pusher:ping").await;
    client.send("pusher:pong", json!({})).await;
    client.expect_nothing().await;
}

/// Cuts the line, and waits until the hub has seen that.
async fn cut(hub: &Hub, client: PusherClient) {
    let before = hub.stats().connections;
    client.client.reset();
    eventually("the connection has gone", || hub.stats().connections < before);
}

#[tokio::test]
async fn a_page_goes_on_behind_what_it_has_answered_for() {
    for hub in with(|config| config.channels = vec![resumed("h", 100)]) {
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        anew(&mut page, "h").await;
        (1..=3).for_each(|number| publish(&hub, "h", number));
        assert_eq!(numbers(&mut page, 3, true).await, [1, 2, 3]);
        answer(&mut page).await;
        (4..=5).for_each(|number| publish(&hub, "h", number));
        assert_eq!(numbers(&mut page, 2, false).await, [4, 5]);
        cut(&hub, page).await;
        publish(&hub, "h", 6);
        // 4 and 5 are there twice: it has not answered for them.
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        page.subscribe("h").await;
        assert_eq!(numbers(&mut page, 3, false).await, [4, 5, 6]);
        publish(&hub, "h", 7);
        assert_eq!(numbers(&mut page, 1, false).await, [7]);
        answer(&mut page).await;
        // Nothing was sent since: nothing is asked, and nothing comes again.
        cut(&hub, page).await;
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        page.subscribe("h").await;
        page.expect_nothing().await;
        let stats = hub.stats();
        assert_eq!((stats.resumed, stats.resume_failed, stats.resume_bytes), (2, 0, 0));
    }
}

#[tokio::test]
async fn the_next_connection_may_come_before_the_end_of_the_last_one() {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("h", 100)];
    });
    let mut first = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut first, "h").await;
    publish(&hub, "h", 1);
    assert_eq!(numbers(&mut first, 1, false).await, [1]);
    let mut second = PusherClient::connect_page(&hub, PAGE).await;
    second.subscribe("h").await;
    assert_eq!(numbers(&mut second, 1, false).await, [1]);
    answer(&mut second).await;
    cut(&hub, first).await;
    cut(&hub, second).await;
    publish(&hub, "h", 2);
    let mut third = PusherClient::connect_page(&hub, PAGE).await;
    third.subscribe("h").await;
    assert_eq!(numbers(&mut third, 1, false).await, [2]);
}

#[tokio::test]
async fn who_cannot_have_everything_is_told_and_gets_nothing_of_the_past() {
    for hub in with(|config| config.channels = vec![resumed("h", 2)]) {
        for (missed, recovered) in [(1, true), (2, true), (3, false)] {
            let id = format!("page-that-misses-{missed}");
            let mut page = PusherClient::connect_page(&hub, &id).await;
            anew(&mut page, "h").await;
            cut(&hub, page).await;
            (1..=missed).for_each(|number| publish(&hub, "h", number));
            let mut page = PusherClient::connect_page(&hub, &id).await;
            page.subscribe("h").await;
            if recovered {
                assert_eq!(numbers(&mut page, missed as usize, false).await, (1..=missed).collect::<Vec<_>>());
            } else {
                page.expect(FAILED).await;
            }
            publish(&hub, "h", 9);
            assert_eq!(numbers(&mut page, 1, false).await, [9]);
            answer(&mut page).await;
            cut(&hub, page).await;
            // From where it began anew it goes on.
            let mut page = PusherClient::connect_page(&hub, &id).await;
            page.subscribe("h").await;
            page.expect_nothing().await;
            page.client.reset();
        }
        let stats = hub.stats();
        assert_eq!(stats.resume_failed, 1, "{stats:?}");
    }
}

#[tokio::test]
async fn a_page_that_a_program_subscribes_first_is_told_that_it_may_have_missed_something() {
    for hub in with(|config| config.channels = vec![resumed("h", 100)]) {
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        join(&hub, page.socket_id, "h");
        page.expect(SUBSCRIBED).await;
        anew(&mut page, "h").await;
        // Now it has a mark, and what is said again changes nothing.
        (1..=5).for_each(|number| publish(&hub, "h", number));
        assert_eq!(numbers(&mut page, 5, true).await, [1, 2, 3, 4, 5]);
        answer(&mut page).await;
        join(&hub, page.socket_id, "h");
        page.expect_nothing().await;
        page.subscribe("h").await;
        page.expect_nothing().await;
        cut(&hub, page).await;
        (6..=7).for_each(|number| publish(&hub, "h", number));
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        page.subscribe("h").await;
        join(&hub, page.socket_id, "h");
        assert_eq!(numbers(&mut page, 2, true).await, [6, 7]);
        answer(&mut page).await;
        cut(&hub, page).await;
        // The program begins at the present: 8 and 9 are missed, and 10 does not cover them up.
        (8..=9).for_each(|number| publish(&hub, "h", number));
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        join(&hub, page.socket_id, "h");
        page.expect(SUBSCRIBED).await;
        publish(&hub, "h", 10);
        assert_eq!(numbers(&mut page, 1, false).await, [10]);
        anew(&mut page, "h").await;
        publish(&hub, "h", 11);
        assert_eq!(numbers(&mut page, 1, false).await, [11]);
        answer(&mut page).await;
        cut(&hub, page).await;
        publish(&hub, "h", 12);
        let mut page = PusherClient::connect_page(&hub, PAGE).await;
        page.subscribe("h").await;
        assert_eq!(numbers(&mut page, 1, false).await, [12]);
    }
}

#[tokio::test]
async fn another_page_a_page_that_left_the_channel_and_a_client_without_an_id_begin_anew() {
    let hub = start(|config| {
        config.apps = vec![app(), realtime_core::config::AppConfig { name: "b".into(), key: "kb".into(), id: "4".into(), ..app() }];
        config.channels = vec![resumed("h*", 100), history("kept", 100)];
    });
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut page, "h").await;
    anew(&mut page, "h-left").await;
    page.send("pusher:unsubscribe", json!({"channel": "h-left"})).await;
    // Without a policy nothing is promised, and nothing said.
    page.subscribe("kept").await;
    // A second subscription is answered as ever, and moves nothing.
    publish(&hub, "h", 1);
    page.expect("e").await;
    page.subscribe("h").await;
    cut(&hub, page).await;
    ["h-left", "kept"].iter().for_each(|channel| publish(&hub, channel, 1));
    let mut other = PusherClient::connect_page(&hub, &PAGE.replace("01", "02")).await;
    anew(&mut other, "h").await;
    let mut plain = PusherClient::connect(&hub).await;
    plain.subscribe("h").await;
    plain.expect_nothing().await;
    // The same id in another app is another page.
    let mut elsewhere = Client::open(&hub, &format!("/resume/{PAGE}{}", path("kb"))).await;
    assert_eq!(elsewhere.json().await["event"], "pusher:connection_established");
    elsewhere.send_json(json!({"event": "pusher:subscribe", "data": {"channel": "h"}})).await;
    for expected in [SUBSCRIBED, FAILED] {
        assert_eq!(elsewhere.json().await["event"], expected);
    }
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut page, "h-left").await;
    page.subscribe("kept").await;
    page.expect_nothing().await;
    page.subscribe("h").await;
    assert_eq!(numbers(&mut page, 1, false).await, [1]);
}

#[tokio::test]
async fn who_is_no_longer_allowed_gets_nothing_of_the_past() {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("private-h", 100), ChannelPolicy { access: Some(Access::Signed), ..resumed("h", 100) }];
    });
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut page, "private-h").await;
    cut(&hub, page).await;
    publish(&hub, "private-h", 1);
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    page.send("pusher:subscribe", json!({"channel": "private-h", "auth": format!("{KEY}:nothing")})).await;
    page.expect_refusal("private-h", 401, Some(4009)).await;
    page.expect_nothing().await;
    // With a signature for this connection it does.
    page.subscribe("private-h").await;
    assert_eq!(numbers(&mut page, 1, false).await, [1]);
}

#[tokio::test]
async fn what_was_not_for_an_earlier_connection_is_not_for_the_next_one() {
    // Client events, and what an application sends to others than the one that caused it.
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("private-h", 100)];
    });
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut page, "private-h").await;
    let mut other = PusherClient::subscribed(&hub, "private-h").await;
    let event = json!({"event": "client-typing", "channel": "private-h", "data": {"of": "page"}});
    page.client.send_json(event.clone()).await;
    assert_eq!(other.raw().await, event);
    other.client.send_json(json!({"event": "client-typing", "channel": "private-h", "data": "of other"})).await;
    assert_eq!(page.expect("client-typing").await["data"], "of other");
    cut(&hub, page).await;
    publish(&hub, "private-h", 1);
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    page.subscribe("private-h").await;
    assert_eq!(page.expect("client-typing").await["data"], "of other");
    assert_eq!(numbers(&mut page, 1, false).await, [1]);
}

#[tokio::test]
async fn members_are_told_anew_and_a_cached_event_that_was_missed_comes_again() {
    let hub = start(|config| {
        config.apps.push(app());
        config.presence_grace_ms = 0;
        config.channels = vec![resumed("*", 100)];
    });
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    let channels = [("presence-h", Some(r#"{"user_id":"ann"}"#)), ("cache-h", None)];
    async fn join(page: &mut PusherClient, channel: &str, data: Option<&str>) -> Vec<String> {
        let auth = page.auth(channel, data);
        page.send("pusher:subscribe", json!({"auth": auth, "channel": channel, "channel_data": data})).await;
        let answer = page.expect(SUBSCRIBED).await;
        let mut ids: Vec<String> = serde_json::from_value(answer["data"]["presence"]["ids"].clone()).unwrap_or_default();
        ids.sort_unstable();
        ids
    }
    publish(&hub, "cache-h", 1);
    for (channel, data) in channels {
        join(&mut page, channel, data).await;
        page.expect(FAILED).await;
    }
    // The cached event has been given, and nobody has answered for it.
    assert_eq!(numbers(&mut page, 1, false).await, [1]);
    cut(&hub, page).await;
    let mut other = PusherClient::connect(&hub).await;
    assert_eq!(join(&mut other, "presence-h", Some(r#"{"user_id":"bo"}"#)).await, ["bo"]);
    ["presence-h", "cache-h"].iter().for_each(|channel| publish(&hub, channel, 2));
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    assert_eq!(join(&mut page, "presence-h", channels[0].1).await, ["ann", "bo"]);
    assert_eq!(numbers(&mut page, 1, false).await, [2]);
    join(&mut page, "cache-h", None).await;
    assert_eq!(numbers(&mut page, 2, false).await, [1, 2]);
}

#[tokio::test]
async fn a_page_is_known_by_16_to_64_letters_digits_dashes_and_underscores() {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("h", 100)];
    });
    let of = |length: usize| "aZ0-_".chars().cycle().take(length).collect::<String>();
    for (id, is_one) in [
        (of(15), false),
        (of(16), true),
        (of(17), true),
        (of(63), true),
        (of(64), true),
        (of(65), false),
        (String::new(), false),
        (format!("{}/", of(20)), false),
        (format!("{}%41", of(20)), false),
        (format!("{}.", of(20)), false),
    ] {
        let mut client = Client::open(&hub, &page_path(&id)).await;
        let first = client.json().await;
        if is_one {
            assert_eq!(first["event"], "pusher:connection_established", "{id}");
            continue;
        }
        assert_eq!((&first["event"], &first["data"]["code"]), (&json!("pusher:error"), &json!(4005)), "{id}");
        assert!(first["data"]["message"].as_str().unwrap().contains("16–64"), "{first}");
        assert_eq!(client.closed().await.0, 4005);
    }
    for path in [format!("/resume/{PAGE}"), format!("/resume/{PAGE}/ws"), format!("/resume/{PAGE}/app")] {
        assert_eq!(Client::request(&hub, &path, &[]).await.err().map(|refused| refused.status), Some(404), "{path}");
    }
    // What is behind the id is looked at as ever.
    let mut client = Client::open(&hub, &format!("/resume/{PAGE}{}", path("unknown"))).await;
    assert_eq!(client.json().await["data"]["code"], 4001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_travels_between_shards_with_what_it_has_been_asked() {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("h", 100)];
    });
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    anew(&mut page, "h").await;
    publish(&hub, "h", 1);
    assert_eq!(numbers(&mut page, 1, false).await, [1]);
    page.expect("pusher:ping").await;
    let moved = (0..2).filter(|shard| tokio::task::block_in_place(|| hub.move_connection(page.socket_id, *shard)).unwrap()).count();
    assert!(moved > 0);
    page.send("pusher:pong", json!({})).await;
    page.expect_nothing().await;
    publish(&hub, "h", 2);
    assert_eq!(numbers(&mut page, 1, false).await, [2]);
    cut(&hub, page).await;
    let mut page = PusherClient::connect_page(&hub, PAGE).await;
    page.subscribe("h").await;
    assert_eq!(numbers(&mut page, 1, false).await, [2]);
}

#[tokio::test]
async fn nothing_is_asked_of_who_gave_no_id_and_where_nothing_is_resumed() {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("h", 100), history("kept", 100)];
    });
    let mut plain = PusherClient::subscribed(&hub, "h").await;
    let mut elsewhere = PusherClient::connect_page(&hub, PAGE).await;
    elsewhere.subscribe("kept").await;
    let mut page = PusherClient::connect_page(&hub, &PAGE.replace("01", "02")).await;
    anew(&mut page, "h").await;
    // Time enough for two pings, of which the one that has to answer tells.
    for number in 1..=2 {
        ["h", "kept"].iter().for_each(|channel| publish(&hub, channel, number));
        assert_eq!(numbers(&mut page, 1, false).await, [number]);
        answer(&mut page).await;
        for other in [&mut plain, &mut elsewhere] {
            let Received::Text(text) = other.client.next().await else { panic!("no message") };
            assert!(text.contains(r#""event":"e""#), "{text}");
        }
    }
    plain.expect_nothing().await;
    elsewhere.expect_nothing().await;
}

#[tokio::test]
async fn another_hub_says_that_it_knows_nothing_and_the_first_one_goes_on() {
    let server = RedisServer::start();
    let hub = || {
        on_broker(&server.url(), |config| {
            config.apps.push(app());
            config.channels = vec![resumed("h", 100)];
        })
    };
    let hubs = [hub(), hub()];
    let mut page = PusherClient::connect_page(&hubs[0], PAGE).await;
    anew(&mut page, "h").await;
    cut(&hubs[0], page).await;
    publish(&hubs[0], "h", 1);
    let mut page = PusherClient::connect_page(&hubs[1], PAGE).await;
    anew(&mut page, "h").await;
    publish(&hubs[0], "h", 2);
    assert_eq!(numbers(&mut page, 1, false).await, [2]);
    answer(&mut page).await;
    cut(&hubs[1], page).await;
    // Its marks are older there: more comes twice, and nothing is left out.
    let mut page = PusherClient::connect_page(&hubs[0], PAGE).await;
    page.subscribe("h").await;
    assert_eq!(numbers(&mut page, 2, false).await, [1, 2]);
    cut(&hubs[0], page).await;
    let mut page = PusherClient::connect_page(&hubs[1], PAGE).await;
    page.subscribe("h").await;
    page.expect_nothing().await;
}

#[test]
fn resume_ms_is_at_most_a_day_and_needs_a_history() {
    let day = 86_400_000;
    for (length, is_valid) in [(0, true), (1, true), (day - 1, true), (day, true), (day + 1, false), (u64::MAX, false)] {
        let set = |policy: ChannelPolicy| config(|config| config.channels = vec![ChannelPolicy { resume_ms: length, ..policy }]).validate();
        assert_eq!(set(history("h", 1)).is_ok(), is_valid, "{length}");
        // The last value alone is no history.
        for policy in [ChannelPolicy::default(), ChannelPolicy { last_value: true, ..ChannelPolicy::default() }] {
            let error = set(ChannelPolicy { pattern: "h".into(), ..policy }).err().map(|error| error.to_string());
            assert_eq!(error.as_ref().is_some_and(|error| error.contains("resume_ms")), length > 0, "{length}: {error:?}");
        }
    }
}

fn publish_id(hub: &Hub, id: String) -> (Position, String) {
    (hub.publish(&Publish::new("h", "e", Payload::Text(&id))).unwrap().position, id)
}

/// Publishes until told to stop, at a pace that leaves the machine to others; gives what was published, and where it is.
fn publish_on(hub: &Hub, name: usize, stop: &AtomicBool, published: &AtomicUsize) -> Vec<(Position, String)> {
    let mut log = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        log.push(publish_id(hub, format!("{name}-{}", log.len())));
        published.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(4));
    }
    log
}

/// Pages behind a proxy that breaks their connections at any byte, while two threads publish. No more pages a shard than
/// one slice of a batch serves: then what was sent before a ping is known to the byte.
async fn cut_at_any_byte(seed: u64) -> (Hub, Vec<PageLog>, Vec<(Position, String)>) {
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![resumed("h", 100_000)];
        config.channels[0].history.as_mut().unwrap().bytes = 64 << 20;
    });
    let proxy = Chaos::before(hub.local_addr(), seed, |random| Fault::some(random, 24_000)).await;
    let (pages, there) = (sized(24, 32), Arc::new(AtomicUsize::new(0)));
    let followers: Vec<_> = (0..pages)
        .map(|page| {
            let (address, there) = (proxy.address(), there.clone());
            tokio::spawn(async move { follow(address, "h", format!("page-{page:016}"), "end", &there).await })
        })
        .collect();
    let (stop, published) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut log = tokio::task::block_in_place(|| {
        eventually("all have been there once", || there.load(Ordering::Relaxed) == pages);
        std::thread::scope(|scope| {
            let (hub, stop, published) = (&hub, &stop, &published);
            let publishers = [0, 1].map(|name| scope.spawn(move || publish_on(hub, name, stop, published)));
            eventually("enough has happened", || {
                proxy.broken() > sized(60, 600) as u64 && published.load(Ordering::Relaxed) > sized(1_500, 15_000)
            });
            stop.store(true, Ordering::Relaxed);
            publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
        })
    });
    proxy.calm();
    log.push(publish_id(&hub, "end".into()));
    log.sort_by_key(|(position, _)| position.offset);
    let mut logs = Vec::new();
    for follower in followers {
        logs.push(follower.await.unwrap());
    }
    let violations: Vec<String> = logs.iter().flat_map(|page| check(&log, page)).collect();
    assert!(violations.is_empty(), "seed {seed}: {} violations\n{}", violations.len(), violations.join("\n"));
    assert!(logs.iter().all(|log| log.stayed), "seed {seed}: somebody has not come to the end");
    (hub, logs, log)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_cut_at_any_byte_get_everything_at_least_once() {
    let seed = 20_261_122;
    let (hub, logs, history) = cut_at_any_byte(seed).await;
    assert_eq!(history, kept(&hub, "h"));
    for log in &logs {
        // Nothing was published before it had been there.
        let got: std::collections::HashSet<&str> = log
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Message(id) => Some(id.as_str()),
                _ => None,
            })
            .collect();
        let missing: Vec<_> = history.iter().filter(|(_, id)| !got.contains(id.as_str())).take(5).collect();
        assert!(missing.is_empty(), "{} lacks {missing:?}", log.name);
        // Once it has been there it is never told that something is missing.
        let begun = log.seen.iter().position(|seen| *seen == Seen::Subscribed).unwrap();
        let later = log.seen[begun + 1..].iter().skip_while(|seen| **seen != Seen::Ended);
        assert_eq!(later.filter(|seen| **seen == Seen::Failed).count(), 0, "{}", log.name);
    }
    let repeats: usize = logs.iter().map(|log| log.messages() - history.len()).sum();
    let stats = hub.stats();
    assert!(stats.resumed > 0 && stats.resume_failed == 0, "{stats:?}");
    eprintln!("{} published, {} pages, {} resumed, {repeats} repeats", history.len(), logs.len(), stats.resumed);
}

//! Hubs that share a Redis: one order, nothing lost that was acknowledged, a word where something is missing.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashSet;

use realtime_core::config::{ChannelPolicy, Secret};
use realtime_core::history::Query;
use realtime_core::{Config, Hub, Payload, Position, Publish, PublishError, QueryError};
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::ledger::{Entrance, Ledger, Outcome, assert_true, assert_whole, follow, kept};
use realtime_testkit::{Client, DEADLINE, RedisServer, config, eventually, publishing, sized};
use serde_json::{Value, json};

/// A hub that has reached its Redis with both connections.
fn hub(server: &RedisServer, change: impl FnOnce(&mut Config)) -> Hub {
    on_broker(&server.url(), |config| {
        config.channels = vec![history("h*", 10_000)];
        change(config);
    })
}

/// Without an idempotency key: what comes again is another publication, and one that is refused once was never accepted.
fn try_publish(hub: &Hub, channel: &str, text: &str) -> Result<Position, PublishError> {
    hub.publish(&Publish::new(channel, "e", Payload::Text(text))).map(|receipt| receipt.position)
}

/// At the first attempt.
fn publish(hub: &Hub, channel: &str, text: &str) -> Position {
    try_publish(hub, channel, text).unwrap()
}

fn recover(channel: &str, position: Position) -> Value {
    json!({"action": "subscribe", "channel": channel, "recover": {"epoch": position.epoch.to_string(), "offset": position.offset}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_have_one_order() {
    // Case R07, I2, I5 and I6: all get the same, each publisher's own order is kept. At full size 8 publishers of 1,000 and 100
    // clients.
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
    // Case R09, I6 and I7: whichever hub it and what it sends are on, the sender gets none and everybody else all.
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let count = sized(20, 500);
    for channel in ["h", "plain"] {
        let mut clients = Vec::new();
        for at in 0..6 {
            clients.push(Client::subscribed(&hubs[at % 2], channel).await);
        }
        let except = [clients[0].socket_id()];
        for number in 0..count {
            let text = number.to_string();
            let mut message = Publish::new(channel, "e", Payload::Text(&text));
            message.except = &except;
            hubs[number % 2].publish(&message).unwrap();
        }
        publish(&hubs[0], channel, "to all");
        let expected: Vec<String> = (0..count).map(|number| number.to_string()).chain(["to all".to_owned()]).collect();
        for client in &mut clients[1..] {
            assert_eq!(client.texts(count + 1).await, expected);
        }
        assert_eq!(clients[0].texts(1).await, ["to all"]);
        for client in &mut clients {
            client.expect_nothing().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_key_is_one_publication_whichever_hub_gets_it() {
    // Case R05, I1–I3 and I5: each key is sent three times, on two hubs and at the same time (2,000 keys at full size). The
    // three answers are equal, there is one entry, and every client gets it once.
    let keys = sized(200, 2_000);
    let server = RedisServer::start();
    let hubs = [hub(&server, |_| {}), hub(&server, |_| {})];
    let followers: Vec<_> = (0..4)
        .map(|client| {
            let entrance = Entrance { patience: DEADLINE, ..hubs[client % 2].local_addr().into() };
            tokio::spawn(async move { follow(entrance, "h", format!("client {client}"), "end").await })
        })
        .collect();
    let there = |hub: &Hub| hub.channels().iter().any(|channel| channel.name == "h" && channel.subscribers == 2);
    let mut ledger = Ledger::default();
    tokio::task::block_in_place(|| {
        eventually("all listen", || hubs.iter().all(there));
        let together = std::sync::Barrier::new(3);
        let send = |sender: usize, number: usize| {
            let key = format!("key-{number}");
            let mut message = Publish::new("h", "e", Payload::Text(&key));
            message.id = Some(&key);
            together.wait();
            hubs[(sender + number) % 2].publish(&message).unwrap().position
        };
        let answers: Vec<Vec<Position>> = std::thread::scope(|scope| {
            let send = &send;
            let senders: Vec<_> =
                (0..3).map(|sender| scope.spawn(move || (0..keys).map(|number| send(sender, number)).collect())).collect();
            senders.into_iter().map(|sender| sender.join().unwrap()).collect()
        });
        for (number, position) in answers[0].iter().enumerate() {
            assert_eq!((answers[1][number], answers[2][number]), (*position, *position), "key-{number}");
            ledger.published.insert(format!("key-{number}"), Outcome::Acked(*position));
        }
        ledger.published.insert("end".into(), Outcome::Acked(publish(&hubs[0], "h", "end")));
    });
    for follower in followers {
        ledger.clients.push(follower.await.unwrap());
    }
    let history = kept(&hubs[0], "h");
    assert_eq!((history.len(), history.last().unwrap().0.offset), (keys + 1, keys as u64 + 1));
    ledger.clients.iter().for_each(|client| assert_whole(client, keys as u64 + 1));
    ledger.history = Some(history);
    assert_true(&ledger, "keys that are sent three times");
}

#[tokio::test]
async fn without_redis_publishing_fails_at_once_and_clients_stay() {
    // Case R21 in small, nothing on disk: I5, no false `recovered`; `chaos` has it under load.
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
    let after = publishing::publish(&hub, "h", "after");
    assert_ne!(before.epoch, after.epoch);
    assert_eq!(client.expect("unsubscribed").await["code"], "interrupted");
    let answer = client.ask(recover("h", before)).await;
    assert_eq!(answer["recovered"], false);
    publishing::publish(&hub, "plain", "after");
    assert_eq!(plain.texts(1).await, ["after"]);
    let mut back = Client::connect(&hub).await;
    assert_eq!(back.ask(recover("h", Position { offset: after.offset - 1, ..after })).await["recovered"], true);
}

#[tokio::test]
async fn a_server_that_keeps_everything_costs_no_client_its_recovery() {
    // Case R21 in small, everything on disk and the epoch not fenced: I1–I3; `chaos` has it under load.
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
    publishing::publish(&hub, "h", "after");
    assert_eq!(client.texts(1).await, ["after"]);
    let page = hub.history("h", &Query { limit: 1_000, ..Query::default() }).unwrap();
    assert_eq!(page.publications.len() as u64, page.position.offset);
    client.expect_nothing().await;
}

#[tokio::test]
async fn what_was_missed_while_the_link_was_cut_is_handed_on() {
    // Cases R23 and R24 in small, I1–I3: only the link of subscriptions is lost, and what is published meanwhile is read.
    // `chaos` has both under load.
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
    // Case R26, I2, I3 and I5 (I1 is waived): counts alone, the log alone, both, everything. Wherever a client had left off it
    // gets all of what follows or is told, never a part; who was there all the time is told, or misses nothing.
    const TOP: u64 = 6;
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    for what in ["meta", "log", "both", "all"] {
        let channel = format!("h-{what}");
        let mut others = vec![Client::subscribed(&hub, &channel).await];
        let mut before = publish(&hub, &channel, "before 1");
        for number in 2..=TOP {
            before = publish(&hub, &channel, &format!("before {number}"));
        }
        others[0].texts(TOP as usize).await;
        let key = |key: &str| format!("realtime:{{{channel}}}:{key}");
        let gone = match what {
            "all" => server.command(&["FLUSHALL"]),
            "both" => server.command(&["DEL", &key("meta"), &key("log")]),
            one => server.command(&["DEL", &key(one)]),
        };
        assert!(["+OK", ":1", ":2"].contains(&gone.as_str()), "{what}: {gone}");
        for offset in 0..=TOP + 1 {
            let mut client = Client::connect(&hub).await;
            let answer = client.ask(recover(&channel, Position { offset, ..before })).await;
            assert_eq!(answer["type"], "subscribed", "{what} {offset}: {answer}");
            // Behind its top nothing is missing, as far as the hub may have heard: who is there is told the same.
            let is_recovered = answer["recovered"] == true && offset == TOP;
            assert!(is_recovered || answer["recovered"] == false && (what, offset) != ("log", TOP), "{what} {offset}: {answer}");
            if is_recovered {
                others.push(client);
            } else {
                client.expect_nothing().await;
                client.close().await;
            }
        }
        let after = publish(&hub, &channel, "after");
        assert_eq!((after.epoch == before.epoch, after.offset == TOP + 1), (what == "log", what == "log"), "{what}: {after:?}");
        let mut goes_on_at = Vec::new();
        for there in &mut others {
            if what == "log" {
                goes_on_at.push(TOP);
                continue;
            }
            let mut answer = json!({"recovered": true});
            while answer["recovered"] == true {
                // As long as the hub has not heard of it nothing follows, and that ends with a word.
                assert_eq!(there.expect("unsubscribed").await["code"], "interrupted", "{what}");
                answer = there.ask(recover(&channel, before)).await;
            }
            assert_eq!((&answer["recovered"], &answer["epoch"]), (&json!(false), &json!(after.epoch.to_string())), "{what}");
            goes_on_at.push(answer["offset"].as_u64().unwrap());
        }
        let live = publish(&hub, &channel, "live");
        for (there, from) in others.iter_mut().zip(goes_on_at) {
            let expected = ["after", "live"][2 - (live.offset - from) as usize..].to_vec();
            assert_eq!(there.texts(expected.len()).await, expected, "{what}");
            there.expect_nothing().await;
        }
        let entries: Vec<String> = kept(&hub, &channel).into_iter().map(|(_, id)| id).collect();
        assert_eq!(entries, ["after", "live"], "{what}");
    }
}

#[tokio::test]
async fn a_log_that_has_gone_is_missed_although_there_is_a_new_one() {
    // Case R26, I2: a publication came before anybody who looked.
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut position = publish(&hub, "h", "1");
    for _ in 0..5 {
        position = publish(&hub, "h", "x");
    }
    server.command(&["DEL", "realtime:{h}:log"]);
    publish(&hub, "h", "after");
    for (offset, expected) in [(0, false), (2, false), (5, false), (6, true), (7, true)] {
        let mut client = Client::connect(&hub).await;
        let answer = client.ask(recover("h", Position { offset, ..position })).await;
        assert_eq!(answer["recovered"], expected, "{offset}: {answer}");
        if offset == 6 {
            assert_eq!(client.texts(1).await, ["after"]);
        }
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn a_log_that_has_ended_is_missed_although_what_came_behind_it_was_not_kept() {
    // Case R26, I2: a publication that is not kept looks first, with the log's time over or before.
    for is_over in [false, true] {
        let server = RedisServer::start();
        let mut policy = history("h*", 10_000);
        policy.history.as_mut().unwrap().ttl_ms = if is_over { 3_000 } else { 3_600_000 };
        let hub = hub(&server, |config| config.channels = vec![policy]);
        let positions: Vec<Position> = (0..5).map(|_| publish(&hub, "h", "x")).collect();
        if is_over {
            eventually("the log has ended", || server.command(&["EXISTS", "realtime:{h}:log"]).contains(":0"));
        } else {
            server.command(&["DEL", "realtime:{h}:log"]);
        }
        let mut passing = Publish::new("h", "e", Payload::Text("passing"));
        passing.history = false;
        hub.publish(&passing).unwrap();
        publish(&hub, "h", "kept");
        for (offset, position) in (1..).zip(&positions) {
            let answer = Client::connect(&hub).await.ask(recover("h", *position)).await;
            // Lost before its time, it may have held more than is known of.
            assert_eq!(answer["recovered"], offset == 5 && is_over, "{is_over} {offset}: {answer}");
        }
    }
}

#[tokio::test]
async fn what_was_to_live_shorter_is_missed_with_its_log() {
    // Case R26, I2.
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let position = publish(&hub, "h", "1");
    let mut short = Publish::new("h", "e", Payload::Text("short"));
    short.ttl_ms = Some(60_000);
    let newest = hub.publish(&short).unwrap().position;
    server.command(&["DEL", "realtime:{h}:log"]);
    for (position, expected) in [(position, false), (newest, true)] {
        let answer = Client::connect(&hub).await.ask(recover("h", position)).await;
        assert_eq!(answer["recovered"], expected, "{answer}");
    }
    // What follows does not live for ever, though its log had an end before.
    publish(&hub, "h", "2");
    assert!(!server.command(&["PTTL", "realtime:{h}:log"]).contains("-1"));
}

#[tokio::test]
async fn a_server_that_refuses_to_write_can_be_read() {
    // Case R27: with too few replicas, or without memory, who is there hears what there is, and what was accepted stays so.
    let server = RedisServer::start();
    let hub = hub(&server, |_| {});
    let mut message = Publish::new("h", "e", Payload::Text("1"));
    message.id = Some("key");
    let accepted = hub.publish(&message).unwrap().position;
    for (setting, refuses, allows) in [("min-replicas-to-write", "1", "0"), ("maxmemory", "1", "0")] {
        server.command(&["CONFIG", "SET", setting, refuses]);
        assert!(try_publish(&hub, "h", "2").is_err(), "{setting}");
        let again = hub.publish(&message).unwrap();
        assert_eq!(again.position, accepted, "{setting}");
        let mut client = Client::connect(&hub).await;
        let answer = client.ask(recover("h", Position { offset: 0, ..accepted })).await;
        assert_eq!(answer["recovered"], true, "{setting}: {answer}");
        assert_eq!(client.texts(1).await, ["1"]);
        server.command(&["CONFIG", "SET", setting, allows]);
    }
    publishing::publish(&hub, "h", "2");
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
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 99999999999999 0 0 0 0 0 0"],
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 5 1000000000000000 0 0 0 0 0"],
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 5 6 0 0 0 0 0"],
        &["SET", "realtime:{h9}:meta", "0000000000000001 0000000000000001 - 5 0 6 0 0 0 0"],
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
    assert!(hub.history("h9", &Query::default()).unwrap().publications.is_empty());
    let newest = publish(&hub, "h9", "z");
    // No offset of the hub's is behind the newest, or has a second part.
    server.command(&["XADD", "realtime:{h9}:log", &format!("{}-5", newest.offset), "d", "forged", "x", "99999999999999"]);
    server.command(&["XADD", "realtime:{h9}:log", "18446744073709551615-0", "d", "forged"]);
    let kept = hub.history("h9", &Query::default()).unwrap().publications;
    assert_eq!(kept.iter().map(|publication| publication.position).collect::<Vec<_>>(), [newest]);
    publish(&hub, "h8", "fine");
}

/// The connection on which hubs run their scripts, by its id; without one: the empty string.
fn commands(server: &RedisServer) -> String {
    let list = server.command(&["CLIENT", "LIST", "TYPE", "normal"]);
    let line = list.lines().find(|line| ["cmd=evalsha", "cmd=publish", "cmd=script|load"].iter().any(|own| line.contains(own)));
    line.and_then(|line| line.split(' ').next()).unwrap_or_default().to_owned()
}

/// How often a command was called.
fn calls(server: &RedisServer, command: &str) -> usize {
    let stats = server.command(&["INFO", "commandstats"]);
    let name = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|line| line.strip_prefix(&name)?.split(',').next()?.parse().ok());
    count.unwrap_or_default()
}

fn refusal(hub: &Hub, text: &str) -> String {
    match try_publish(hub, "h", text) {
        Err(PublishError::Broker(error)) => error.to_string(),
        other => panic!("it was not refused: {other:?}"),
    }
}

/// Waits for an error that says this, in whatever case; others may come before.
fn refused_with(hub: &Hub, word: &str) {
    eventually(word, || try_publish(hub, "h", "refused").is_err_and(|error| error.to_string().to_lowercase().contains(word)));
}

#[test]
fn refusals_are_errors_and_the_script_comes_back() {
    // Case R27, I1 and I4: each refusal is an error with its name, and nothing of what was refused is kept.
    let server = RedisServer::with(&["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]);
    let hub = hub(&server, |_| {});
    publish(&hub, "h", "1");
    let own = commands(&server);
    assert!(!own.is_empty());

    // NOSCRIPT: all scripts are loaded again, once, however many calls have found them missing; the connection stays.
    let loaded = calls(&server, "script|load");
    assert!(loaded > 0);
    server.command(&["SCRIPT", "FLUSH"]);
    std::thread::scope(|scope| {
        for thread in 0..sized(8, 64) {
            let hub = &hub;
            scope.spawn(move || publish(hub, "other", &thread.to_string()));
        }
    });
    assert_eq!(publish(&hub, "h", "2").offset, 2);
    assert_eq!((calls(&server, "script|load"), commands(&server)), (loaded * 2, own.clone()));

    // OOM: an error each time, at once; the connection stays, and the next publication is fine.
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for number in 0..20 {
        let error = refusal(&hub, &format!("refused {number}"));
        assert!(error.contains("OOM"), "{error}");
    }
    server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    let before = publish(&hub, "h", "3");
    assert_eq!((before.offset, commands(&server)), (3, own.clone()));

    // READONLY: the server is left, since another one may count by now.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    refused_with(&hub, "readonly");
    eventually("the connection is left", || commands(&server) != own);
    server.command(&["REPLICAOF", "NO", "ONE"]);
    // Another server counts, as far as anybody can tell: a new epoch, with what there is.
    let after = publishing::publish(&hub, "h", "4");
    assert_eq!((after.offset, after.epoch == before.epoch), (4, false));

    // NOAUTH: it is tried again until it is let in.
    // One connection does it all: it was let in before.
    server.commands(&[
        &["CONFIG", "SET", "requirepass", "geheim"],
        &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
        &["CLIENT", "KILL", "TYPE", "pubsub"],
    ]);
    refused_with(&hub, "auth");
    assert_eq!(server.command(&["PING"]), "-NOAUTH Authentication required.");
    server.commands(&[&["AUTH", "geheim"], &["CONFIG", "SET", "requirepass", ""]]);
    assert_eq!(publishing::publish(&hub, "h", "5").offset, 5);

    let kept: Vec<Position> = kept(&hub, "h").into_iter().map(|(position, _)| position).collect();
    assert_eq!(kept.iter().map(|position| position.offset).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "what was refused is nowhere");
}

#[tokio::test]
async fn while_redis_reads_its_disk_publishing_is_refused_and_then_goes_on() {
    // Case R27, LOADING: I1–I4. The connection is made anew until the server has read everything.
    let slowly = ["--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024"];
    let mut server = RedisServer::with(&[&["--save", "", "--appendonly", "no"][..], &slowly].concat());
    let hub = hub(&server, |config| config.broker.fence = false);
    let mut client = Client::subscribed(&hub, "h").await;
    for number in 1..=3 {
        publish(&hub, "h", &number.to_string());
    }
    // More than it reads while this test looks.
    server.command(&["EVAL", "for at = 1, 5000 do redis.call('SET', 'k' .. at, string.rep('x', 1000)) end", "0"]);
    assert_eq!(server.command(&["SAVE"]), "+OK");
    server.restart();
    refused_with(&hub, "loading");
    assert!(matches!(hub.history("h", &Query::default()), Err(QueryError::Broker(_))));
    client.send_json(json!({"action": "ping", "id": 1})).await;
    assert_eq!(client.texts(3).await, ["1", "2", "3"]);
    assert_eq!(client.expect("pong").await["id"], 1, "who is there stays");
    server.command(&["CONFIG", "SET", "key-load-delay", "0"]);
    assert_eq!(publishing::publish(&hub, "h", "4").offset, 4);
    assert_eq!(client.texts(1).await, ["4"]);
    client.expect_nothing().await;
    assert_eq!(kept(&hub, "h").into_iter().map(|(_, id)| id).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
}

#[test]
fn a_frozen_server_is_an_error_and_a_key_makes_one_of_two_attempts() {
    // Case R22 in small, I1: no call hangs, the hub goes on, a key makes one publication of both attempts.
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

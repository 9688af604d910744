//! Hubs in processes of their own that share a Redis, and one of them is killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use process::{Place, Server, history, printed, publication};
use realtime_testkit::ledger::{Entrance, Ledger, Outcome, Seen, Tally, assert_true, assert_whole, follow_aside};
use realtime_testkit::{DEADLINE, RawClient, RedisServer, eventually, sized};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Life of a lease, in these tests.
const TTL_MS: u64 = 4_000;

/// A hub with its own bus, and the place where that is.
fn hub(server: &RedisServer, more: &str) -> (Place, Server) {
    let place = Place::new();
    let config = format!(
        "presence_grace_ms = 0\n{more}\n[broker]\nurl = \"{}\"\npresence_ttl_ms = {TTL_MS}\n[auth]\nmode = \"none\"\n\
         [[apps]]\nname = \"default\"\nid = \"1\"\nkey = \"k\"\nsecret = \"geheim\"\n[[channels]]\nmatch = \"h*\"\n\
         history = {{ size = 100000 }}\n",
        server.url()
    );
    let file = place.path("hub.toml");
    std::fs::write(&file, config).unwrap();
    let hub = place.hub(&["--config", file.to_str().unwrap()]);
    (place, hub)
}

/// A client that is shown on `presence-room` as a user whom the application has signed.
fn member(hub: &Server, id: &str) -> (RawClient, BTreeSet<String>) {
    loop {
        let mut client = RawClient::tcp(hub.address);
        client.upgrade("/ws");
        let socket = client.next_message().json()["socket_id"].as_str().unwrap().to_owned();
        let data = json!({"user_id": id}).to_string();
        let signature = realtime_core::auth::signature::sign("geheim", &format!("{socket}:presence-room:{data}"));
        let request = json!({"action": "subscribe", "channel": "presence-room", "auth": format!("k:{signature}"), "channel_data": data});
        client.send_text(&request.to_string());
        let answer = client.next_message().json();
        // A hub that has just started may not have reached Redis.
        if answer["code"] == "unavailable" {
            continue;
        }
        let users = answer["users"].as_array().unwrap_or_else(|| panic!("{answer}"));
        return (client, users.iter().map(|user| user["id"].as_str().unwrap().to_owned()).collect());
    }
}

/// Follows what a member is told until it knows of `until` users; counts who left.
fn follow(client: &mut RawClient, known: &mut BTreeSet<String>, until: usize, left: &mut Vec<String>) {
    while known.len() != until {
        let message: Value = client.next_message().json();
        let user = message["user"]["id"].as_str().unwrap_or_else(|| panic!("{message}")).to_owned();
        match message["type"].as_str().unwrap() {
            "joined" => assert!(known.insert(user), "{message} again"),
            "left" => {
                assert!(known.remove(&user), "{message} of nobody");
                left.push(user);
            }
            _ => panic!("{message}"),
        }
    }
}

#[test]
fn users_of_a_killed_hub_leave_once_after_their_lease_and_the_others_miss_nothing() {
    // Cases R17 and R33, for the clients of the other hub; invariants I1, I2, I8. At full size 500 clients.
    let server = RedisServer::start();
    let ((place, first), (_other_place, mut second)) = (hub(&server, ""), hub(&server, ""));
    let here = sized(5, 250);
    let there = sized(10, 250);
    let (mut watcher, mut known) = member(&first, "watcher");
    let mut kept: Vec<_> = (0..here).map(|number| member(&first, &format!("here{number}"))).collect();
    let lost: Vec<_> = (0..there).map(|number| member(&second, &format!("there{number}"))).collect();
    // One who is on both hubs stays.
    let both = member(&second, "here0");
    let mut left = Vec::new();
    follow(&mut watcher, &mut known, 1 + here + there, &mut left);

    let (mut reader, _) = first.subscriber("h");
    let mut id = String::new();
    eventually("it has said who it is", || {
        let cluster: Value = serde_json::from_str(&printed(&place.run(&["status", "--cluster", "--json"]))).unwrap();
        id = cluster["hubs"][1]["id"].as_str().unwrap_or_default().to_owned();
        !id.is_empty()
    });
    second.process.signal(Signal::KILL);
    second.process.wait();
    let killed = Instant::now();
    let ends = server.command(&["ZSCORE", "realtime:{presence-room}:due", &format!("n{id}")]);
    // What is published meanwhile through the hub that is left reaches its clients, whole and in order.
    let (publications, mut publisher) = (sized(300, 5_000), place.client());
    for number in 0..publications {
        let text = number.to_string();
        publisher.publish_with_receipt(&publication("h", &text)).unwrap();
    }
    for number in 0..publications {
        let message = reader.next_message().json();
        assert_eq!((message["type"].as_str(), message["data"].as_str().unwrap()), (Some("message"), number.to_string().as_str()));
    }
    follow(&mut watcher, &mut known, 1 + here, &mut left);
    // It is to be right a second after the lease.
    assert!(killed.elapsed() < Duration::from_millis(TTL_MS + 1_000) * 5, "they were there for {:?}", killed.elapsed());
    let is_over = "local time = redis.call('TIME') return time[1] * 1000 + math.floor(time[2] / 1000) >= (tonumber(ARGV[1]) or 0)";
    assert_eq!(server.command(&["EVAL", is_over, "0", &ends]), ":1", "nobody leaves before the lease ends");
    let expected: BTreeSet<String> = (0..there).map(|number| format!("there{number}")).collect();
    assert_eq!((left.len(), left.into_iter().collect::<BTreeSet<_>>()), (there, expected));
    // All others were told the same, each once.
    for (client, known) in &mut kept {
        let mut told = Vec::new();
        while told.len() < there {
            let message = client.next_message().json();
            let user = message["user"]["id"].as_str().unwrap_or_else(|| panic!("{message}")).to_owned();
            if message["type"] == "left" {
                told.push(user.clone());
            } else {
                assert!(known.insert(user), "{message}");
            }
        }
        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), there);
    }
    let users = printed(&place.run(&["users", "presence-room", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&users).unwrap().as_array().unwrap().len(), 1 + here, "{users}");
    drop((lost, both));
}

/// Publishes until told to stop, 250 times a second; what the hub does not answer goes to the other, with the same key.
fn publish_on(own: &Place, other: &Place, name: usize, stop: &AtomicBool, accepted: &AtomicUsize) -> Vec<(String, Outcome)> {
    let (mut client, mut is_own, mut log) = (own.client(), true, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{name}-{}", log.len());
        let receipt = match client.publish_with_receipt(&publication("h", &id)) {
            Ok(receipt) => receipt,
            Err(error) => {
                assert!(is_own, "{error}");
                (client, is_own) = (other.client(), false);
                client.publish_with_receipt(&publication("h", &id)).unwrap()
            }
        };
        accepted.fetch_add(1, Ordering::Relaxed);
        log.push((id, Outcome::Acked(receipt.position)));
        std::thread::sleep(Duration::from_millis(4));
    }
    log
}

#[test]
fn clients_of_a_killed_hub_go_on_at_the_other_and_nothing_is_missing() {
    // Case R17, I1–I5: 1,000 publications a second on two hubs, one of which is killed. Its clients come to the other and get
    // what they have missed; those of the other notice nothing. At full size 500 clients.
    let server = RedisServer::start();
    let ((place, first), (other_place, mut second)) = (hub(&server, ""), hub(&server, ""));
    let (clients, publications) = (sized(20, 500), sized(400, 5_000));
    let entrance = |client| match client % 2 {
        0 => Entrance { patience: DEADLINE, ..first.address.into() },
        _ => Entrance { patience: DEADLINE, otherwise: Some(first.address), ..second.address.into() },
    };
    let entrances: Vec<Entrance> = (0..clients).map(entrance).collect();
    let heard: Vec<_> = entrances.iter().map(|entrance| entrance.heard.clone()).collect();
    let followers = follow_aside(entrances, "h", "end");
    let (stop, accepted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        let publishers: Vec<_> = (0..4)
            .map(|name| {
                let (own, other) = if name % 2 == 0 { (&place, &other_place) } else { (&other_place, &place) };
                let (stop, accepted) = (&stop, &accepted);
                scope.spawn(move || publish_on(own, other, name, stop, accepted))
            })
            .collect();
        let further = |count: usize| {
            let until = accepted.load(Ordering::Relaxed) + count;
            eventually("publications flow", || accepted.load(Ordering::Relaxed) >= until);
        };
        eventually("all hear", || heard.iter().all(|epoch| epoch.load(Ordering::Relaxed) != 0));
        further(publications);
        second.process.signal(Signal::KILL);
        second.process.wait();
        further(publications);
        stop.store(true, Ordering::Relaxed);
        ledger.published.extend(publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()));
    });
    let mut client = place.client();
    let receipt = client.publish_with_receipt(&publication("h", "end")).unwrap();
    ledger.published.insert("end".into(), Outcome::Acked(receipt.position));
    ledger.clients = followers.join().unwrap();
    ledger.history = Some(history(&mut client, "h"));
    let tally = Tally::of(std::slice::from_ref(&ledger));
    eprintln!("{clients} clients: {tally}");
    assert_true(&ledger, "a hub that was killed");
    for (at, log) in ledger.clients.iter().enumerate() {
        assert_whole(log, receipt.position.offset);
        let begun = log.seen.iter().filter(|seen| matches!(seen, Seen::Subscribed(..))).count();
        assert!((at % 2 == 1 && begun > 1) || (at % 2 == 0 && begun == 1), "{} has subscribed {begun} times", log.name);
    }
    assert_eq!((tally.lost, tally.anew, ledger.published.len()), (0, 0, tally.kept));
}

#[test]
fn every_hub_is_shown_and_one_that_does_not_answer_is_named() {
    let server = RedisServer::start();
    let ((place, first), (_other_place, second)) = (hub(&server, ""), hub(&server, ""));
    let (_client, _) = second.subscriber("news");
    let status = |more: &[&str]| place.run(&[&["status", "--cluster"], more].concat());
    let mut cluster = Value::Null;
    eventually("both are there", || {
        let output = status(&["--json"]);
        cluster = serde_json::from_slice(&output.stdout).unwrap_or_default();
        cluster["hubs"].as_array().is_some_and(|hubs| hubs.len() == 2)
    });
    let (own, other) = (&cluster["hubs"][0], &cluster["hubs"][1]);
    assert_eq!((own["listen"].as_str(), other["listen"].as_str()), (Some(&*first.address.to_string()), Some(&*second.address.to_string())));
    assert_eq!((other["connections"].as_u64(), other["channels"].as_u64(), &cluster["missing"]), (Some(1), Some(1), &json!([])));
    let table = printed(&status(&[]));
    assert!(table.contains(&first.address.to_string()) && table.contains(&second.address.to_string()), "{table}");
    let id = other["id"].as_str().unwrap().to_owned();
    assert!(table.contains(&id) && table.contains(env!("CARGO_PKG_VERSION")), "{table}");
    second.process.signal(Signal::STOP);
    eventually("it is named", || printed(&status(&[])).contains(&format!("{id} did not answer in time")));
    second.process.signal(Signal::CONT);
    eventually("it answers again", || {
        let cluster: Value = serde_json::from_slice(&status(&["--json"]).stdout).unwrap_or_default();
        cluster["missing"] == json!([]) && cluster["hubs"].as_array().is_some_and(|hubs| hubs.len() == 2)
    });
    second.stop();
    let cluster: Value = serde_json::from_str(&printed(&status(&["--json"]))).unwrap();
    assert_eq!((cluster["hubs"].as_array().unwrap().len(), &cluster["missing"]), (1, &json!([])), "who stops is not missed");
}

#[test]
fn a_hub_without_a_broker_is_a_cluster_of_one() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let table = printed(&place.run(&["status", "--cluster"]));
    assert!(table.contains(&hub.address.to_string()), "{table}");
}

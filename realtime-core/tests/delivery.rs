//! What was published, against what clients got: many channels, other protocols, lost answers, subscriptions under traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client as BusClient, ClientOptions};
use realtime_core::bus::frame::BusPublish;
use realtime_core::history::{Keeping, Query};
use realtime_core::hub::HubBuilder;
use realtime_core::{Hub, Payload, Publish};
use realtime_testkit::chaos::{Chaos, Fault};
use realtime_testkit::hub::history;
use realtime_testkit::ledger::{Entrance, Ledger, Outcome, assert_true, assert_whole, check_accounts, check_fan_out, follow, id_of, kept};
use realtime_testkit::mutation::Random;
use realtime_testkit::pusher::{PusherClient, app};
use realtime_testkit::{Client, DEADLINE, Delayed, config, eventually, sized, start};
use serde_json::{Value, json};

fn publish(hub: &Hub, channel: &str, text: &str) -> (Outcome, usize) {
    match hub.publish(&Publish::new(channel, "e", Payload::Text(text))) {
        Ok(receipt) => (Outcome::Acked(receipt.position), receipt.matched),
        Err(_) => (Outcome::Refused, 0),
    }
}

fn spawn_followers(
    entrance: &Entrance,
    clients: usize,
    channel: impl Fn(usize) -> String,
) -> Vec<tokio::task::JoinHandle<realtime_testkit::ledger::ClientLog>> {
    let spawn = |client| {
        let (entrance, channel) = (entrance.clone(), channel(client));
        tokio::spawn(async move { follow(entrance, &channel, format!("client {client}"), "end").await })
    };
    (0..clients).map(spawn).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_gets_what_is_published_and_the_accounts_balance() {
    // Case R01: I1–I3, I10, and every client gets all of its channel. 200 clients of 50 channels, 20,000 publications of 128 B to
    // 4 KiB at full size.
    const CHANNELS: usize = 50;
    const CLIENTS: usize = 200;
    const PUBLISHERS: usize = 8;
    let each = sized(4_000, 20_000) / PUBLISHERS;
    let hub = start(|config| {
        config.channels = vec![history("h*", 100_000)];
        config.channels[0].history.as_mut().unwrap().bytes = 64 << 20;
        config.limits.history_bytes = 256 << 20;
    });
    let entrance = Entrance { patience: DEADLINE, ..hub.local_addr().into() };
    let followers = spawn_followers(&entrance, CLIENTS, |client| format!("h{}", client % CHANNELS));
    tokio::task::block_in_place(|| eventually("all listen", || hub.stats().subscriptions == CLIENTS as u64));
    let one = |publisher: usize| {
        let mut random = Random::new(publisher as u64);
        let mut log = Vec::new();
        for number in 0..each {
            let (channel, id) = ((publisher + number) % CHANNELS, format!("{publisher}-{number}"));
            let text = format!("{id:<0$}", 128 + random.below((4 << 10) - 128));
            log.push((channel, id, publish(&hub, &format!("h{channel}"), &text)));
        }
        log
    };
    let logs = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..PUBLISHERS).map(|publisher| scope.spawn(move || one(publisher))).collect();
            publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
        })
    });
    let ends = (0..CHANNELS).map(|channel| (channel, "end".to_owned(), publish(&hub, &format!("h{channel}"), "end")));
    let (mut ledgers, mut matched) = (vec![Ledger::default(); CHANNELS], 0);
    for (channel, id, (outcome, reached)) in logs.into_iter().chain(ends) {
        ledgers[channel].published.insert(id, outcome);
        matched += reached as u64;
    }
    for (client, follower) in followers.into_iter().enumerate() {
        ledgers[client % CHANNELS].clients.push(follower.await.unwrap());
    }
    let (mut delivered, mut acked, mut attempts) = (0, 0, 0);
    for (channel, ledger) in ledgers.iter_mut().enumerate() {
        let history = kept(&hub, &format!("h{channel}"));
        for client in &ledger.clients {
            assert_whole(client, history.len() as u64);
            delivered += client.messages() as u64;
        }
        acked += ledger.published.values().filter(|outcome| matches!(outcome, Outcome::Acked(_))).count() as u64;
        attempts += ledger.published.len() as u64;
        ledger.history = Some(history);
        assert_true(ledger, &format!("h{channel}"));
    }
    assert_eq!(attempts, (each * PUBLISHERS + CHANNELS) as u64);
    assert_eq!(check_accounts(hub.stats().published, acked, hub.stats().queue_full, attempts), []);
    assert_eq!(check_fan_out(matched, delivered, 0, 0), []);
    eventually("nothing is queued", || hub.stats().ingress_bytes == 0);
    assert_eq!((hub.stats().closed_slow, hub.stats().interrupted), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_and_goes_under_traffic_hears_on_from_the_answer() {
    // Case R02, invariant I2, with a broker whose histories are up to 20 ms late: each time the first live offset follows the
    // one in the answer, and what is recovered has no hole towards it.
    let (channels, clients, cycles) = (sized(4, 10), 6, sized(10, 50));
    let broker = Arc::new(Delayed::new(Duration::from_millis(1)));
    broker.slow_reads(Duration::from_millis(20));
    let hub = HubBuilder::new(config(|config| config.channels = vec![history("h*", 100_000)])).broker(broker).start().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let publishers: Vec<_> = (0..2)
        .map(|publisher| {
            let (hub, stop) = (hub.clone(), stop.clone());
            std::thread::spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    publish(&hub, &format!("h{}", (publisher + number) % channels), "x");
                }
            })
        })
        .collect();
    let cycling: Vec<_> = (0..clients)
        .map(|at| {
            let hub = hub.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(&hub).await;
                let mut left_at: BTreeMap<String, (Value, u64)> = BTreeMap::new();
                for cycle in 0..cycles {
                    let channel = format!("h{}", (at + cycle) % channels);
                    let mut request = json!({"action": "subscribe", "channel": channel});
                    let before = left_at.get(&channel).filter(|_| cycle % 3 != 0);
                    if let Some((epoch, offset)) = before {
                        request["recover"] = json!({"epoch": epoch, "offset": offset});
                    }
                    let answer = client.ask(request).await;
                    assert_eq!(answer["type"], "subscribed", "{answer}");
                    let mut offset = answer["offset"].as_u64().unwrap();
                    if let Some((_, left)) = before {
                        assert_eq!((&answer["recovered"], offset), (&json!(true), *left), "{channel}");
                    }
                    for _ in 0..20 {
                        offset += 1;
                        assert_eq!(client.expect("message").await["offset"], offset, "{channel}, cycle {cycle}: {answer}");
                    }
                    client.send_json(json!({"action": "unsubscribe", "channel": channel})).await;
                    loop {
                        let message = client.json().await;
                        if message["type"] == "unsubscribed" {
                            break;
                        }
                        offset += 1;
                        assert_eq!(message["offset"], offset, "{channel}, cycle {cycle}: {message}");
                    }
                    left_at.insert(channel, (answer["epoch"].clone(), offset));
                }
            })
        })
        .collect();
    for client in cycling {
        client.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    tokio::task::block_in_place(|| publishers.into_iter().for_each(|publisher| publisher.join().unwrap()));
    assert!(hub.stop(DEADLINE).complete);
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_cut_and_a_retry_with_the_key_are_one_publication() {
    // Case R06 (500 answers that are cut, at every size), I1–I3, I5: whoever publishes over the bus does not learn what became of it and tries again.
    const PUBLISHERS: usize = 4;
    const CUT_ANSWERS: u64 = 500;
    let hub = start(|config| {
        config.socket = Some("tcp://127.0.0.1:0".into());
        config.secret = SECRET.into();
        config.channels = vec![history("h*", 100_000)];
    });
    // Somewhere between the first answer of a connection and its third.
    let seed = 41;
    let proxy = Chaos::before(hub.bus_addr().unwrap(), seed, |random| Fault::Reset(80 + random.below(200))).await;
    let address = proxy.address().to_string();
    let entrance = Entrance { patience: DEADLINE, ..hub.local_addr().into() };
    let followers = spawn_followers(&entrance, PUBLISHERS * 2, |client| format!("h{}", client % PUBLISHERS));
    tokio::task::block_in_place(|| eventually("all listen", || hub.stats().subscriptions == PUBLISHERS as u64 * 2));
    // Publications that were accepted while their publisher was not told.
    let cut = AtomicU64::new(0);
    let publish_all = |publisher: usize| {
        let channel = format!("h{publisher}");
        let mut client = BusClient::new(ClientOptions {
            secret: SECRET.into(),
            connect_timeout: DEADLINE,
            answer_timeout: DEADLINE,
            ..ClientOptions::probing(vec![BusAddress::Tcp(address.clone())])
        });
        let mut log: Vec<(String, Outcome)> = Vec::new();
        while cut.load(Ordering::Relaxed) < CUT_ANSWERS {
            let key = log.len().to_string();
            let publish = BusPublish {
                target: &channel,
                to_user: false,
                event: "e",
                payload: Payload::Text(&key),
                except: Vec::new(),
                id: Some(&key),
                keeping: Keeping::default(),
            };
            let (mut position, mut is_cut) = (None, false);
            eventually("it is acknowledged", || {
                position = client.publish_with_receipt(&publish).ok().map(|receipt| receipt.position);
                if position.is_none() {
                    let newest = hub.history(&channel, &Query { limit: 1, newest_first: true, ..Query::default() }).unwrap();
                    is_cut |= newest.publications.first().is_some_and(|newest| newest.body.as_payload() == Payload::Text(&key));
                }
                position.is_some()
            });
            cut.fetch_add(u64::from(is_cut), Ordering::Relaxed);
            log.push((key, Outcome::Acked(position.unwrap())));
        }
        log
    };
    let logs: Vec<_> = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let publish_all = &publish_all;
            let publishers: Vec<_> = (0..PUBLISHERS).map(|publisher| scope.spawn(move || publish_all(publisher))).collect();
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
        })
    });
    let mut ledgers = Vec::new();
    for (publisher, log) in logs.into_iter().enumerate() {
        let mut ledger = Ledger { published: log.into_iter().collect(), ..Ledger::default() };
        ledger.published.insert("end".into(), publish(&hub, &format!("h{publisher}"), "end").0);
        ledgers.push(ledger);
    }
    for (client, follower) in followers.into_iter().enumerate() {
        ledgers[client % PUBLISHERS].clients.push(follower.await.unwrap());
    }
    for (publisher, ledger) in ledgers.iter_mut().enumerate() {
        let history = kept(&hub, &format!("h{publisher}"));
        assert_eq!(history.len(), ledger.published.len(), "h{publisher}, seed {seed}");
        ledger.clients.iter().for_each(|client| assert_whole(client, history.len() as u64));
        ledger.history = Some(history);
        assert_true(ledger, &format!("h{publisher}, seed {seed}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_every_protocol_get_the_same_in_the_same_order() {
    // Case R08, I2 and I6 (2,000 publications at full size): native with either envelope and Pusher, on one channel, some of them above a history and some not.
    const PUBLISHERS: usize = 4;
    let each = sized(500, 2_000) / PUBLISHERS;
    let hub = start(|config| {
        config.apps.push(app());
        config.channels = vec![history("room-kept", 10)];
    });
    for channel in ["room", "room-kept"] {
        let (mut native, mut raw, mut pusher) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            native.push(Client::subscribed(&hub, channel).await);
            raw.push(Client::open(&hub, &format!("/ws/{channel}?envelope=raw")).await);
            pusher.push(PusherClient::subscribed(&hub, channel).await);
        }
        eventually("all listen", || hub.channels().iter().any(|known| known.name == channel && known.subscribers == 9));
        let one = |publisher: usize| {
            let mut log = Vec::new();
            for number in 0..each {
                // The value is a string in JSON and as text.
                let id = format!("{publisher}-{number}");
                let json = Value::from(id.as_str()).to_string();
                let payload = if number % 2 == 0 { Payload::Text(&id) } else { Payload::Json(&json) };
                log.push((hub.publish(&Publish::new(channel, "e", payload)).unwrap().position.offset, id));
            }
            log
        };
        let reading = async {
            let total = each * PUBLISHERS;
            let mut got: Vec<(&str, Vec<String>)> = Vec::new();
            for client in &mut native {
                let mut ids = Vec::new();
                for offset in 1..=total {
                    let message = client.expect("message").await;
                    assert_eq!((&message["offset"], &message["event"]), (&json!(offset), &json!("e")));
                    ids.push(message["data"].as_str().unwrap().to_owned());
                }
                client.expect_nothing().await;
                got.push(("native", ids));
            }
            for client in &mut raw {
                let mut ids = Vec::new();
                for _ in 0..total {
                    // JSON stays JSON.
                    ids.push(id_of(&client.text().await).trim_matches('"').to_owned());
                }
                got.push(("raw", ids));
            }
            for client in &mut pusher {
                let mut ids = Vec::new();
                for _ in 0..total {
                    let message = client.expect("e").await;
                    assert_eq!(message["channel"], channel);
                    ids.push(message["data"].as_str().unwrap().to_owned());
                }
                client.expect_nothing().await;
                got.push(("pusher", ids));
            }
            got
        };
        let (published, got) = std::thread::scope(|scope| {
            let one = &one;
            let publishers: Vec<_> = (0..PUBLISHERS).map(|publisher| scope.spawn(move || one(publisher))).collect();
            let got = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(reading));
            let mut published: Vec<_> = publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect();
            published.sort();
            (published.into_iter().map(|(_, id)| id).collect::<Vec<_>>(), got)
        });
        assert_eq!(got.len(), 9);
        for (protocol, ids) in got {
            assert!(ids == published, "{channel}: a {protocol} client got another sequence");
        }
    }
}

//! Hubs whose Redis is watched by sentinels: the master dies, another server takes its place, and nobody is told a lie.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use realtime_core::bus::client::Client as BusClient;
use realtime_core::{BrokerError, Config, Hub, Payload, Position, Publish, PublishError};
use realtime_testkit::bus::publication;
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::ledger::{ClientLog, Entrance, Ledger, Outcome, assert_true, follow, kept};
use realtime_testkit::publishing::{publish, try_publish};
use realtime_testkit::{Client, DEADLINE, RedisSentinels, eventually, sized};
use serde_json::json;

/// How long a silent server is believed in.
const DOWN_AFTER_MS: u64 = 1_000;
/// One where none is to fail: so long nobody's machine stands still.
const NEVER_DOWN_MS: u64 = 120_000;

fn on(redis: &RedisSentinels, change: impl FnOnce(&mut Config)) -> Hub {
    on_broker(&redis.url(), |config| {
        config.channels = vec![history("h*", 100_000)];
        config.channels[0].history.as_mut().unwrap().bytes = 64 << 20;
        // Answers do not come from servers that are dead or frozen.
        config.broker.patience = 2;
        change(config);
    })
}

fn outcome(result: Result<Position, PublishError>) -> Outcome {
    match result {
        Ok(position) => Outcome::Acked(position),
        Err(error) if error.to_string().contains("may or may not") => Outcome::Unknown,
        Err(_) => Outcome::Refused,
    }
}

/// Followers of `h` on all hubs, and what was published on it meanwhile.
struct Run {
    hubs: [Hub; 2],
    followers: Vec<tokio::task::JoinHandle<ClientLog>>,
    /// The epoch of the newest publication that each has got.
    heard: Vec<Arc<AtomicU64>>,
    published: Mutex<Vec<(String, Outcome)>>,
}

impl Run {
    fn begin(hubs: [Hub; 2], followers: usize) -> Run {
        let entrances: Vec<Entrance> = (0..followers).map(|client| hubs[client % 2].local_addr().into()).collect();
        let heard = entrances.iter().map(|entrance| entrance.heard.clone()).collect();
        let follow = |(client, entrance)| tokio::spawn(async move { follow(entrance, "h", format!("client {client}"), "end").await });
        let followers = entrances.into_iter().enumerate().map(follow).collect();
        let run = Run { followers, heard, hubs, published: Mutex::default() };
        run.wait_for_followers();
        run
    }

    fn wait_for_followers(&self) {
        let there = |hub: &Hub| hub.channels().iter().find(|channel| channel.name == "h").map_or(0, |channel| channel.subscribers);
        eventually("everybody is there", || self.hubs.iter().map(there).sum::<usize>() == self.followers.len());
    }

    fn note(&self, id: String, outcome: Outcome) {
        self.published.lock().unwrap().push((id, outcome));
    }

    fn publish(&self, hub: usize, id: &str) -> Outcome {
        let outcome = outcome(try_publish(&self.hubs[hub], "h", id));
        self.note(id.to_owned(), outcome.clone());
        outcome
    }

    /// Publishes so many, on both hubs in turn; the position of the last that was acknowledged.
    fn publish_many(&self, name: &str, count: usize) -> Option<Position> {
        let sent = (0..count).map(|number| self.publish(number % 2, &format!("{name}-{number}")));
        sent.filter_map(|outcome| if let Outcome::Acked(position) = outcome { Some(position) } else { None }).last()
    }

    /// Publishes until that works again; attempts before have no id that would be known.
    fn wait_for_service(&self) {
        for hub in &self.hubs {
            publish(hub, "other", "back");
        }
    }

    /// Waits until both hubs hear the channel as it is now and all are told, then ends it.
    async fn end(self, may_lose: bool) -> Ledger {
        for (at, hub) in self.hubs.iter().enumerate() {
            let mut number = 0;
            loop {
                let mut client = Client::subscribed(hub, "h").await;
                number += 1;
                let id = format!("heard-{at}-{number}");
                self.note(id.clone(), Outcome::Acked(publish(hub, "h", &id)));
                // Or it was subscribed to what was before, and is told.
                if client.json().await["type"] == "message" {
                    break;
                }
            }
        }
        // Who begins anew behind the end would wait for it in vain.
        let mut number = 0;
        tokio::task::block_in_place(|| {
            eventually("everybody has heard the server that is there now", || {
                number += 1;
                let id = format!("settled-{number}");
                let position = publish(&self.hubs[0], "h", &id);
                self.note(id, Outcome::Acked(position));
                self.heard.iter().all(|heard| heard.load(Ordering::Relaxed) == position.epoch.0)
            });
        });
        self.note("end".into(), Outcome::Acked(publish(&self.hubs[0], "h", "end")));
        let history = Some(kept(&self.hubs[0], "h"));
        let mut ledger = Ledger { history, may_lose, ..Ledger::default() };
        for follower in self.followers {
            ledger.clients.push(follower.await.unwrap());
        }
        ledger.published = self.published.into_inner().unwrap().into_iter().collect();
        ledger
    }
}

fn lost(ledger: &Ledger) -> usize {
    let kept: std::collections::HashSet<&str> = ledger.history.iter().flatten().map(|(_, id)| id.as_str()).collect();
    ledger.published.iter().filter(|(id, outcome)| matches!(outcome, Outcome::Acked(_)) && !kept.contains(id.as_str())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lagged_takes_over_and_nobody_is_told_that_nothing_is_missing() {
    // Case R25 (a lag of 20 MB, 40 MB at full size): I2, I3, I5; what was acknowledged and died with the master is counted (I1 is
    // waived for it).
    let mut redis = RedisSentinels::start(1, DOWN_AFTER_MS, &[]);
    let hubs = [on(&redis, |_| {}), on(&redis, |_| {})];
    let count = sized(300, 6_000);
    let run = Run::begin(hubs, 8);
    let top = tokio::task::block_in_place(|| {
        run.publish_many("before", count);
        redis.catch_up();
        redis.servers[1].freeze(true);
        // More than the sockets between master and replica hold.
        let bulk = "x".repeat(200 << 10);
        for _ in 0..sized(100, 200) {
            run.hubs[0].publish(&Publish::new("bulk", "e", Payload::Text(&bulk))).unwrap();
        }
        let top = run.publish_many("lost", count).unwrap();
        redis.servers[0].kill();
        redis.servers[1].freeze(false);
        redis.taken_over(0);
        run.wait_for_service();
        // The same offsets again, and further ones.
        let again = run.publish_many("after", count + 50).unwrap();
        assert!(again.offset > top.offset && again.epoch != top.epoch, "{again:?} {top:?}");
        top
    });
    // Who comes back from before, whatever it had seen last, begins anew.
    for offset in [0, 1, count as u64 / 2, top.offset, top.offset + 10] {
        let mut client = Client::connect(&run.hubs[1]).await;
        let recover = json!({"epoch": top.epoch.to_string(), "offset": offset});
        let ask = json!({"action": "subscribe", "channel": "h", "recover": recover});
        let mut answer = client.ask(ask.clone()).await;
        if answer["recovered"] == true {
            // The hub has not heard of the new server yet: nothing follows, and it is told.
            assert_eq!(client.expect("unsubscribed").await["code"], "interrupted");
            answer = client.ask(ask).await;
        }
        assert_eq!(answer["recovered"], false, "{offset}: {answer}");
    }
    let ledger = run.end(true).await;
    assert_true(&ledger, "a failover with lag");
    let lost = lost(&ledger);
    eprintln!("{lost} acknowledged publications died with the master");
    assert_eq!(lost, count, "what the replica had was lost, or it did not lag");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replica_has_confirmed_outlives_the_master() {
    // Case R25 with `wait_replicas` and `min-replicas-to-write`: I1–I5, nothing that was acknowledged dies.
    let least = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"];
    let mut redis = RedisSentinels::start(2, DOWN_AFTER_MS, &least);
    let waiting = |config: &mut Config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 200);
    let run = Run::begin([on(&redis, waiting), on(&redis, waiting)], 8);
    let stop = AtomicBool::new(false);
    let [acked, failed] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let publish = |hub: usize| {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let count = if matches!(run.publish(hub, &format!("{hub}-{number}")), Outcome::Acked(_)) { &acked } else { &failed };
            count.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(4));
        }
    };
    let further = |count: &AtomicUsize, further: usize| {
        let until = count.load(Ordering::Relaxed) + further;
        eventually("publishers are answered", || count.load(Ordering::Relaxed) >= until);
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let publish = &publish;
            for hub in [0, 1] {
                scope.spawn(move || publish(hub));
            }
            let rounds = sized(1, 5);
            for _ in 0..rounds {
                further(&acked, 100);
                redis.servers[1..].iter().for_each(|replica| replica.freeze(true));
                further(&failed, 10);
                redis.servers[1..].iter().for_each(|replica| replica.freeze(false));
            }
            further(&acked, 100);
            redis.fail_over();
            further(&acked, 100);
            stop.store(true, Ordering::Relaxed);
        });
    });
    let ledger = run.end(false).await;
    assert_true(&ledger, "a failover behind replicas that confirm");
    let unknown = ledger.published.values().filter(|outcome| **outcome == Outcome::Unknown).count();
    eprintln!("{} acknowledged, {unknown} unknown, none lost", acked.into_inner());
    assert!(unknown > 0, "no publication was without its replica");
}

#[test]
fn what_a_wait_for_replicas_comes_to_is_known_however_little_a_publication_waits_for_room() {
    let redis = RedisSentinels::start(1, NEVER_DOWN_MS, &[]);
    let hub = on(&redis, |config| {
        config.publish_timeout_ms = 0;
        (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 1_200);
    });
    publish(&hub, "h", "1");
    redis.servers[1].freeze(true);
    let mut bus = BusClient::over(hub.open_bus().unwrap()).unwrap();
    bus.answer_within(DEADLINE);
    // On a machine that is busy an answer may be late all the same.
    eventually("the answer is known", || try_publish(&hub, "h", "2").unwrap_err().to_string().contains("0 of 1 replicas"));
    eventually("the answer is known over the bus", || {
        bus.publish_with_receipt(&publication("h", "3")).unwrap_err().to_string().contains("0 of 1 replicas")
    });
    redis.servers[1].freeze(false);
}

#[test]
fn a_publication_that_no_replica_has_in_time_says_so() {
    let redis = RedisSentinels::start(1, NEVER_DOWN_MS, &[]);
    let hub = on(&redis, |config| (config.broker.wait_replicas, config.broker.wait_timeout_ms) = (1, 100));
    let position = try_publish(&hub, "h", "1").unwrap();
    redis.servers[1].freeze(true);
    let refused = try_publish(&hub, "h", "2").unwrap_err();
    let expected = BrokerError::Unconfirmed { replicas: 0, wanted: 1, waited: Duration::from_millis(100) };
    assert!(matches!(&refused, PublishError::Broker(error) if *error == expected), "{refused}");
    assert!(refused.is_retryable());
    assert!(refused.to_string().contains("0 of 1 replicas had it within 100 ms; it may or may not have been accepted"), "{refused}");
    // Asked again under its key it is the same publication, and no more confirmed than before.
    assert!(try_publish(&hub, "h", "2").is_err());
    redis.servers[1].freeze(false);
    assert_eq!(publish(&hub, "h", "2"), Position { offset: position.offset + 1, ..position });
}

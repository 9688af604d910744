//! Connections that break at any byte, and a broker that goes away: the ledger says whether anybody was told a lie.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use realtime_core::config::Secret;
use realtime_core::history::Query;
use realtime_core::{Config, Epoch, Hub, Payload, Publish, PublishError, Receipt};
use realtime_testkit::chaos::{Chaos, Fault};
use realtime_testkit::hub::history;
use realtime_testkit::ledger::{
    ClientLog, Entrance, Ledger, Outcome, Seen, Tally, assert_true, assert_whole, check_accounts, check_resources, follow, kept,
};
use realtime_testkit::mutation::Random;
use realtime_testkit::{Client, DEADLINE, RedisServer, config, eventually, sized, within};

fn publish(hub: &Hub, channel: &str, id: &str) -> Outcome {
    // Its id is its key: what is sent again is the same publication.
    let mut message = Publish::new(channel, "e", Payload::Text(id));
    message.id = Some(id);
    outcome(hub.publish(&message))
}

fn outcome(answer: Result<Receipt, PublishError>) -> Outcome {
    match answer {
        Ok(receipt) => Outcome::Acked(receipt.position),
        Err(error) if error.to_string().contains("may or may not") || error.to_string().contains("no answer") => Outcome::Unknown,
        Err(_) => Outcome::Refused,
    }
}

/// Publishes until it is acknowledged.
fn insist(hub: &Hub, channel: &str, id: &str) -> Outcome {
    let mut outcome = Outcome::Unknown;
    eventually("it is acknowledged", || {
        outcome = publish(hub, channel, id);
        matches!(outcome, Outcome::Acked(_))
    });
    outcome
}

/// So many publications show something.
const ENOUGH: usize = 400;

/// Publishes until told to stop, at a pace that leaves the machine to others; counts what is accepted.
fn publish_on(hub: &Hub, name: usize, stop: &AtomicBool, accepted: &AtomicUsize) -> Vec<(String, Outcome)> {
    let mut log = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{name}-{}", log.len());
        let outcome = publish(hub, "h", &id);
        accepted.fetch_add(usize::from(matches!(outcome, Outcome::Acked(_))), Ordering::Relaxed);
        log.push((id, outcome));
        std::thread::sleep(Duration::from_millis(4));
    }
    log
}

/// Clients behind a proxy that breaks them, at least so often, two publishers on every hub, and what `meanwhile` does. It
/// takes at least so long, and as much longer as a busy machine needs.
async fn run(hubs: &[Hub], seed: u64, clients: usize, (length, breaks): (Duration, u64), meanwhile: impl FnOnce() + Send) -> Ledger {
    let mut proxies = Vec::new();
    for (at, hub) in hubs.iter().enumerate() {
        proxies.push(Chaos::before(hub.local_addr(), seed + at as u64, |random| Fault::some(random, 12_000)).await);
    }
    let followers: Vec<_> = (0..clients)
        .map(|client| {
            let address = proxies[client % proxies.len()].address();
            tokio::spawn(async move { follow(address, "h", format!("client {client}"), "end").await })
        })
        .collect();
    let (stop, accepted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut ledger = Ledger::default();
    let logs: Vec<Vec<(String, Outcome)>> = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..hubs.len() * 2)
                .map(|name| {
                    let (hub, stop, accepted) = (&hubs[name % hubs.len()], &stop, &accepted);
                    scope.spawn(move || publish_on(hub, name, stop, accepted))
                })
                .collect();
            let started = Instant::now();
            meanwhile();
            std::thread::sleep(length.saturating_sub(started.elapsed()));
            eventually("enough has happened", || {
                let broken: u64 = proxies.iter().map(Chaos::broken).sum();
                broken > breaks && accepted.load(Ordering::Relaxed) > ENOUGH
            });
            stop.store(true, Ordering::Relaxed);
            publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect()
        })
    });
    ledger.published = logs.into_iter().flatten().collect();
    proxies.iter().for_each(Chaos::calm);
    ledger.published.insert("end".into(), insist(&hubs[0], "h", "end"));
    for follower in followers {
        ledger.clients.push(follower.await.unwrap());
    }
    ledger.history = Some(kept(&hubs[0], "h"));
    ledger
}

fn assert_told(run: &Ledger, seed: u64) {
    assert_true(run, &format!("seed {seed}"));
    assert!(run.history.as_ref().is_some_and(|history| history.len() > ENOUGH), "seed {seed}: too little was published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_cut_at_any_byte_get_everything() {
    // Case R03: I1–I5, I9, I10, and nobody has to begin anew. At full size 200 clients, each cut every half second or so, 500
    // publications a second for 10 s.
    let seed = 20_261_121;
    let hub = Hub::start(config(|config| config.channels = vec![history("h", 100_000)])).unwrap();
    let (clients, seconds, breaks) = (sized(24, 200), sized(4, 10), sized(100, 1_000));
    let run = run(std::slice::from_ref(&hub), seed, clients, (Duration::from_secs(seconds as u64), breaks as u64), || {}).await;
    assert_told(&run, seed);
    eprintln!("{}", Tally::of(std::slice::from_ref(&run)));
    let top = run.history.as_ref().unwrap().len() as u64;
    for client in &run.clients {
        assert_whole(client, top);
    }
    let acked = run.published.values().filter(|outcome| matches!(outcome, Outcome::Acked(_))).count() as u64;
    assert_eq!(check_accounts(hub.stats().published, acked, 0, run.published.len() as u64), []);
    eventually("all have left", || {
        let stats = hub.stats();
        let now = [("connections", stats.connections), ("subscriptions", stats.subscriptions), ("channels", stats.channels)];
        check_resources(&[("connections", 0), ("subscriptions", 0), ("channels", 0)], &now.map(|(name, count)| (name, count as usize)))
            .is_empty()
    });
}

fn on(server: &RedisServer, change: impl FnOnce(&mut Config)) -> Hub {
    Hub::start(config(|config| {
        config.broker.url = Secret::from(server.url().as_str());
        config.channels = vec![history("h*", 100_000)];
        config.channels[0].history.as_mut().unwrap().bytes = 64 << 20;
        change(config);
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_keep_their_word_while_their_redis_restarts() {
    // Cases R03, R07 and R21 together: AOF with every write on disk, clients cut, the server killed twice: I1–I5.
    let seed = 7;
    let mut server = RedisServer::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    let unfenced = |config: &mut Config| config.broker.fence = false;
    let hubs = [on(&server, unfenced), on(&server, unfenced)];
    let restarts = || {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(1_500));
            server.restart();
        }
    };
    let run = run(&hubs, seed, 16, (Duration::from_secs(6), 0), restarts).await;
    assert_told(&run, seed);
    let epochs: std::collections::HashSet<u64> = run.history.as_ref().unwrap().iter().map(|(position, _)| position.epoch.0).collect();
    assert_eq!(epochs.len(), 1);
}

/// Clients of `h` on two hubs.
struct Followers {
    tasks: Vec<tokio::task::JoinHandle<ClientLog>>,
    /// The epoch of the newest publication that each has got.
    heard: Vec<Arc<AtomicU64>>,
}

impl Followers {
    /// They are there when this returns.
    fn begin(hubs: &[Hub; 2], clients: usize) -> Followers {
        let entrances: Vec<Entrance> =
            (0..clients).map(|client| Entrance { patience: DEADLINE, ..hubs[client % 2].local_addr().into() }).collect();
        let heard = entrances.iter().map(|entrance| entrance.heard.clone()).collect();
        let follow = |(client, entrance)| tokio::spawn(async move { follow(entrance, "h", format!("client {client}"), "end").await });
        let tasks = entrances.into_iter().enumerate().map(follow).collect();
        let there = |hub: &Hub| hub.channels().iter().find(|channel| channel.name == "h").map_or(0, |channel| channel.subscribers);
        tokio::task::block_in_place(|| eventually("all listen", || hubs.iter().map(there).sum::<usize>() == clients));
        Followers { tasks, heard }
    }

    /// Whether all have got something of this epoch. Who begins anew behind the end would wait for it in vain.
    fn have_heard(&self, epoch: Epoch) -> bool {
        self.heard.iter().all(|heard| heard.load(Ordering::Relaxed) == epoch.0)
    }

    /// Ends a run: what was published is in the log, what they saw and what is kept comes to it.
    async fn end(self, hubs: &[Hub; 2], published: Vec<(String, Outcome)>) -> Ledger {
        let mut ledger = Ledger { published: published.into_iter().collect(), ..Ledger::default() };
        ledger.published.insert("end".into(), tokio::task::block_in_place(|| insist(&hubs[1], "h", "end")));
        for follower in self.tasks {
            ledger.clients.push(follower.await.unwrap());
        }
        ledger.history = Some(tokio::task::block_in_place(|| kept(&hubs[1], "h")));
        ledger
    }
}

/// A hub that reaches its Redis through what stands before that.
fn behind(server: &RedisServer, proxy: &Chaos, patience: u32) -> Hub {
    on(server, |config| {
        config.broker.url = Secret::from(format!("redis://{}/0", proxy.address()).as_str());
        config.broker.patience = patience;
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_of_subscriptions_that_falls_silent_is_noticed_and_nothing_is_missing() {
    // Case R23, I1–I5: one hub hears nothing more from Redis, for 5 s and more at full size, while it goes on publishing there.
    let server = RedisServer::start();
    let proxy = Chaos::holding(([127, 0, 0, 1], server.port()).into(), "SUBSCRIBE").await;
    let hubs = [behind(&server, &proxy, 1), on(&server, |_| {})];
    let followers = Followers::begin(&hubs, sized(12, 100));
    let (stop, accepted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let logs = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..4)
                .map(|name| {
                    let (hub, stop, accepted) = (&hubs[name % 2], &stop, &accepted);
                    scope.spawn(move || publish_on(hub, name, stop, accepted))
                })
                .collect();
            eventually("publications flow", || accepted.load(Ordering::Relaxed) > 50);
            let (links, before) = (proxy.known(), accepted.load(Ordering::Relaxed));
            proxy.hold(true);
            // It is to be noticed within 3 s.
            let noticed = within(Duration::from_secs(15), "the silence is noticed, and another link is tried", || proxy.known() > links);
            assert!(accepted.load(Ordering::Relaxed) > before, "publishing has a link of its own");
            std::thread::sleep(Duration::from_secs(sized(0, 5) as u64).saturating_sub(noticed));
            proxy.hold(false);
            eventually("publications flow", || accepted.load(Ordering::Relaxed) > before + ENOUGH);
            stop.store(true, Ordering::Relaxed);
            publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
        })
    });
    let ledger = followers.end(&hubs, logs).await;
    assert_told(&ledger, 0);
    for client in &ledger.clients {
        assert_whole(client, ledger.history.as_ref().unwrap().len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_redis_closes_because_it_is_slow_costs_nobody_anything() {
    // Case R24, I1–I5: a burst of 20,000 at full size, more than Redis keeps for a subscriber that does not read. It ends that
    // connection; what was announced in between is read from the history.
    let server = RedisServer::start();
    let proxy = Chaos::holding(([127, 0, 0, 1], server.port()).into(), "SUBSCRIBE").await;
    // The silence alone is no reason to leave.
    let slow = behind(&server, &proxy, 30);
    eventually("the hub hears", || links(&server).len() == 1);
    let own = links(&server);
    let hubs = [slow, on(&server, |_| {})];
    let followers = Followers::begin(&hubs, sized(12, 100));
    assert_eq!(server.command(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 64kb 0"]), "+OK");
    // More than the sockets in between hold.
    let (publishers, each, padding) = (4, sized(5_000, 20_000) / 4, "x".repeat(sized(4 << 10, 1 << 10)));
    proxy.hold(true);
    let logs = tokio::task::block_in_place(|| {
        let burst = |name: usize| {
            let publish = |number: usize| {
                let id = format!("{name}-{number}");
                let text = format!("{id} {padding}");
                (id, outcome(hubs[name % 2].publish(&Publish::new("h", "e", Payload::Text(&text)))))
            };
            (0..each).map(publish).collect::<Vec<_>>()
        };
        std::thread::scope(|scope| {
            let burst = &burst;
            let publishers: Vec<_> = (0..publishers).map(|name| scope.spawn(move || burst(name))).collect();
            publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect::<Vec<_>>()
        })
    });
    assert!(logs.iter().all(|(_, outcome)| matches!(outcome, Outcome::Acked(_))), "publishing has a link of its own");
    assert!(!links(&server).contains(&own[0]), "Redis has kept all of the burst");
    proxy.hold(false);
    let ledger = followers.end(&hubs, logs).await;
    let tally = Tally::of(std::slice::from_ref(&ledger));
    eprintln!("{tally}");
    assert_told(&ledger, 0);
    for client in &ledger.clients {
        assert_whole(client, ledger.history.as_ref().unwrap().len() as u64);
    }
    // Nobody was told of a hole, since there is none.
    assert_eq!((tally.recovered, tally.anew, hubs[0].stats().interrupted + hubs[1].stats().interrupted), (0, 0, 0));
}

/// The connections on which a Redis announces, by their ids.
fn links(server: &RedisServer) -> Vec<String> {
    let list = server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    list.lines().filter_map(|line| line.split(' ').next()).filter(|id| id.starts_with("id=")).map(str::to_owned).collect()
}

/// How long an error may take while Redis is away, and service once it is back: five times what is promised.
const ERROR_WITHIN: Duration = Duration::from_secs(5);
const SERVICE_WITHIN: Duration = Duration::from_secs(25);

/// Case R21: 500 publications a second on two hubs, and their Redis dies and stays away for 2 s.
async fn outage(options: &[&str], may_lose: bool, change: impl Fn(&mut Config)) -> Ledger {
    let mut server = RedisServer::with(options);
    let hubs = [on(&server, &change), on(&server, &change)];
    let followers = Followers::begin(&hubs, sized(12, 100));
    let (stop, accepted, refused) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 2], AtomicUsize::new(0));
    let one = |name: usize| {
        let (mut log, mut slowest) = (Vec::new(), Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let (id, asked) = (format!("{name}-{}", log.len()), Instant::now());
            let outcome = publish(&hubs[name % 2], "h", &id);
            match outcome {
                Outcome::Acked(_) => drop(accepted[name % 2].fetch_add(1, Ordering::Relaxed)),
                _ => {
                    slowest = slowest.max(asked.elapsed());
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            log.push((id, outcome));
            std::thread::sleep(Duration::from_millis(8));
        }
        (log, slowest)
    };
    let further = |count: usize| {
        let before = [0, 1].map(|hub| accepted[hub].load(Ordering::Relaxed));
        move |accepted: &[AtomicUsize; 2]| [0, 1].into_iter().all(|hub| accepted[hub].load(Ordering::Relaxed) > before[hub] + count)
    };
    let logs = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let one = &one;
            let publishers: Vec<_> = (0..4).map(|name| scope.spawn(move || one(name))).collect();
            let flowing = further(100);
            eventually("publications flow", || flowing(&accepted));
            server.kill();
            let down = Instant::now();
            eventually("publications fail", || refused.load(Ordering::Relaxed) > 100);
            // This is the load.
            std::thread::sleep(Duration::from_secs(2).saturating_sub(down.elapsed()));
            server.restart();
            let down = down.elapsed();
            let back = further(0);
            let took = within(SERVICE_WITHIN, "both hubs publish again", || back(&accepted));
            let flowing = further(100);
            eventually("publications flow", || flowing(&accepted));
            let epoch = hubs[0].history("h", &Query::default()).unwrap().position.epoch;
            eventually("all hear what is published now", || followers.have_heard(epoch));
            stop.store(true, Ordering::Relaxed);
            let (logs, slowest): (Vec<_>, Vec<_>) = publishers.into_iter().map(|publisher| publisher.join().unwrap()).unzip();
            let slowest = slowest.into_iter().max().unwrap();
            assert!(slowest < ERROR_WITHIN, "an error took {slowest:?}");
            eprintln!("down for {down:.1?}; slowest error after {slowest:.1?}; service {took:.1?} after Redis was");
            logs.into_iter().flatten().collect::<Vec<_>>()
        })
    });
    let mut ledger = followers.end(&hubs, logs).await;
    ledger.may_lose = may_lose;
    eprintln!("{}", Tally::of(std::slice::from_ref(&ledger)));
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_away_and_has_kept_everything_costs_nobody_anything() {
    // Case R21 with AOF, I1–I5: errors while it is away, and whoever listens goes on where it was.
    let ledger =
        outage(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"], false, |config| config.broker.fence = false).await;
    assert_true(&ledger, "with AOF");
    for client in &ledger.clients {
        assert_whole(client, ledger.history.as_ref().unwrap().len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_away_and_has_kept_nothing_is_another_epoch_and_no_client_recovers_into_it() {
    // Case R21 without persistence, I2–I5 (I1 is waived: what was acknowledged before is gone, and counted).
    let ledger = outage(&["--save", "", "--appendonly", "no"], true, |_| {}).await;
    assert_true(&ledger, "without persistence");
    let epoch = ledger.history.as_ref().unwrap()[0].0.epoch;
    for client in &ledger.clients {
        let Some(at) = client.seen.iter().position(|seen| matches!(seen, Seen::Subscribed(start, _) if start.epoch == epoch)) else {
            panic!("{} never heard of the new epoch", client.name)
        };
        assert!(at > 0 && client.seen[at - 1] == Seen::Ended, "{} was not told", client.name);
        assert!(matches!(client.seen[at], Seen::Subscribed(_, false)), "{} was told a lie", client.name);
        assert!(client.seen[..at].iter().any(|seen| matches!(seen, Seen::Message(position, _) if position.epoch != epoch)));
    }
    assert!(Tally::of(std::slice::from_ref(&ledger)).lost > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_stands_still_the_hub_does_not_and_nothing_is_published_twice() {
    // Case R22 (SIGSTOP for 3 s and more at full size, twice): I1 with those of which nobody knows, no publication twice without a retry, one of all retries with a key;
    // clients are answered meanwhile.
    let server = RedisServer::start();
    let hub = on(&server, |config| config.broker.patience = 1);
    // It comes again when nothing has come for a while: as long as Redis stands still nobody is let onto a channel.
    let address = hub.local_addr();
    let follower = tokio::spawn(async move { follow(address, "h", "client".into(), "end").await });
    // Whoever comes for the first time behind the end waits for it in vain.
    tokio::task::block_in_place(|| eventually("the follower is there", || hub.stats().subscriptions == 1));
    let mut present = Client::connect(&hub).await;
    let (stop, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    let without_key = |name: usize| {
        let mut log = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let id = format!("once-{name}-{}", log.len());
            let outcome = outcome(hub.publish(&Publish::new("h", "e", Payload::Text(&id))));
            failed.fetch_add(usize::from(!matches!(outcome, Outcome::Acked(_))), Ordering::Relaxed);
            log.push((id, outcome));
            std::thread::sleep(Duration::from_millis(2));
        }
        log
    };
    let with_key = |name: usize| {
        let mut log = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let id = format!("{name}-{}", log.len());
            let outcome = insist(&hub, "h", &id);
            log.push((id, outcome));
        }
        log
    };
    let (stop, failed) = (&stop, &failed);
    let mut ledger = Ledger::default();
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        ledger.published.insert("first".into(), insist(&hub, "h", "first"));
        std::thread::scope(|scope| {
            let (once, again) = (&without_key, &with_key);
            let publishers: Vec<_> = (0..8).map(|name| scope.spawn(move || if name % 2 == 0 { once(name) } else { again(name) })).collect();
            for round in 1..=2 {
                server.freeze(true);
                let frozen = Instant::now();
                eventually("publications fail", || failed.load(Ordering::Relaxed) >= round * 8);
                // Three pings and their answers, each within a second.
                let answered = runtime.block_on(tokio::time::timeout(Duration::from_secs(15), present.expect_nothing()));
                assert!(answered.is_ok(), "pings are not answered");
                std::thread::sleep(Duration::from_secs(sized(0, 3) as u64).saturating_sub(frozen.elapsed()));
                server.freeze(false);
                let id = format!("again-{round}");
                let outcome = insist(&hub, "h", &id);
                ledger.published.insert(id, outcome);
            }
            stop.store(true, Ordering::Relaxed);
            ledger.published.extend(publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()));
        });
        ledger.published.insert("end".into(), insist(&hub, "h", "end"));
    });
    ledger.clients.push(follower.await.unwrap());
    ledger.history = Some(kept(&hub, "h"));
    assert_true(&ledger, "a server that stands still");
}

/// What is published in all, each second.
const RATE: usize = 1_000;
const THREADS: usize = 16;

/// Publishes one thread's share until `enough` publications have been accepted and `stop` says so; its log names channels.
fn share(hub: &Hub, thread: usize, channels: usize, accepted: &AtomicUsize, stop: &AtomicBool) -> Vec<(usize, String, Outcome)> {
    let pause = Duration::from_secs(1) * THREADS as u32 / RATE as u32;
    let (mut log, mut due) = (Vec::new(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let (channel, id) = ((thread + log.len() * THREADS) % channels, format!("{thread}-{}", log.len()));
        let outcome = publish(hub, &format!("h{channel}"), &id);
        accepted.fetch_add(usize::from(matches!(outcome, Outcome::Acked(_))), Ordering::Relaxed);
        log.push((channel, id, outcome));
        // Who has fallen behind does not make up for it: that would be a flood after each restart.
        due = (due + pause).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_many_channels_and_nothing_missing() {
    // The load for which this is built, I1–I5. At full size: 1,000 subscribers of 50 channels on two hubs, 1,000 publications a
    // second in all for 60 s, a random client cut every 100 ms, Redis (with AOF) killed and started again twice.
    let (clients, channels, seconds) = (sized(60, 1_000), sized(6, 50), sized(4, 60));
    let seed = 11;
    let mut server = RedisServer::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    let unfenced = |config: &mut Config| config.broker.fence = false;
    let hubs = [on(&server, unfenced), on(&server, unfenced)];
    let mut proxies = Vec::new();
    for (at, hub) in hubs.iter().enumerate() {
        proxies.push(Chaos::before(hub.local_addr(), seed + at as u64, |_| Fault::None).await);
    }
    let followers: Vec<_> = (0..clients)
        .map(|client| {
            let (address, channel) = (proxies[client % 2].address(), client / 2 % channels);
            tokio::spawn(async move { (channel, follow(address, &format!("h{channel}"), format!("client {client}"), "end").await) })
        })
        .collect();
    let there = || {
        hubs.iter()
            .flat_map(|hub| hub.channels())
            .filter(|channel| channel.name.starts_with('h'))
            .map(|channel| channel.subscribers)
            .sum::<usize>()
    };
    let (stop, accepted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut ledgers = vec![Ledger::default(); channels];
    let (begun, cuts) = tokio::task::block_in_place(|| {
        eventually("all listen", || there() == clients);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let publishers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (hub, accepted, stop) = (&hubs[thread % 2], &accepted, &stop);
                    scope.spawn(move || share(hub, thread, channels, accepted, stop))
                })
                .collect();
            let (mut random, mut cuts, mut restarts) = (Random::new(seed), 0, 0);
            let enough = seconds * RATE;
            let mut last = (Instant::now(), 0);
            while accepted.load(Ordering::Relaxed) < enough || cuts < seconds * 10 {
                std::thread::sleep(Duration::from_millis(100));
                cuts += usize::from(proxies[cuts % 2].cut(&mut random));
                let done = accepted.load(Ordering::Relaxed);
                if restarts < 2 && done > enough * (restarts + 1) / 3 {
                    server.restart();
                    restarts += 1;
                }
                if done > last.1 {
                    last = (Instant::now(), done);
                }
                assert!(last.0.elapsed() < DEADLINE, "nothing is accepted any more, after {done}");
            }
            assert_eq!(restarts, 2);
            stop.store(true, Ordering::Relaxed);
            for (channel, id, outcome) in publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()) {
                ledgers[channel].published.insert(id, outcome);
            }
            (begun, cuts)
        })
    });
    let lasted = begun.elapsed();
    for (channel, ledger) in ledgers.iter_mut().enumerate() {
        let name = format!("h{channel}");
        ledger.published.insert("end".into(), insist(&hubs[channel % 2], &name, "end"));
    }
    for follower in followers {
        let (channel, log) = follower.await.unwrap();
        ledgers[channel].clients.push(log);
    }
    for (channel, ledger) in ledgers.iter_mut().enumerate() {
        ledger.history = Some(kept(&hubs[0], &format!("h{channel}")));
    }
    let (tally, broken) = (Tally::of(&ledgers), proxies.iter().map(Chaos::broken).sum::<u64>());
    eprintln!(
        "2 hubs, {clients} subscribers of {channels} channels, {lasted:.1?}, 2 restarts of Redis, {cuts} cuts ({broken} connections broken)"
    );
    eprintln!("{tally}");
    for (channel, ledger) in ledgers.iter().enumerate() {
        assert_true(ledger, &format!("h{channel}, seed {seed}"));
        assert_eq!(ledger.clients.len(), clients / channels, "h{channel}");
        for client in &ledger.clients {
            assert_whole(client, ledger.history.as_ref().unwrap().len() as u64);
        }
    }
    assert!(tally.acked >= seconds * RATE && tally.recovered > 0, "{tally}");
    assert_eq!((tally.lost, tally.anew, tally.violations), (0, 0, 0));
}

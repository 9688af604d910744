//! Connections that break at any byte, and a broker that goes away: the ledger says whether anybody was told a lie.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use realtime_core::config::Secret;
use realtime_core::history::Query;
use realtime_core::{Config, Hub, Payload, Position, Publish};
use realtime_testkit::chaos::{Chaos, Fault};
use realtime_testkit::hub::history;
use realtime_testkit::ledger::{ClientLog, Ledger, Outcome, Seen, check, check_accounts, check_resources, follow};
use realtime_testkit::{RedisServer, config, eventually};

fn publish(hub: &Hub, id: &str) -> Outcome {
    // Its id is its key: what is sent again is the same publication.
    let mut message = Publish::new("h", "e", Payload::Text(id));
    message.id = Some(id);
    match hub.publish(&message) {
        Ok(receipt) => Outcome::Acked(receipt.position),
        Err(error) if error.to_string().contains("may or may not") || error.to_string().contains("no answer") => Outcome::Unknown,
        Err(_) => Outcome::Refused,
    }
}

/// All that is kept, in parts.
fn kept(hub: &Hub) -> Vec<(Position, String)> {
    let mut kept: Vec<(Position, String)> = Vec::new();
    loop {
        let since = kept.last().map(|(position, _)| *position);
        let mut page = None;
        // A server that is late is asked again.
        eventually("the history is read", || {
            page = hub.history("h", &Query { since, limit: 1_000, ..Query::default() }).ok();
            page.is_some()
        });
        let page = page.unwrap();
        kept.extend(page.publications.iter().map(|publication| match publication.body.as_payload() {
            Payload::Text(id) => (publication.position, id.to_owned()),
            other => panic!("not what was published: {other:?}"),
        }));
        if !page.more {
            return kept;
        }
    }
}

/// So many publications show something.
const ENOUGH: usize = 400;

/// Publishes until told to stop, at a pace that leaves the machine to others; counts what is accepted.
fn publish_on(hub: &Hub, name: usize, stop: &AtomicBool, accepted: &AtomicUsize) -> Vec<(String, Outcome)> {
    let mut log = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let id = format!("{name}-{}", log.len());
        let outcome = publish(hub, &id);
        accepted.fetch_add(usize::from(matches!(outcome, Outcome::Acked(_))), Ordering::Relaxed);
        log.push((id, outcome));
        std::thread::sleep(Duration::from_millis(4));
    }
    log
}

fn some_fault(random: &mut realtime_testkit::mutation::Random) -> Fault {
    let bytes = 200 + random.below(12_000);
    match random.below(8) {
        0 => Fault::HalfClose(bytes),
        1 => Fault::Blackhole(bytes),
        2 => Fault::Delay(2),
        3 => Fault::Throttle(64),
        _ => Fault::Reset(bytes),
    }
}

/// Clients behind a proxy that breaks them, at least so often, two publishers on every hub, and what `meanwhile` does. It
/// takes at least so long, and as much longer as a busy machine needs.
async fn run(hubs: &[Hub], seed: u64, clients: usize, (length, breaks): (Duration, u64), meanwhile: impl FnOnce() + Send) -> Ledger {
    let mut proxies = Vec::new();
    for (at, hub) in hubs.iter().enumerate() {
        proxies.push(Chaos::before(hub.local_addr(), seed + at as u64, some_fault).await);
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
    let mut end = Outcome::Refused;
    eventually("the end is published", || {
        end = publish(&hubs[0], "end");
        matches!(end, Outcome::Acked(_))
    });
    ledger.published.insert("end".into(), end);
    for follower in followers {
        ledger.clients.push(follower.await.unwrap());
    }
    ledger.history = Some(kept(&hubs[0]));
    ledger
}

fn assert_true(run: &Ledger, seed: u64) {
    let violations = check(run);
    let shown: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
    assert!(violations.is_empty(), "seed {seed}: {} violations\n{}", violations.len(), shown.join("\n"));
    assert!(run.history.as_ref().is_some_and(|history| history.len() > ENOUGH), "seed {seed}: too little was published");
    assert!(run.clients.iter().all(|client| client.stayed), "seed {seed}: somebody has not come to the end");
}

/// Every publication since a client first came is in its log.
fn assert_whole(client: &ClientLog, top: u64) {
    let Some(Seen::Subscribed(first, _)) = client.seen.first() else { panic!("{} never subscribed", client.name) };
    let got = client.seen.iter().filter(|seen| matches!(seen, Seen::Message(..))).count() as u64;
    assert_eq!(got, top - first.offset, "{}", client.name);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_cut_at_any_byte_get_everything() {
    // Case R03: I1–I5, I9, I10, and nobody has to begin anew.
    let seed = 20_261_121;
    let hub = Hub::start(config(|config| config.channels = vec![history("h", 100_000)])).unwrap();
    let run = run(std::slice::from_ref(&hub), seed, 24, (Duration::from_secs(4), 20), || {}).await;
    assert_true(&run, seed);
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
        config.channels = vec![history("h", 100_000)];
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
    assert_true(&run, seed);
    let epochs: std::collections::HashSet<u64> = run.history.as_ref().unwrap().iter().map(|(position, _)| position.epoch.0).collect();
    assert_eq!(epochs.len(), 1);
}

//! Everybody comes back at once: with tokens nobody else is needed, with callbacks the application is not run over.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use application::{Application, token};
use realtime_core::config::{AuthMode, AuthModes};
use realtime_core::{Config, Hub, Payload, Publish};
use realtime_testkit::chaos::{Chaos, Fault};
use realtime_testkit::hub::history;
use realtime_testkit::ledger::{Entrance, Ledger, Outcome, Seen, assert_true, assert_whole, check_resources, follow, kept};
use realtime_testkit::{DEADLINE, eventually, sized, start};
use serde_json::json;

fn hub(mode: AuthMode, change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.auth.mode = Some(AuthModes::One(mode));
        config.auth.jwt.secret = application::SECRET.into();
        config.channels = vec![history("h", 100_000)];
        change(config);
    })
}

fn publish(hub: &Hub, ledger: &mut Ledger, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        let receipt = hub.publish(&Publish::new("h", "e", Payload::Text(&id))).unwrap();
        ledger.published.insert(id, Outcome::Acked(receipt.position));
    }
}

/// How long all may take to be back: five times what is promised, with tokens and with callbacks.
const WITH_TOKENS: Duration = Duration::from_secs(50);
const WITH_CALLBACKS: Duration = Duration::from_secs(150);

/// Clients come, are cut all in one instant, three times, and come back while something is published: all of it is for all
/// of them. `enter` says how one of them comes in.
async fn storm(hub: &Hub, clients: usize, longest: Duration, enter: impl Fn(usize, Entrance) -> Entrance) {
    let proxy = Chaos::before(hub.local_addr(), 5, |_| Fault::None).await;
    let followers: Vec<_> = (0..clients)
        .map(|client| {
            let entrance = enter(client, Entrance { patience: DEADLINE, ..proxy.address().into() });
            tokio::spawn(async move { follow(entrance, "h", format!("client {client}"), "end").await })
        })
        .collect();
    let mut ledger = Ledger::default();
    let all_there = || {
        let begun = Instant::now();
        while !hub.channels().iter().any(|channel| channel.name == "h" && channel.subscribers == clients) {
            assert!(begun.elapsed() < longest, "not all are back: {:?}", hub.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    tokio::task::block_in_place(|| {
        all_there();
        for round in 0..3 {
            publish(hub, &mut ledger, (0..20).map(|number| format!("{round}-{number}")));
            let closed = hub.stats().closed;
            assert!(proxy.cut_all() >= clients);
            publish(hub, &mut ledger, (20..40).map(|number| format!("{round}-{number}")));
            eventually("all were cut", || hub.stats().closed >= closed + clients as u64);
            all_there();
        }
        publish(hub, &mut ledger, ["end".to_owned()]);
    });
    for follower in followers {
        ledger.clients.push(follower.await.unwrap());
    }
    ledger.history = Some(kept(hub, "h"));
    assert_true(&ledger, "a storm");
    for client in &ledger.clients {
        assert_whole(client, 121);
        let begun = client.seen.iter().filter(|seen| matches!(seen, Seen::Subscribed(..))).count();
        // Of three times: one that comes while its answer is on the way is not seen.
        assert!(begun >= 2, "{} was not cut", client.name);
        assert!(client.seen.iter().skip(1).all(|seen| !matches!(seen, Seen::Subscribed(_, false))), "{} began anew", client.name);
    }
    let now = hub.stats();
    assert_eq!((now.panics, now.closed_slow), (0, 0));
    eventually("all have left", || {
        let stats = hub.stats();
        let left = [("connections", stats.connections as usize), ("channels", stats.channels as usize)];
        check_resources(&[("connections", 0), ("channels", 0)], &left).is_empty()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_back_with_their_tokens_and_miss_nothing() {
    // Case R14, I1–I3 for all and I9; 2,000 clients at full size.
    let hub = hub(AuthMode::Jwt, |_| {});
    storm(&hub, sized(200, 2_000), WITH_TOKENS, |client, entrance| Entrance {
        path: format!("/ws?token={}", token(&format!("u{client}"))),
        ..entrance
    })
    .await;
    assert_eq!(hub.stats().refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_back_though_the_application_is_asked_about_each() {
    // Case R14 with callbacks, I1–I3 for all and I9: never more of them than are allowed, whoever finds no place in the queue comes again.
    let application = Application::answering(|asked| async move {
        tokio::task::yield_now().await;
        (200, json!({"user_id": asked.cookie("user")}).to_string())
    })
    .await;
    let (cap, clients) = (4, sized(200, 2_000));
    let hub = hub(AuthMode::Callback, |config| {
        let callback = &mut config.auth.callback;
        callback.url = application.url();
        (callback.max_in_flight, callback.max_queue) = (cap, clients / 4);
    });
    storm(&hub, clients, WITH_CALLBACKS, |client, entrance| Entrance { cookie: format!("user=u{client}"), ..entrance }).await;
    assert!(application.count() >= clients * 4, "{}", application.count());
    let most = application.most_at_once.load(Ordering::SeqCst);
    assert!((1..=cap).contains(&most), "{most} at once");
}

//! What happens, posted to the application: in order, signed, again until it is accepted.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::sync::Arc;

use application::{Application, Asked};
use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use realtime_core::config::{ChannelPolicy, HooksWebhookConfig};
use realtime_core::hooks::Kind;
use realtime_core::{Config, Hub, User};
use realtime_testkit::{Client, eventually, on_time, start};
use serde_json::Value;
use sha2::Sha256;
use tokio::sync::{Mutex, Notify, Semaphore};

const SECRET: &str = "a secret of at least 32 bytes, as text";

/// An application that keeps what it accepts, and answers when the test lets it.
struct Kept {
    application: Application,
    accepted: Arc<Mutex<Vec<Asked>>>,
    may_answer: Arc<Semaphore>,
    more: Arc<Notify>,
}

impl Kept {
    /// Answers with these statuses, and then with 204.
    async fn answering(statuses: &[u16]) -> Kept {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (may_answer, more) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let statuses = Arc::new(Mutex::new(statuses.to_vec()));
        let (keep, permits, told) = (accepted.clone(), may_answer.clone(), more.clone());
        let application = Application::answering(move |asked| {
            let (keep, permits, told, statuses) = (keep.clone(), permits.clone(), told.clone(), statuses.clone());
            async move {
                permits.acquire().await.unwrap().forget();
                let mut statuses = statuses.lock().await;
                let status = if statuses.is_empty() { 204 } else { statuses.remove(0) };
                keep.lock().await.push(asked);
                told.notify_one();
                (status, String::new())
            }
        })
        .await;
        Kept { application, accepted, may_answer, more }
    }

    fn hub(&self, change: impl FnOnce(&mut Config)) -> Hub {
        let url = self.application.url();
        start(|config| {
            let events = vec![Kind::Joined, Kind::Left, Kind::Message];
            config.hooks.webhooks = vec![HooksWebhookConfig { url, events, secret: SECRET.into(), ..HooksWebhookConfig::default() }];
            change(config);
        })
    }

    /// Lets requests be answered, and waits until so many events are there.
    async fn events(&self, count: usize) -> Vec<Value> {
        self.may_answer.add_permits(1000);
        on_time("events", async {
            loop {
                let events: Vec<Value> =
                    self.accepted.lock().await.iter().flat_map(|asked| body(asked)["events"].as_array().unwrap().clone()).collect();
                if events.len() >= count {
                    return events;
                }
                self.more.notified().await;
            }
        })
        .await
    }
}

fn body(asked: &Asked) -> Value {
    serde_json::from_str(&asked.body).unwrap()
}

/// As the specification has it, with a secret that is no base64.
fn signature(asked: &Asked) -> String {
    let (id, time) = (asked.header("webhook-id"), asked.header("webhook-timestamp"));
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(format!("{id}.{time}.{}", asked.body));
    format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
}

async fn say(client: &mut Client, number: usize) {
    client.send_json(serde_json::json!({"action": "message", "event": "said", "data": number})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_posted_again_and_nothing_overtakes_it() {
    let kept = Kept::answering(&[500, 302]).await;
    let hub = kept.hub(|_| {});
    let mut client = Client::connect_to(&hub, "/ws").await;
    hub.set_user(client.socket_id(), Some(User::new("ada", None).unwrap())).unwrap();
    for number in 0..250 {
        say(&mut client, number).await;
    }
    let events = kept.events(250).await;
    let accepted = kept.accepted.lock().await;
    assert_eq!(accepted[0].body, accepted[1].body, "the same again");
    assert_eq!(accepted[1].body, accepted[2].body);
    assert_eq!(accepted[0].header("webhook-id"), accepted[2].header("webhook-id"));
    let once: Vec<&Value> =
        events.iter().enumerate().filter(|(at, event)| !events[..*at].contains(event)).map(|(_, event)| event).collect();
    drop(accepted);
    // The first request came three times; behind it everything once.
    let events = kept.events(250 + events.len() - once.len()).await;
    let accepted = kept.accepted.lock().await;
    let first = body(&accepted[0])["events"].as_array().unwrap().len();
    let numbers: Vec<u64> = events[2 * first..].iter().map(|event| event["data"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..250).collect::<Vec<_>>());
    for asked in accepted.iter() {
        let events = body(asked)["events"].as_array().unwrap().clone();
        assert!(asked.head.starts_with("POST /auth ") && (1..=100).contains(&events.len()), "{}", asked.head);
        assert_eq!(
            (asked.header("webhook-signature"), asked.header("webhook-id")),
            (&*signature(asked), events[0]["id"].as_str().unwrap())
        );
        assert_eq!((&events[0]["kind"], &events[0]["user_id"]), (&"message".into(), &"ada".into()));
    }
    let ids: std::collections::HashSet<_> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 250, "each has an id of its own");
    assert_eq!(hub.stats().events_dropped, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_is_counted_and_told() {
    for (count, dropped) in [(3, 0), (4, 0), (5, 1)] {
        let kept = Kept::answering(&[]).await;
        let hub = kept.hub(|config| config.hooks.queue = 3);
        let mut client = Client::connect_to(&hub, "/ws").await;
        say(&mut client, 0).await;
        // The first is on its way; three more may wait.
        eventually("the first request", || kept.application.count() == 1);
        for number in 1..count {
            say(&mut client, number).await;
        }
        client.ask(serde_json::json!({"action": "ping"})).await;
        assert_eq!(hub.stats().events_dropped, dropped, "{count}");
        let events = kept.events(count - dropped as usize).await;
        let told: u64 = kept.accepted.lock().await.iter().map(|asked| body(asked)["dropped"].as_u64().unwrap()).sum();
        assert_eq!((events.len() as u64, told), (count as u64 - dropped, dropped), "{count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_asked_for_is_posted() {
    let kept = Kept::answering(&[]).await;
    let hub =
        kept.hub(|config| config.channels = vec![ChannelPolicy { pattern: "room".into(), presence: true, ..ChannelPolicy::default() }]);
    let mut client = Client::connect_to(&hub, "/ws").await;
    hub.set_user(client.socket_id(), Some(User::new("ada", None).unwrap())).unwrap();
    client.subscribe("room").await;
    say(&mut client, 7).await;
    let events = kept.events(2).await;
    let seen: Vec<_> = events.iter().map(|event| (event["kind"].as_str().unwrap(), event["channel"].as_str())).collect();
    assert_eq!(seen, [("joined", Some("room")), ("message", None)]);
}

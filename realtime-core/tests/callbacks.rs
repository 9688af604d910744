//! Connections and subscriptions that the application decides about, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use application::{Application, Asked, now_ms, token};
use realtime_core::auth::signature;
use realtime_core::config::{Access, AppConfig, AuthMode, AuthModes, ChannelPolicy};
use realtime_core::{Config, Hub, Payload, Publish, User};
use realtime_testkit::client::{Client, Received};
use realtime_testkit::hub::start;
use realtime_testkit::wait::{DEADLINE, eventually, on_time, sized};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

fn hub(application: &Application, change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Callback));
        config.auth.callback.url = application.url();
        change(config);
    })
}

/// Names the user that the cookie `user` names.
async fn echo_user(asked: Asked) -> (u16, String) {
    match asked.cookie("user") {
        "" => (401, "who?".into()),
        user => (200, json!({"user_id": user}).to_string()),
    }
}

/// Opens a connection as a page of the hub's host does.
async fn open(hub: &Hub, path: &str, cookie: &str) -> Result<(Client, Value), (u16, String)> {
    let origin = format!("http://{}", hub.local_addr());
    let mut client = Client::request(hub, path, &[("origin", &origin), ("cookie", cookie)]).await.unwrap();
    match client.next().await {
        Received::Text(text) => Ok((client, serde_json::from_str(&text).unwrap())),
        Received::Closed { code, reason } => Err((code, reason)),
        other => panic!("{other:?}"),
    }
}

async fn refused(hub: &Hub, cookie: &str) -> (u16, String) {
    match open(hub, "/ws", cookie).await {
        Ok((_, greeting)) => panic!("let in: {greeting}"),
        Err(refused) => refused,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_sees_the_request_and_says_whose_it_is() {
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let application = {
        let seen = seen.clone();
        Application::answering(move |asked: Asked| {
            *seen.lock() = Some(asked);
            async { (200, r#"{"id":"user-123","user_info":{"name":"Ann"},"channels":["news"]}"#.into()) }
        })
        .await
    };
    let hub = hub(&application, |config| config.auth.callback.query = vec!["ticket".into()]);
    let (mut client, greeting) = open(&hub, "/ws/news?ticket=t1&other=x", "sid=s1; theme=dark").await.unwrap();
    assert_eq!(greeting["user_id"], "user-123");
    client.expect("subscribed").await;
    let asked = seen.lock().take().unwrap();
    assert!(asked.head.starts_with("GET /auth?ticket=t1 HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("cookie"), "sid=s1; theme=dark");
    assert_eq!(asked.header("x-realtime-path"), "/ws/news");
    assert_eq!(asked.header("x-realtime-app"), "default");
    assert_eq!(asked.header("x-forwarded-for"), "127.0.0.1");
    assert_eq!(asked.header("x-forwarded-host"), hub.local_addr().to_string());
    for absent in ["upgrade", "sec-websocket-key", "accept-encoding"] {
        assert_eq!(asked.header(absent), "", "{absent}");
    }
    assert_eq!(hub.channel_users("news").unwrap()[0].user, User::new("user-123", Some(r#"{"name":"Ann"}"#)).unwrap());
    client.send_json(json!({"action": "subscribe", "channel": "other"})).await;
    client.expect_error("unauthorized").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_a_clear_yes_is_a_no() {
    const BIG: usize = 64 << 10;
    let application = Application::serving(|asked, mut stream, _| {
        Box::pin(async move {
            let with = |status: &str, more: &str, body: &str| {
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n{body}", body.len())
            };
            let id = r#"{"user_id":"ada"}"#;
            let padded = |bytes: usize| format!("{}{id}", " ".repeat(bytes - id.len()));
            let answer = match asked.cookie("case") {
                "redirect" => with("302 Found", "Location: http://169.254.169.254/\r\n", id),
                "forbidden" => with("403 Forbidden", "", id),
                "broken" => with("500 Internal Server Error", "", id),
                "many" => with("429 Too Many Requests", "", id),
                "empty" => with("204 No Content", "", ""),
                "page" => with("200 OK", "", "<b>Warning</b>: something"),
                "packed" => with("200 OK", "Content-Encoding: gzip\r\n", id),
                "garbage" => "what is HTTP?\r\n\r\n".into(),
                "split" => "HTTP/1.1 200 OK\r\nX: a\rb\0c\r\n\r\n".into(),
                "cut" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"user_id\"".into(),
                "long head" => format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(32 << 10)),
                "nonce" => with("200 OK", "X-Realtime-Nonce: 0000000000000000\r\n", id),
                "limit-1" => with("200 OK", "", &padded(BIG - 1)),
                "limit" => with("200 OK", "", &padded(BIG)),
                "limit+1" => with("200 OK", "", &padded(BIG + 1)),
                "endless" => {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await);
                    while stream.write_all(&[b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat()).await.is_ok() {}
                    return;
                }
                "dribble" => {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await);
                    while stream.write_all(b" ").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    return;
                }
                "echo" => with("200 OK", &format!("X-Realtime-Nonce: {}\r\n", asked.header("x-realtime-nonce")), id),
                other => panic!("{other}"),
            };
            drop(stream.write_all(answer.as_bytes()).await);
        })
    })
    .await;
    let hub = hub(&application, |config| config.auth.callback.max_in_flight = 64);
    let impatient = self::hub(&application, |config| config.auth.callback.timeout_ms = 300);
    for (case, code) in [
        ("redirect", 4009),
        ("forbidden", 4009),
        ("empty", 4009),
        ("page", 4009),
        ("broken", 4101),
        ("many", 4101),
        ("packed", 4101),
        ("garbage", 4101),
        ("split", 4101),
        ("cut", 4101),
        ("long head", 4101),
        ("nonce", 4101),
        ("limit+1", 4101),
        ("endless", 4101),
    ] {
        let (got, reason) = refused(&hub, &format!("case={case}")).await;
        assert_eq!(got, code, "{case}: {reason}");
    }
    for case in ["echo", "limit-1", "limit"] {
        assert!(open(&hub, "/ws", &format!("case={case}")).await.is_ok(), "{case}");
    }
    let nobody = self::hub(&application, |config| config.auth.callback.url = "http://127.0.0.1:1/".into());
    assert_eq!(refused(&nobody, "case=echo").await.0, 4101);
    assert_eq!(application.count(), 17);
    assert_eq!(refused(&impatient, "case=dribble").await, (4101, "the application did not answer within 300 ms".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_count_only_with_an_origin_that_may_connect() {
    let application = Application::answering(echo_user).await;
    let hub = hub(&application, |_| {});
    let mut client = Client::request(&hub, "/ws", &[("cookie", "user=ada")]).await.unwrap();
    assert_eq!(client.closed().await, (4009, "a request with cookies and without an `Origin` is not trusted".into()));
    let evil = Client::request(&hub, "/ws", &[("cookie", "user=ada"), ("origin", "http://evil.test")]).await.err().unwrap();
    assert_eq!((evil.status, evil.code.as_str()), (403, "origin_not_allowed"));
    assert_eq!(refused(&hub, "").await, (4009, "no credential was given".into()));
    assert_eq!(application.count(), 0, "nobody was asked");
    assert!(open(&hub, "/ws", "user=ada").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_credential_goes_to_the_next_mode_and_a_refused_one_does_not() {
    let application = Application::answering(echo_user).await;
    let both = |modes: [AuthMode; 2]| {
        hub(&application, |config| {
            config.auth.mode = Some(AuthModes::Many(modes.into()));
            config.auth.jwt.secret = application::SECRET.into();
        })
    };
    let with_token = format!("/ws?token={}", token("eve"));
    for modes in [[AuthMode::Callback, AuthMode::Jwt], [AuthMode::Jwt, AuthMode::Callback]] {
        let hub = both(modes);
        assert_eq!(open(&hub, "/ws", "user=ada").await.unwrap().1["user_id"], "ada", "{modes:?}");
        assert_eq!(Client::request(&hub, &with_token, &[]).await.unwrap().expect("connected").await["user_id"], "eve", "{modes:?}");
        // Nothing at all: by the command, later.
        assert_eq!(Client::request(&hub, "/ws", &[]).await.unwrap().expect("connected").await.get("user_id"), None, "{modes:?}");
    }
    assert_eq!(open(&both([AuthMode::Callback, AuthMode::Jwt]), &with_token, "sid=none").await.err().unwrap().0, 4009);
    assert_eq!(open(&both([AuthMode::Jwt, AuthMode::Callback]), "/ws?token=bad", "user=ada").await.err().unwrap().0, 4009);
}

/// Answers when told to.
async fn gated<F>(gate: &Arc<Semaphore>, answer: impl Fn(Asked) -> F + Send + Sync + 'static) -> Application
where
    F: Future<Output = (u16, String)> + Send + 'static,
{
    let gate = gate.clone();
    Application::answering(move |asked| {
        let (gate, answer) = (gate.clone(), answer(asked));
        async move {
            gate.acquire().await.unwrap().forget();
            answer.await
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_and_in_the_queue_are_bounded() {
    let gate = Arc::new(Semaphore::new(0));
    let application = gated(&gate, echo_user).await;
    let hub = hub(&application, |config| {
        let callback = &mut config.auth.callback;
        (callback.max_in_flight, callback.max_queue, callback.timeout_ms) = (2, 3, 60_000);
    });
    let mut waiting = Vec::new();
    for at in 0..5 {
        let asking = hub.clone();
        let greeting = async move { open(&asking, "/ws", &format!("user=u{at}")).await.map(|(_, greeting)| greeting["user_id"].clone()) };
        waiting.push(tokio::spawn(greeting));
        let expected = ((at + 1).min(2), (at + 1u64).saturating_sub(2));
        eventually("it is asked or queued", || {
            let stats = hub.stats();
            (stats.callbacks, stats.callbacks_queued) == expected
        });
    }
    assert_eq!(refused(&hub, "user=last").await, (4101, "3 requests wait for the application, and that is the limit".into()));
    gate.add_permits(100);
    for (at, answer) in waiting.into_iter().enumerate() {
        assert_eq!(on_time("an answer", answer).await.unwrap(), Ok(json!(format!("u{at}"))));
    }
    assert_eq!(application.most_at_once.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_has_one_request_under_way_and_does_not_hold_up_others() {
    let gate = Arc::new(Semaphore::new(0));
    let (slow, fast) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let application = Application::answering(move |asked: Asked| {
        let (slow, fast) = (slow.clone(), fast.clone());
        async move {
            if asked.cookie("user") == "slow" {
                slow.acquire().await.unwrap().forget();
                assert_eq!(fast.fetch_add(1, Ordering::SeqCst), 0, "two of a session at once");
                tokio::task::yield_now().await;
                fast.fetch_sub(1, Ordering::SeqCst);
            }
            echo_user(asked).await
        }
    })
    .await;
    let hub = hub(&application, |config| (config.auth.callback.max_in_flight, config.auth.callback.timeout_ms) = (2, 60_000));
    let tabs: Vec<_> = (0..10)
        .map(|_| {
            let hub = hub.clone();
            tokio::spawn(async move { open(&hub, "/ws", "user=slow").await.is_ok() })
        })
        .collect();
    on_time("the first tab is asked about", async {
        while application.count() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for at in 0..20 {
        assert!(open(&hub, "/ws", &format!("user=u{at}")).await.is_ok());
    }
    assert_eq!(application.count(), 21);
    gate.add_permits(10);
    for tab in tabs {
        assert!(on_time("a tab", tab).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_too_late_lets_nobody_in_and_holds_its_place_until_then() {
    let gate = Arc::new(Semaphore::new(0));
    let application = gated(&gate, echo_user).await;
    let hub = hub(&application, |config| (config.auth.callback.max_in_flight, config.auth.callback.timeout_ms) = (1, 200));
    while application.count() == 0 {
        // On a busy machine that time may be over before it was asked.
        assert_eq!(refused(&hub, "user=ada").await, (4101, "the application did not answer within 200 ms".into()));
    }
    // The worker is still busy with the first.
    assert_eq!(refused(&hub, "user=bob").await.0, 4101);
    assert_eq!(application.count(), 1);
    gate.add_permits(100);
    eventually("the first is done with", || application.under_way.load(Ordering::SeqCst) == 0);
    let begun = std::time::Instant::now();
    let greeting = loop {
        match open(&hub, "/ws", "user=eve").await {
            Ok((_, greeting)) => break greeting,
            Err(refused) => assert!(refused.0 == 4101 && begun.elapsed() < DEADLINE, "{refused:?}"),
        }
    };
    assert_eq!(greeting["user_id"], "eve");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_anothers_answer_when_clients_give_up() {
    let application = Application::answering(|asked| async move {
        // Answers cross each other.
        for _ in 0..now_ms() % 7 {
            tokio::task::yield_now().await;
        }
        echo_user(asked).await
    })
    .await;
    let hub = hub(&application, |config| config.auth.callback.timeout_ms = 60_000);
    let clients: Vec<_> = (0..8usize)
        .map(|lane| {
            let hub = hub.clone();
            tokio::spawn(async move {
                for at in 0..125usize {
                    let user = format!("u{lane}-{at}");
                    let path_and_cookie = format!("user={user}");
                    let opening = open(&hub, "/ws", &path_and_cookie);
                    if at % 10 == 9 {
                        // Gives up at some point on the way.
                        drop(tokio::time::timeout(Duration::from_micros(200 * at as u64), opening).await);
                    } else {
                        assert_eq!(opening.await.unwrap().1["user_id"], json!(user));
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert!(application.most_at_once.load(Ordering::SeqCst) <= 4);
}

// Channels

fn asks(pattern: &str) -> ChannelPolicy {
    ChannelPolicy { pattern: pattern.into(), access: Some(Access::Callback), ..ChannelPolicy::default() }
}

fn channel_hub(application: &Application, change: impl FnOnce(&mut Config)) -> Hub {
    start(|config| {
        config.auth.callback.url = application.url();
        config.channels = vec![asks("ask-*")];
        change(config);
    })
}

async fn subscribe(client: &mut Client, channel: &str) -> Value {
    client.ask(json!({"action": "subscribe", "channel": channel, "id": channel})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_decides_about_a_channel() {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let application = {
        let seen = seen.clone();
        Application::answering(move |asked: Asked| {
            seen.lock().push(asked.clone());
            async move {
                let question: Value = serde_json::from_str(&asked.body).unwrap();
                match question["channel"].as_str().unwrap() {
                    "ask-yes" => (200, r#"{"allowed":true}"#.into()),
                    "ask-no" => (200, r#"{"allowed":false}"#.into()),
                    "ask-vague" => (200, r#"{"allowed":"true"}"#.into()),
                    "ask-empty" => (200, String::new()),
                    "ask-forbidden" => (403, r#"{"allowed":true}"#.into()),
                    _ => (500, r#"{"allowed":true}"#.into()),
                }
            }
        })
        .await
    };
    let hub = channel_hub(&application, |config| {
        config.apps = vec![AppConfig { name: "default".into(), key: "k".into(), secret: "s".into(), ..AppConfig::default() }];
    });
    let mut client = Client::connect(&hub).await;
    assert!(hub.set_user(client.socket_id(), Some(User::new("ada", Some(r#"{"a":1}"#)).unwrap())).unwrap());
    assert_eq!(subscribe(&mut client, "ask-yes").await["type"], "subscribed");
    assert_eq!(subscribe(&mut client, "plain").await["type"], "subscribed");
    for (channel, code) in [
        ("ask-no", "unauthorized"),
        ("ask-vague", "unauthorized"),
        ("ask-empty", "unauthorized"),
        ("ask-forbidden", "unauthorized"),
        ("ask-broken", "unavailable"),
    ] {
        let answer = subscribe(&mut client, channel).await;
        assert_eq!((&answer["code"], &answer["id"]), (&json!(code), &json!(channel)), "{answer}");
    }
    let first = seen.lock()[0].clone();
    assert!(first.head.starts_with("POST /auth HTTP/1.1"), "{}", first.head);
    assert_eq!((first.header("x-realtime-key"), first.header("content-type")), ("k", "application/json"));
    assert!(signature::verify("s", &first.body, first.header("x-realtime-signature")));
    let question: Value = serde_json::from_str(&first.body).unwrap();
    let expected = json!({
        "app": "default", "channel": "ask-yes", "socket_id": client.socket_id().to_string(), "user_id": "ada", "user_info": {"a": 1},
    });
    assert_eq!(question, expected);
    hub.publish(&Publish::new("ask-yes", "e", Payload::Text("x"))).unwrap();
    client.expect("message").await;
    assert_eq!(hub.stats().subscriptions, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_remembered_as_long_as_it_allows() {
    let application = Application::answering(|asked: Asked| async move {
        let question: Value = serde_json::from_str(&asked.body).unwrap();
        let kept = if question["channel"] == "ask-kept" { 60_000 } else { 0 };
        (200, json!({"allowed": question["user_id"] != "bob", "cache_ms": kept}).to_string())
    })
    .await;
    let hub = channel_hub(&application, |_| {});
    let connect = async |user: &str| {
        let client = Client::connect(&hub).await;
        assert!(hub.set_user(client.socket_id(), Some(User::new(user, None).unwrap())).unwrap());
        client
    };
    let again = async |client: &mut Client, channel: &str, expected: &str| {
        for _ in 0..3 {
            assert_eq!(subscribe(client, channel).await["type"], expected);
            if expected == "subscribed" {
                client.ask(json!({"action": "unsubscribe", "channel": channel})).await;
            }
        }
    };
    let mut ada = connect("ada").await;
    again(&mut ada, "ask-kept", "subscribed").await;
    assert_eq!(application.count(), 1);
    again(&mut ada, "ask-fresh", "subscribed").await;
    assert_eq!(application.count(), 4);
    let mut bob = connect("bob").await;
    again(&mut bob, "ask-kept", "error").await;
    assert_eq!(application.count(), 5, "another user's answer is not his");
    // Who is thrown out is asked about anew.
    hub.disconnect_user("ada", 4009, "").unwrap();
    let mut ada = connect("ada").await;
    again(&mut ada, "ask-kept", "subscribed").await;
    assert_eq!(application.count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_waits_stops_nobody_and_can_be_taken_back() {
    let gate = Arc::new(Semaphore::new(0));
    let application = gated(&gate, |_| async { (200, r#"{"allowed":true}"#.into()) }).await;
    let hub = channel_hub(&application, |config| {
        config.auth.callback.timeout_ms = 60_000;
        config.limits.max_subscriptions = 6;
    });
    let mut client = Client::connect(&hub).await;
    let mut other = Client::connect(&hub).await;
    for at in 0..6 {
        client.send_json(json!({"action": "subscribe", "channel": format!("ask-{at}")})).await;
    }
    client.send_json(json!({"action": "subscribe", "channel": "ask-6"})).await;
    client.expect_error("too_many_subscriptions").await;
    other.subscribe("plain").await;
    eventually("as many are asked about as one connection may have", || application.count() == 4);
    assert_eq!(client.ask(json!({"action": "unsubscribe", "channel": "ask-0"})).await["type"], "unsubscribed");
    assert_eq!(client.ask(json!({"action": "unsubscribe", "channel": "ask-0"})).await["code"], "not_subscribed");
    assert!(!hub.move_connection(client.socket_id(), 0).unwrap() || !hub.move_connection(client.socket_id(), 1).unwrap(), "it stays");
    gate.add_permits(100);
    let mut subscribed = Vec::new();
    for _ in 1..6 {
        subscribed.push(client.expect("subscribed").await["channel"].as_str().unwrap().to_owned());
    }
    subscribed.sort();
    assert_eq!(subscribed, ["ask-1", "ask-2", "ask-3", "ask-4", "ask-5"]);
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_changes_hands_while_the_application_thinks_does_not_get_in() {
    let gate = Arc::new(Semaphore::new(0));
    let application = gated(&gate, |_| async { (200, r#"{"allowed":true}"#.into()) }).await;
    let hub = channel_hub(&application, |config| config.auth.callback.timeout_ms = 60_000);
    let mut client = Client::connect(&hub).await;
    client.send_json(json!({"action": "subscribe", "channel": "ask-a"})).await;
    eventually("the application is asked", || application.count() == 1);
    assert!(hub.set_user(client.socket_id(), Some(User::new("bob", None).unwrap())).unwrap());
    client.expect_error("unauthorized").await;
    gate.add_permits(1);
    eventually("it has answered", || application.under_way.load(Ordering::SeqCst) == 0);
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_renewed_while_the_application_thinks_counts() {
    let gate = Arc::new(Semaphore::new(0));
    let application = gated(&gate, |_| async { (200, r#"{"allowed":true}"#.into()) }).await;
    let hub = channel_hub(&application, |config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
        config.auth.callback.timeout_ms = 60_000;
    });
    let with = |channels: Value| application::sign(&json!({"sub": "ada", "exp": now_ms() / 1000 + 60, "channels": channels}));
    let mut client = Client::connect_to(&hub, &format!("/ws?token={}", with(json!(["ask-*"])))).await;
    for channel in ["ask-a", "ask-b"] {
        client.send_json(json!({"action": "subscribe", "channel": channel, "id": channel})).await;
    }
    eventually("the application is asked", || application.count() == 2);
    client.send_json(json!({"action": "auth", "token": with(json!(["ask-b"]))})).await;
    assert_eq!(client.expect_error("unauthorized").await["id"], "ask-a");
    client.expect("authenticated").await;
    gate.add_permits(2);
    assert_eq!(client.expect("subscribed").await["channel"], "ask-b");
    eventually("it has answered", || application.under_way.load(Ordering::SeqCst) == 0);
    client.expect_nothing().await;
    assert_eq!(hub.stats().subscriptions, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_fails_closed_when_nobody_answers() {
    let application = gated(&Arc::new(Semaphore::new(0)), |_| async { (200, r#"{"allowed":true}"#.into()) }).await;
    let hub = channel_hub(&application, |config| config.auth.callback.timeout_ms = 100);
    let mut client = Client::connect(&hub).await;
    let answer = subscribe(&mut client, "ask-a").await;
    assert_eq!((&answer["code"], &answer["id"]), (&json!("unavailable"), &json!("ask-a")));
    assert_eq!(hub.stats().subscriptions, 0);
}

/// Asks for these channels at once; how many of them it may hear.
async fn flood(client: &mut Client, channels: std::ops::Range<usize>) -> usize {
    for at in channels.clone() {
        client.send_json(json!({"action": "subscribe", "channel": format!("ask-{at}")})).await;
    }
    let mut subscribed = 0;
    for _ in channels {
        let answer = client.json().await;
        match answer["type"].as_str().unwrap() {
            "subscribed" => subscribed += 1,
            _ => assert_eq!(answer["code"], "too_many_subscriptions"),
        }
    }
    subscribed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_subscriptions_asks_no_more_than_the_cap() {
    let application = Application::answering(|_| async { (200, r#"{"allowed":true}"#.into()) }).await;
    let hub = channel_hub(&application, |config| {
        config.limits.max_subscriptions = 64;
        config.auth.callback.timeout_ms = 60_000;
        // The first one reads nothing while the others are there.
        config.heartbeat.ping_interval_ms = 3_600_000;
    });
    let mut flooder = Client::connect(&hub).await;
    let asked = sized(300, 100_000);
    let mut subscribed = 0;
    // Read as it goes: who does not is closed for that.
    for part in 0..asked / 100 {
        subscribed += flood(&mut flooder, part * 100..part * 100 + 100).await;
    }
    assert_eq!((subscribed, hub.stats().subscriptions), (64, 64));
    for others in 1..=sized(5, 1_000) {
        let mut client = Client::connect(&hub).await;
        assert_eq!(flood(&mut client, 0..128).await, 64, "client {others}");
        client.reset();
    }
    eventually("the others are gone", || hub.stats().subscriptions == 64);
    assert!(application.most_at_once.load(Ordering::SeqCst) <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_asks_needs_somebody_to_ask() {
    let config = Config { channels: vec![asks("x")], ..Config::default() };
    assert!(config.validate().unwrap_err().to_string().contains("auth.callback"));
}

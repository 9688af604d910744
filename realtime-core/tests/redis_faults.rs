//! What goes wrong between a broker and its Redis, seen from the way between them: everybody is answered, and nobody is told
//! what is not so.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use realtime_core::broker::redis::Redis;
use realtime_core::broker::redis::publisher::{Publisher, PublisherOptions};
use realtime_core::broker::{Broker, Deliver, Reply};
use realtime_core::config::{BrokerConfig, ChannelPolicy, Secret};
use realtime_core::history::Query;
use realtime_core::{BrokerError, Hub, Payload, Position, Publish, User};
use realtime_testkit::hub::{history, on_broker};
use realtime_testkit::publishing::{publish, try_publish};
use realtime_testkit::way::{Fate, Part, way_to};
use realtime_testkit::{Client, DEADLINE, RedisCluster, RedisServer, eventually};
use serde_json::json;

/// What a broker has handed on. One text panics, the first time that it comes.
#[derive(Default)]
struct Heard {
    texts: Mutex<Vec<String>>,
    interrupted: Mutex<Vec<String>>,
    has_panicked: AtomicBool,
}

const PANICS: &str = "panics";

impl Deliver for Heard {
    fn deliver(&self, publish: &Publish<'_>, _position: Position) -> usize {
        let Payload::Text(text) = publish.payload else { return 0 };
        assert!(text != PANICS || self.has_panicked.swap(true, Ordering::Relaxed), "as the test wants it");
        self.texts.lock().unwrap().push(text.to_owned());
        1
    }

    fn interrupted(&self, channel: &str, _position: Position) {
        self.interrupted.lock().unwrap().push(channel.to_owned());
    }
}

impl Heard {
    fn has(&self, text: &str) -> bool {
        self.texts.lock().unwrap().iter().any(|heard| heard == text)
    }
}

fn broker(port: u16) -> (Redis, Arc<Heard>) {
    broker_at(&format!("redis://127.0.0.1:{port}/0"))
}

fn broker_at(url: &str) -> (Redis, Arc<Heard>) {
    let broker = Redis::new(&BrokerConfig { url: Secret::from(url), patience: 30, ..BrokerConfig::default() }).unwrap();
    let heard = Arc::new(Heard::default());
    broker.start(heard.clone()).unwrap();
    (broker, heard)
}

/// The answer, which there has to be.
fn answer<T>(reply: Reply<T>) -> Result<T, BrokerError> {
    match reply {
        Reply::Now(answer) => answer,
        Reply::Later(promise) => promise.wait(DEADLINE).expect("an answer"),
    }
}

fn subscribe(broker: &Redis, channel: &str) -> Position {
    let mut position = None;
    eventually("it is subscribed", || {
        position = answer(broker.subscribe(channel)).ok();
        position.is_some()
    });
    position.unwrap()
}

fn say(broker: &Redis, channel: &str, text: &str) -> Result<Position, BrokerError> {
    answer(broker.publish(&Publish::new(channel, "e", Payload::Text(text)))).map(|published| published.position)
}

/// Something that is waited for on one thread and happens on another.
#[derive(Default)]
struct Event(Mutex<bool>, Condvar);

impl Event {
    fn happens(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn has_happened(&self) -> bool {
        *self.0.lock().unwrap()
    }

    fn wait(&self) {
        let (happened, late) = self.1.wait_timeout_while(self.0.lock().unwrap(), DEADLINE, |happened| !*happened).unwrap();
        assert!(*happened, "{late:?}");
    }
}

#[test]
fn names_that_somebody_made_up_are_soon_forgotten_unless_somebody_stays() {
    let server = RedisServer::start();
    let (broker, heard) = broker(server.port());
    let life = |channel: &str| -> i64 {
        let life = server.command(&["PTTL", &format!("realtime:{{{channel}}}:meta")]);
        life.trim_start_matches(':').parse().unwrap()
    };
    let minutes = 1..=600_000;
    let before = subscribe(&broker, "stays");
    assert!(before.offset == 0 && minutes.contains(&life("stays")), "{}", life("stays"));
    answer(broker.read("read", &realtime_core::history::Range::default())).unwrap();
    assert!(minutes.contains(&life("read")), "{}", life("read"));
    // Whose hub looks from time to time has it live on, in the same epoch.
    server.command(&["PEXPIRE", "realtime:{stays}:meta", "120000"]);
    eventually("the hub has looked", || life("stays") > 120_000);
    assert_eq!(say(&broker, "stays", "first").unwrap(), Position { offset: 1, ..before });
    eventually("it is heard", || heard.has("first"));
    assert!(life("stays") > 600_000 && heard.interrupted.lock().unwrap().is_empty());
    answer(broker.read("stays", &realtime_core::history::Range::default())).unwrap();
    assert!(life("stays") > 600_000);
    // Once it is forgotten nobody is told that nothing is missing.
    let before = subscribe(&broker, "forgotten");
    server.command(&["DEL", "realtime:{forgotten}:meta"]);
    assert_ne!(say(&broker, "forgotten", "first").unwrap().epoch, before.epoch);
    eventually("it is told", || heard.interrupted.lock().unwrap().iter().any(|channel| channel == "forgotten"));
    broker.stop();
}

#[test]
fn a_panic_on_the_brokers_thread_costs_what_was_under_way_and_no_more() {
    let server = RedisServer::start();
    panics_and_goes_on(&server.url());
    let cluster = RedisCluster::start(3, false, 30_000);
    panics_and_goes_on(&cluster.url());
}

fn panics_and_goes_on(url: &str) {
    let (broker, heard) = broker_at(url);
    subscribe(&broker, "c");
    let replies: Vec<_> = ["1", PANICS, "2"].map(|text| broker.publish(&Publish::new("c", "e", Payload::Text(text)))).into();
    // Some with an error, which says that nobody knows.
    for reply in replies {
        if let Err(error) = answer(reply) {
            assert!(error.to_string().contains("may or may not"), "{error}");
        }
    }
    eventually("it has begun anew", || broker.failures() == 1 && broker.is_ready());
    subscribe(&broker, "d");
    eventually("it publishes", || say(&broker, "d", "3").is_ok());
    eventually("both are heard", || say(&broker, "c", "4").is_ok() && heard.has("3") && heard.has("4"));
    assert_eq!(broker.failures(), 1);
    broker.stop();
    assert!(matches!(answer(broker.subscribe("e")), Err(BrokerError::Stopped)));
    assert!(matches!(answer(broker.subscribe("e")), Err(BrokerError::Stopped)), "nobody waits for what will not come");
}

/// Subscribes to a channel while it hands on what comes, and panics, once.
#[derive(Default)]
struct Subscriber {
    broker: Mutex<Weak<Redis>>,
    reply: Mutex<Option<Reply<Position>>>,
}

impl Deliver for Subscriber {
    fn deliver(&self, _publish: &Publish<'_>, _position: Position) -> usize {
        let broker = std::mem::take(&mut *self.broker.lock().unwrap()).upgrade().expect("what is published comes once");
        *self.reply.lock().unwrap() = Some(broker.subscribe("refused"));
        drop(broker);
        panic!("as the test wants it")
    }

    fn interrupted(&self, _channel: &str, _position: Position) {}
}

#[test]
fn what_a_panic_has_refused_is_not_heard() {
    let cluster = RedisCluster::start(1, false, 30_000);
    let url = Secret::from(cluster.url().as_str());
    let broker = Arc::new(Redis::new(&BrokerConfig { url, patience: 30, ..BrokerConfig::default() }).unwrap());
    let subscriber = Arc::new(Subscriber { broker: Mutex::new(Arc::downgrade(&broker)), ..Subscriber::default() });
    broker.start(subscriber.clone()).unwrap();
    subscribe(&broker, "c");
    drop(answer(broker.publish(&Publish::new("c", "e", Payload::Text("x")))));
    eventually("it has begun anew", || broker.failures() == 1 && broker.is_ready());
    let reply = subscriber.reply.lock().unwrap().take().expect("it has subscribed");
    assert!(answer(reply).unwrap_err().to_string().contains("may or may not"));
    // What was asked for before has been asked for by then.
    subscribe(&broker, "d");
    let script = "return table.concat(redis.call('PUBSUB', 'SHARDCHANNELS'), ' ')";
    let heard = cluster.nodes[0].command(&["EVAL", script, "0"]);
    assert!(heard.contains("{d}") && !heard.contains("{refused}"), "{heard}");
    broker.stop();
}

#[test]
fn where_a_channel_stands_is_asked_once_it_is_heard() {
    // One that is subscribed to while the link of subscriptions comes back: what is published before it is heard was before it.
    let server = RedisServer::start();
    let (is_back, may_go_on) = (Arc::new(Event::default()), Arc::new(Event::default()));
    let (comes, may_come) = (Arc::new(Event::default()), Arc::new(Event::default()));
    let armed = Arc::new(AtomicBool::new(false));
    let judge = {
        let (armed, is_back, may_go_on, comes, may_come) =
            (armed.clone(), is_back.clone(), may_go_on.clone(), comes.clone(), may_come.clone());
        move |part: Part<'_>| {
            if armed.load(Ordering::Relaxed) {
                if part.is_answer && part.has("subscribe") && part.has("{old}") {
                    is_back.happens();
                    may_go_on.wait();
                } else if !part.is_answer && part.has("SUBSCRIBE") && part.has("{new}") {
                    comes.happens();
                    may_come.wait();
                }
            }
            Fate::Passes
        }
    };
    let (broker, _) = broker(way_to(server.port(), judge));
    let (other, _) = self::broker(server.port());
    subscribe(&broker, "old");
    eventually("the other one publishes", || say(&other, "warm-up", "x").is_ok());
    armed.store(true, Ordering::Relaxed);
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    is_back.wait();
    let reply = broker.subscribe("new");
    may_go_on.happens();
    comes.wait();
    let published = say(&other, "new", "before it is heard").unwrap();
    may_come.happens();
    assert_eq!(answer(reply).unwrap(), published);
    broker.stop();
    other.stop();
}

/// Ends a connection that asks for the new channel with this word: the first one, or all.
fn ends_at(word: &'static str, always: bool) -> (Arc<AtomicBool>, impl Fn(Part<'_>) -> Fate + Send + Sync + 'static) {
    let armed = Arc::new(AtomicBool::new(false));
    let is_armed = armed.clone();
    let judge = move |part: Part<'_>| {
        let is_it = !part.is_answer && part.has(word) && part.has("{new}");
        if is_it && if always { is_armed.load(Ordering::Relaxed) } else { is_armed.swap(false, Ordering::Relaxed) } {
            return Fate::Ends;
        }
        Fate::Passes
    };
    (armed, judge)
}

/// A cluster of one master behind a way.
fn cluster_behind(judge: impl Fn(Part<'_>) -> Fate + Send + Sync + 'static) -> (RedisCluster, String) {
    let cluster = RedisCluster::start(1, false, 30_000);
    let port = way_to(cluster.nodes[0].port(), judge).to_string();
    assert_eq!(cluster.nodes[0].command(&["CONFIG", "SET", "cluster-announce-port", &port]), "+OK");
    (cluster, format!("redis+cluster://127.0.0.1:{port}"))
}

fn goes_on_over_the_next_line(url: &str, armed: &AtomicBool) {
    let (broker, heard) = broker_at(url);
    subscribe(&broker, "old");
    armed.store(true, Ordering::Relaxed);
    answer(broker.subscribe("new")).unwrap();
    assert!(!armed.load(Ordering::Relaxed), "a line has ended");
    for channel in ["old", "new"] {
        eventually("it is published", || say(&broker, channel, channel).is_ok());
        eventually("it is heard", || heard.has(channel));
    }
    broker.stop();
}

#[test]
fn who_subscribes_as_a_line_ends_is_heard_over_the_next_one() {
    let server = RedisServer::start();
    for word in ["SUBSCRIBE", "EVALSHA"] {
        let (armed, judge) = ends_at(word, false);
        goes_on_over_the_next_line(&format!("redis://127.0.0.1:{}/0", way_to(server.port(), judge)), &armed);
        let (armed, judge) = ends_at(word, false);
        let (_cluster, url) = cluster_behind(judge);
        goes_on_over_the_next_line(&url, &armed);
    }
}

#[test]
fn who_subscribes_and_has_every_line_end_is_refused() {
    let server = RedisServer::start();
    for word in ["SUBSCRIBE", "EVALSHA"] {
        let (armed, judge) = ends_at(word, true);
        let (_cluster, url) = cluster_behind(judge);
        let (alone, judge) = ends_at(word, true);
        for (url, armed) in [(url, armed), (format!("redis://127.0.0.1:{}/0", way_to(server.port(), judge)), alone)] {
            let (broker, heard) = broker_at(&url);
            subscribe(&broker, "old");
            armed.store(true, Ordering::Relaxed);
            let error = answer(broker.subscribe("new")).unwrap_err();
            assert!(matches!(error, BrokerError::Unavailable { .. }), "{error}");
            // The others are heard, as before.
            eventually("it is published and heard", || say(&broker, "old", "x").is_ok() && heard.has("x"));
            broker.stop();
        }
    }
}

#[test]
fn where_a_channel_stands_is_not_what_was_asked_before_its_line_ended() {
    let server = RedisServer::start();
    let (is_asked, may_answer) = (Arc::new(Event::default()), Arc::new(Event::default()));
    let is_heard_again = Arc::new(Event::default());
    let armed = Arc::new(AtomicBool::new(false));
    let judge = {
        let (is_asked, may_answer, is_heard_again, armed) = (is_asked.clone(), may_answer.clone(), is_heard_again.clone(), armed.clone());
        move |part: Part<'_>| {
            if !part.is_answer && part.has("EVALSHA") && part.has("{new}") && armed.swap(false, Ordering::Relaxed) {
                // The server has answered before anything else happens; who asked hears it late.
                is_asked.happens();
            } else if part.is_answer && part.bytes.starts_with(b"*5") && part.has("$16") && is_asked.has_happened() {
                may_answer.wait();
            } else if part.is_answer && part.has("subscribe") && part.has("{new}") && is_asked.has_happened() {
                is_heard_again.happens();
            }
            Fate::Passes
        }
    };
    let (broker, _) = broker(way_to(server.port(), judge));
    let (other, _) = self::broker(server.port());
    subscribe(&broker, "old");
    eventually("the other one publishes", || say(&other, "warm-up", "x").is_ok());
    armed.store(true, Ordering::Relaxed);
    let reply = broker.subscribe("new");
    is_asked.wait();
    eventually("the server has answered", || server.command(&["EXISTS", "realtime:{new}:meta"]) == ":1");
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let published = say(&other, "new", "while nobody hears").unwrap();
    is_heard_again.wait();
    may_answer.happens();
    assert_eq!(answer(reply).unwrap(), published);
    broker.stop();
    other.stop();
}

#[test]
fn connections_with_redis_are_kept_alive_or_end() {
    // Without a root's rights nothing can vanish; the system says whether it would look.
    let server = RedisServer::start();
    let hub = on_broker(&server.url(), |_| {});
    let mut publisher = Publisher::new(PublisherOptions::new(Secret::from(server.url().as_str()))).unwrap();
    eventually("the publisher is connected", || publisher.reach().is_ok());
    let to_server = format!(":{:04X}", server.port());
    let mut timers = Vec::new();
    // Two of the hub, one of the publisher; what was just sent has another timer until it is acknowledged.
    eventually("each is looked after", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let established = columns.filter(|columns| columns[2].ends_with(&to_server) && columns[3] == "01");
        timers = established.map(|columns| columns[5][..2].to_owned()).collect();
        timers == ["02", "02", "02"]
    });
    drop(hub);
}

#[test]
fn a_script_that_is_forgotten_by_a_server_that_then_stands_still_is_an_error_and_no_more() {
    let server = RedisServer::start();
    let (forgets, is_away) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let judge = {
        let (forgets, is_away) = (forgets.clone(), is_away.clone());
        move |part: Part<'_>| {
            // What comes behind the refusal is lost, like the answer of a server that stands still.
            if is_away.load(Ordering::Relaxed) {
                return Fate::IsLost;
            }
            if forgets.load(Ordering::Relaxed) && part.is_answer && part.has("NOSCRIPT") {
                is_away.store(true, Ordering::Relaxed);
            }
            Fate::Passes
        }
    };
    let url = format!("redis://127.0.0.1:{}/0", way_to(server.port(), judge));
    let hub = on_broker(&url, |config| {
        config.channels = vec![history("h*", 100)];
        // The answer does not come, and that is what is tested.
        config.broker.patience = 2;
    });
    assert_eq!(publish(&hub, "h", "1").offset, 1);
    forgets.store(true, Ordering::Relaxed);
    server.command(&["SCRIPT", "FLUSH"]);
    let refused = try_publish(&hub, "h", "2").unwrap_err();
    assert!(refused.to_string().contains("redis") && refused.is_retryable(), "{refused}");
    forgets.store(false, Ordering::Relaxed);
    is_away.store(false, Ordering::Relaxed);
    assert_eq!(publish(&hub, "h", "2").offset, 2);
    assert_eq!(hub.history("h", &Query::default()).unwrap().publications.len(), 2);
}

#[test]
fn a_channel_whose_subscription_is_refused_gives_its_topic_back() {
    let server = RedisServer::start();
    let rights = ["on", ">p", "~realtime:{kept}:*", "~realtime:hubs", "&*", "+@all"];
    assert_eq!(server.command(&[&["ACL", "SETUSER", "app"], &rights[..]].concat()), "+OK");
    let (broker, _) = broker_at(&format!("redis://app:p@127.0.0.1:{}/0", server.port()));
    subscribe(&broker, "kept");
    let is_heard = |channel: &str| server.command(&["PUBSUB", "CHANNELS", &format!("realtime:{{{channel}}}:live")]) == "*1";
    // It may be heard, and where it stands cannot be asked.
    let error = answer(broker.subscribe("refused")).unwrap_err();
    assert!(error.to_string().contains("NOPERM"), "{error}");
    eventually("it is not heard any more", || !is_heard("refused"));
    assert!(is_heard("kept"));
    assert_eq!(server.command(&["ACL", "SETUSER", "app", "allkeys"]), "+OK");
    subscribe(&broker, "refused");
    assert!(is_heard("refused"));
    broker.stop();
}

/// A hub whose rooms show who is there, through a way on which announcements of that get lost once told to; with `outage` nothing
/// is carried out any more then. Whole parts get lost, so nothing else may be said with an announcement: see [`nobody_in`].
fn hub_that_misses(server: &RedisServer, lost: &Arc<AtomicBool>, outage: &Arc<AtomicBool>) -> Hub {
    let (lost, outage) = (lost.clone(), outage.clone());
    let has_missed = AtomicBool::new(false);
    let judge = move |part: Part<'_>| {
        if lost.load(Ordering::Relaxed) && part.is_answer && part.has("message") && part.has(":who") {
            has_missed.store(true, Ordering::Relaxed);
            return Fate::IsLost;
        }
        // The answer of what was announced passes, nothing is asked behind it.
        if outage.load(Ordering::Relaxed) && has_missed.load(Ordering::Relaxed) && !part.is_answer && part.has("EVALSHA") {
            return Fate::Ends;
        }
        Fate::Passes
    };
    on_broker(&format!("redis://127.0.0.1:{}/0", way_to(server.port(), judge)), |config| {
        config.channels = vec![ChannelPolicy { pattern: "room*".into(), presence: true, ..ChannelPolicy::default() }];
        config.presence_grace_ms = 0;
        // Far longer than anybody waits here.
        config.broker.presence_ttl_ms = 600_000;
    })
}

/// Somebody without a name is in the room, so that its topics are heard and nothing has to be confirmed when others come.
async fn nobody_in(hub: &Hub, room: &str) -> Client {
    Client::subscribed(hub, room).await
}

async fn ada(hub: &Hub) -> Client {
    let client = Client::connect(hub).await;
    eventually("the user's own channel is heard", || hub.set_user(client.socket_id(), Some(User::new("ada", None).unwrap())).unwrap());
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_and_is_not_heard_of_is_looked_for() {
    let server = RedisServer::start();
    let (lost, outage) = (Arc::default(), Arc::default());
    let hub = hub_that_misses(&server, &lost, &outage);
    let _nobody = nobody_in(&hub, "room").await;
    let mut client = ada(&hub).await;
    lost.store(true, Ordering::Relaxed);
    let answer = client.ask(json!({"action": "subscribe", "channel": "room"})).await;
    assert_eq!(answer["users"][0]["id"], "ada", "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_in_an_outage_is_not_kept_waiting_for_its_end() {
    let server = RedisServer::start();
    let (lost, outage) = (Arc::default(), Arc::default());
    let hub = hub_that_misses(&server, &lost, &outage);
    let _nobody = nobody_in(&hub, "room").await;
    let mut client = ada(&hub).await;
    outage.store(true, Ordering::Relaxed);
    lost.store(true, Ordering::Relaxed);
    let answer = client.ask(json!({"action": "subscribe", "channel": "room"})).await;
    assert_eq!(answer["code"], "unavailable", "{answer}");
    lost.store(false, Ordering::Relaxed);
    outage.store(false, Ordering::Relaxed);
    // The place that was granted is given back.
    eventually("nobody is there", || hub.channel_users("room").is_ok_and(|users| users.is_empty()));
    let answer = client.ask(json!({"action": "subscribe", "channel": "room"})).await;
    assert_eq!(answer["users"][0]["id"], "ada", "{answer}");
}

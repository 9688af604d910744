//! The brokers against plain lists, whatever they are asked in whatever order: histories, keys, what is given up for want
//! of room, channels that are forgotten.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use realtime_core::broker::memory::Memory;
use realtime_core::broker::redis::Redis;
use realtime_core::broker::{Broker, Deliver, Reply};
use realtime_core::config::{BrokerConfig, Secret};
use realtime_core::error::BrokerError;
use realtime_core::history::{Page, Range, Retention};
use realtime_core::{Payload, Position, Publish};
use realtime_testkit::{DEADLINE, RedisServer, eventually, sized};

const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];
const SIZE: usize = 6;

/// What the broker is asked next; a channel is an index.
#[derive(Debug, Clone)]
enum Step {
    /// A body of so many bytes; whether it is to be kept, whether it is worthless at once, and its key.
    Publish {
        channel: usize,
        bytes: usize,
        history: bool,
        fleeting: bool,
        key: Option<u8>,
    },
    Read(usize, Range),
    Subscribe(usize),
    Unsubscribe(usize),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let channel = || 0..CHANNELS.len();
    let publish =
        (channel(), 0usize..900, proptest::bool::weighted(0.8), proptest::bool::weighted(0.1), proptest::option::weighted(0.3, 0u8..5));
    let range = (channel(), 0u64..20, 0u64..24, 0usize..5, prop_oneof![Just(usize::MAX), 0usize..2_000], any::<bool>());
    prop_oneof![
        9 => publish.prop_map(|(channel, bytes, history, fleeting, key)| Step::Publish { channel, bytes, history, fleeting, key }),
        4 => range.prop_map(|(channel, after, until, limit, bytes, newest_first)| {
            Step::Read(channel, Range { after, until, limit, bytes, newest_first })
        }),
        1 => channel().prop_map(Step::Subscribe),
        1 => channel().prop_map(Step::Unsubscribe),
        1 => Just(Step::Tick),
    ]
}

/// What a node was handed.
#[derive(Default)]
struct Delivered(Mutex<Vec<(String, Position, usize)>>);

impl Deliver for Delivered {
    fn deliver(&self, publish: &Publish<'_>, position: Position) -> usize {
        self.0.lock().push((publish.channel.into(), position, publish.payload.len()));
        0
    }

    fn interrupted(&self, channel: &str, position: Position) {
        panic!("{channel} was interrupted at {position:?}");
    }
}

/// A channel as plain lists.
#[derive(Default)]
struct Model {
    position: Option<Position>,
    subscribed: bool,
    /// Offset and bytes of everything that was to be kept, and that nobody declared worthless.
    wanted: Vec<(u64, usize)>,
    /// What had gone when it was last looked at: never comes back.
    floor: u64,
    /// Everything that takes a place, worthless or not, and the newest that had to make room: what is expected of the floor
    /// where nothing but the size bounds a history.
    places: Vec<(u64, bool)>,
    pushed_out: u64,
}

impl Model {
    /// The broker says where the channel is. Another epoch: it was forgotten, which it may be while nobody listens.
    fn is_at(&mut self, position: Position) -> Result<(), TestCaseError> {
        if let Some(known) = self.position.filter(|known| *known != position) {
            prop_assert!(known.epoch != position.epoch && position.offset == 0 && !self.subscribed, "{known:?} has become {position:?}");
            *self = Model { subscribed: self.subscribed, ..Model::default() };
        }
        self.position = Some(position);
        Ok(())
    }

    fn keep(&mut self, offset: u64, bytes: usize, fleeting: bool) {
        while self.places.first().is_some_and(|(_, fleeting)| *fleeting) {
            self.places.remove(0);
        }
        self.places.push((offset, fleeting));
        if self.places.len() > SIZE {
            self.pushed_out = self.places.remove(0).0;
        }
        if !fleeting {
            self.wanted.push((offset, bytes));
        }
    }

    fn check(&mut self, range: &Range, page: &Page, is_roomy: bool, is_remote: bool) -> Result<(), TestCaseError> {
        self.is_at(page.top)?;
        if is_roomy {
            prop_assert_eq!(page.floor, self.pushed_out, "no more goes than has to");
        }
        // The floor never falls, and what is above it is all there.
        prop_assert!(page.floor >= self.floor && page.floor <= page.top.offset, "floor {} after {}", page.floor, self.floor);
        self.floor = page.floor;
        let mut expected: Vec<(u64, usize)> = self
            .wanted
            .iter()
            .copied()
            .filter(|(offset, _)| *offset > page.floor && *offset > range.after && *offset <= range.until)
            .collect();
        prop_assert!(self.wanted.iter().filter(|(offset, _)| *offset > page.floor).count() <= SIZE);
        if range.newest_first {
            expected.reverse();
        }
        let mut bytes = 0;
        let given = expected.iter().take(range.limit).take_while(|(_, length)| {
            let fits = bytes == 0 || bytes < range.bytes;
            bytes += length.max(&1);
            fits
        });
        let given: Vec<(u64, usize)> = given.copied().collect();
        let got: Vec<(u64, usize)> =
            page.publications.iter().map(|publication| (publication.position.offset, publication.body.as_payload().len())).collect();
        if is_remote {
            // A server counts what is around the bodies too: a bound of bytes may end a page earlier.
            prop_assert!(given.starts_with(&got) && got.is_empty() == given.is_empty(), "{:?} of {:?}", got, given);
        } else {
            prop_assert_eq!(&got, &given, "floor {}", page.floor);
        }
        prop_assert_eq!(page.more, got.len() < expected.len());
        // I2 and I5: who may go on is told so, and nobody else.
        for offset in 0..=page.top.offset + 1 {
            let may = page.continues(Position { offset, ..page.top });
            prop_assert_eq!(may, offset >= page.floor && offset <= page.top.offset);
            let mut other = Position { offset, ..page.top };
            other.epoch.0 ^= 1;
            prop_assert!(!page.continues(other));
        }
        Ok(())
    }
}

fn answer<T>(reply: Reply<T>) -> Result<T, BrokerError> {
    match reply {
        Reply::Now(answer) => answer,
        Reply::Later(promise) => promise.wait(DEADLINE).expect("an answer"),
    }
}

fn now<T>(reply: Reply<T>) -> T {
    answer(reply).unwrap()
}

/// With room for everything, or with less than one full channel needs.
fn retention(is_roomy: bool) -> Retention {
    Retention { size: SIZE, ttl_ms: 3_600_000, bytes: if is_roomy { 1 << 20 } else { 3_000 } }
}

/// Where room is short no channel is remembered that nobody listens to.
fn in_memory(steps: &[Step], is_roomy: bool) -> Result<(), TestCaseError> {
    let (idle_channels, history_bytes) = if is_roomy { (1_000, 64 << 20) } else { (0, 2_500) };
    let broker = Memory::new(idle_channels, 1_000, history_bytes).unwrap();
    let delivered = Arc::new(Delivered::default());
    broker.start(delivered.clone()).unwrap();
    let mut before = 0;
    let kept = run(steps, &broker, is_roomy, false, |news| {
        let delivered = delivered.0.lock();
        if let Some((channel, position, bytes)) = news {
            prop_assert_eq!(delivered.last(), Some(&(channel.to_owned(), position, bytes)));
            before += 1;
        }
        prop_assert_eq!(delivered.len(), before);
        Ok(())
    })?;
    // What is counted covers what is there.
    prop_assert!(broker.history_bytes() >= kept);
    Ok(())
}

/// On one server, each time with names of its own.
fn in_redis(is_roomy: bool) {
    let server = RedisServer::start();
    let number = Cell::new(0);
    let mut runner = TestRunner::new(ProptestConfig { cases: sized(32, 256) as u32, ..ProptestConfig::default() });
    let outcome = runner.run(&proptest::collection::vec(step(), 1..80), |steps| {
        number.set(number.get() + 1);
        let prefix = format!("case-{}", number.get());
        let config = BrokerConfig { url: Secret::from(server.url().as_str()), patience: 30, prefix, ..BrokerConfig::default() };
        let broker = Redis::new(&config).unwrap();
        broker.start(Arc::new(Delivered::default())).unwrap();
        eventually("the broker hears", || answer(broker.subscribe("warm-up")).is_ok());
        run(&steps, &broker, is_roomy, true, |_| Ok(())).map(drop)
    });
    outcome.unwrap();
}

/// `hear` is asked after each publication whether it was handed on, and told nothing after one that was a repeat.
fn run(
    steps: &[Step],
    broker: &dyn Broker,
    is_roomy: bool,
    is_remote: bool,
    mut hear: impl FnMut(Option<(&str, Position, usize)>) -> Result<(), TestCaseError>,
) -> Result<usize, TestCaseError> {
    let retention = retention(is_roomy);
    let mut models: Vec<Model> = CHANNELS.iter().map(|_| Model::default()).collect();
    let mut keys: HashMap<(usize, u8), Position> = HashMap::new();
    let body = "x".repeat(1_000);
    for step in steps {
        match step {
            Step::Publish { channel, bytes, history, fleeting, key } => {
                let name = key.map(|key| format!("key {key}"));
                let mut publish = Publish::new(CHANNELS[*channel], "e", Payload::Text(&body[..*bytes]));
                publish.retention = Some(retention);
                (publish.history, publish.ttl_ms, publish.id) = (*history, fleeting.then_some(0), name.as_deref());
                let published = now(broker.publish(&publish));
                if let Some(first) = key.and_then(|key| keys.get(&(*channel, key))) {
                    // Once is enough, whatever else has changed.
                    prop_assert!(published.repeated && published.position == *first);
                    hear(None)?;
                    continue;
                }
                let model = &mut models[*channel];
                let position = published.position;
                model.is_at(Position { offset: position.offset - 1, ..position })?;
                model.position = Some(position);
                prop_assert!(!published.repeated);
                hear(Some((CHANNELS[*channel], position, *bytes)))?;
                if *history {
                    model.keep(position.offset, *bytes, *fleeting);
                }
                if let Some(key) = key {
                    keys.insert((*channel, *key), position);
                }
            }
            Step::Read(channel, range) => {
                let page = now(broker.read(CHANNELS[*channel], range));
                models[*channel].check(range, &page, is_roomy, is_remote)?;
            }
            Step::Subscribe(channel) => {
                let position = now(broker.subscribe(CHANNELS[*channel]));
                let model = &mut models[*channel];
                match model.position {
                    // What has been accepted may still be on its way to here: a subscription begins before it.
                    Some(known) if is_remote => prop_assert!(position.epoch == known.epoch && position.offset <= known.offset),
                    _ => model.is_at(position)?,
                }
                model.subscribed = true;
            }
            Step::Unsubscribe(channel) => {
                broker.unsubscribe(CHANNELS[*channel]);
                models[*channel].subscribed = false;
            }
            Step::Tick => broker.tick(),
        }
    }
    let mut kept = 0;
    for (channel, model) in models.iter_mut().enumerate() {
        let page = now(broker.read(CHANNELS[channel], &Range::default()));
        model.check(&Range::default(), &page, is_roomy, is_remote)?;
        kept += page.publications.iter().map(|publication| publication.body.as_payload().len()).sum::<usize>();
    }
    broker.stop();
    let refused = answer(broker.publish(&Publish::new("a", "e", Payload::Text(""))));
    prop_assert!(matches!(refused, Err(BrokerError::Stopped)));
    Ok(kept)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_plain_lists(steps in proptest::collection::vec(step(), 1..80)) {
        in_memory(&steps, true)?;
    }

    #[test]
    fn it_agrees_where_room_is_short_and_channels_are_forgotten(steps in proptest::collection::vec(step(), 1..80)) {
        in_memory(&steps, false)?;
    }
}

#[test]
fn redis_agrees_with_plain_lists() {
    in_redis(true);
}

#[test]
fn redis_agrees_where_room_is_short() {
    in_redis(false);
}

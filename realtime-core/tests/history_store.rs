//! The memory broker against plain lists, whatever it is asked in whatever order: histories, keys, what is given up for want
//! of room, channels that are forgotten.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use realtime_core::broker::memory::Memory;
use realtime_core::broker::{Broker, Deliver, Reply};
use realtime_core::error::BrokerError;
use realtime_core::history::{Page, Range, Retention};
use realtime_core::{Payload, Position, Publish};

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

    fn check(&mut self, range: &Range, page: &Page, is_roomy: bool) -> Result<(), TestCaseError> {
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
        prop_assert_eq!(&got, &given, "floor {}", page.floor);
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

fn now<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Now(answer) => answer.unwrap(),
        Reply::Later(_) => panic!("the memory broker answers at once"),
    }
}

/// With room for everything, or with less than one full channel needs and no channel remembered that nobody listens to.
fn run(steps: &[Step], is_roomy: bool) -> Result<(), TestCaseError> {
    let (idle_channels, history_bytes, bytes) = if is_roomy { (1_000, 64 << 20, 1 << 20) } else { (0, 2_500, 3_000) };
    let retention = Retention { size: SIZE, ttl_ms: 3_600_000, bytes };
    let broker = Memory::new(idle_channels, 1_000, history_bytes).unwrap();
    let delivered = Arc::new(Delivered::default());
    broker.start(delivered.clone()).unwrap();
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
                let before = delivered.0.lock().len();
                let published = now(broker.publish(&publish));
                if let Some(first) = key.and_then(|key| keys.get(&(*channel, key))) {
                    // Once is enough, whatever else has changed.
                    prop_assert!(published.repeated && published.position == *first && delivered.0.lock().len() == before);
                    continue;
                }
                let model = &mut models[*channel];
                let position = published.position;
                model.is_at(Position { offset: position.offset - 1, ..position })?;
                model.position = Some(position);
                prop_assert!(!published.repeated);
                let newest = delivered.0.lock().last().cloned();
                prop_assert_eq!(newest, Some((CHANNELS[*channel].to_owned(), position, *bytes)));
                if *history {
                    model.keep(position.offset, *bytes, *fleeting);
                }
                if let Some(key) = key {
                    keys.insert((*channel, *key), position);
                }
            }
            Step::Read(channel, range) => {
                let page = now(broker.read(CHANNELS[*channel], range));
                models[*channel].check(range, &page, is_roomy)?;
            }
            Step::Subscribe(channel) => {
                let position = now(broker.subscribe(CHANNELS[*channel]));
                models[*channel].is_at(position)?;
                models[*channel].subscribed = true;
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
        model.check(&Range::default(), &page, is_roomy)?;
        kept += page.publications.iter().map(|publication| publication.body.as_payload().len()).sum::<usize>();
    }
    // What is counted covers what is there.
    prop_assert!(broker.history_bytes() >= kept);
    broker.stop();
    let refused = broker.publish(&Publish::new("a", "e", Payload::Text("")));
    prop_assert!(matches!(refused, Reply::Now(Err(BrokerError::Stopped))));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_plain_lists(steps in proptest::collection::vec(step(), 1..80)) {
        run(&steps, true)?;
    }

    #[test]
    fn it_agrees_where_room_is_short_and_channels_are_forgotten(steps in proptest::collection::vec(step(), 1..80)) {
        run(&steps, false)?;
    }
}

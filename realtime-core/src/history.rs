//! What is kept of a channel: its newest publications, within a number, an age and a size.
//!
//! Offsets say what is missing. A log knows its floor: what was kept above it is still there. So a
//! client can be told that it gets everything it has missed, or that it cannot, and never something
//! in between.

use std::collections::VecDeque;
use std::sync::Arc;

use data_encoding::BASE64;
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::message::{Body, Position, Publication};

/// What a kept publication costs beside its body: the record, its place in the log.
pub(crate) const OVERHEAD: usize = 160;

/// How much of a channel is kept. What passes one of the bounds goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// Publications.
    pub size: usize,
    /// Their age in milliseconds.
    pub ttl_ms: u64,
    /// Their bytes of memory.
    pub bytes: usize,
}

/// What a publisher says of keeping a publication, on a channel that keeps any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// See [`crate::Publish::history`].
    pub history: bool,
    /// See [`crate::Publish::ttl_ms`].
    pub ttl_ms: Option<u64>,
}

impl Default for Keeping {
    /// As long as the channel keeps it.
    fn default() -> Self {
        Keeping { history: true, ttl_ms: None }
    }
}

/// Which kept publications to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Only those with a greater offset.
    pub after: u64,
    /// Only those with this offset or a smaller one.
    pub until: u64,
    /// At most so many.
    pub limit: usize,
    /// No further one once their bodies have so many bytes; the first is given whatever its size.
    pub bytes: usize,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

impl Default for Range {
    /// Everything, oldest first.
    fn default() -> Self {
        Range { after: 0, until: u64::MAX, limit: usize::MAX, bytes: usize::MAX, newest_first: false }
    }
}

/// Publications that a question for a history gets where it names no limit.
pub const DEFAULT_LIMIT: usize = 100;
/// The most that it can get.
pub const MAX_LIMIT: usize = 1_000;

/// A question for a channel's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// Only what followed this position.
    pub since: Option<Position>,
    /// At most so many publications: 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// The newest first instead of the oldest.
    pub newest_first: bool,
}

impl Default for Query {
    /// The oldest [`DEFAULT_LIMIT`].
    fn default() -> Self {
        Query { since: None, limit: DEFAULT_LIMIT, newest_first: false }
    }
}

impl Query {
    /// What to read for it, with at most so many bytes of bodies and one body more.
    pub(crate) fn range(&self, bytes: usize) -> Range {
        let after = self.since.map_or(0, |since| since.offset);
        Range { after, limit: self.limit, bytes, newest_first: self.newest_first, ..Range::default() }
    }

    /// What the page says to it.
    pub(crate) fn answer(&self, page: Page) -> History {
        let complete = self.since.is_none_or(|since| page.continues(since));
        // Offsets of another epoch say nothing about this one's.
        let comparable = self.since.is_none_or(|since| since.epoch == page.top.epoch);
        let publications = if comparable { page.publications } else { Vec::new() };
        History { position: page.top, complete, more: page.more && comparable, publications }
    }
}

/// The answer to a [`Query`]. Written as JSON it is what clients and bus peers get.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    /// Where the channel stands.
    #[serde(flatten, serialize_with = "write_position")]
    pub position: Position,
    /// Whether nothing that was to be kept is missing since the position that was asked for. With a
    /// position of another epoch it is false, and there are no publications.
    pub complete: bool,
    /// Whether there are more than the limits let through.
    pub more: bool,
    /// In the order that was asked for.
    #[serde(rename = "messages", serialize_with = "write_publications")]
    pub publications: Vec<Arc<Publication>>,
}

fn write_position<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Written {
        epoch: String,
        offset: u64,
    }
    Written { epoch: position.epoch.to_string(), offset: position.offset }.serialize(serializer)
}

fn write_publications<S: Serializer>(publications: &[Arc<Publication>], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Written<'a> {
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<Data<'a>>,
        /// A binary body.
        #[serde(skip_serializing_if = "Option::is_none")]
        base64: Option<String>,
        offset: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<&'a str>,
    }
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Data<'a> {
        Text(&'a str),
        Json(&'a RawValue),
    }
    let mut list = serializer.serialize_seq(Some(publications.len()))?;
    for publication in publications {
        let (data, base64) = match &publication.body {
            Body::Text(text) => (Some(Data::Text(text)), None),
            Body::Json(text) => (Some(serde_json::from_str(text).map_or(Data::Text(text), Data::Json)), None),
            Body::Binary(bytes) => (None, Some(BASE64.encode(bytes))),
        };
        list.serialize_element(&Written {
            event: publication.event.as_str(),
            data,
            base64,
            offset: publication.position.offset,
            user_id: publication.user_id.as_deref(),
        })?;
    }
    list.end()
}

/// A part of what is kept of a channel.
#[derive(Debug, Clone)]
pub struct Page {
    /// Where the channel stands.
    pub top: Position,
    /// What was to be kept above this offset is there; at or below it something may have gone.
    pub floor: u64,
    /// In the order that was asked for.
    pub publications: Vec<Arc<Publication>>,
    /// Whether the range holds more than the limits let through.
    pub more: bool,
}

impl Page {
    /// Whether all that followed a position is still there.
    pub fn continues(&self, position: Position) -> bool {
        position.epoch == self.top.epoch && (self.floor..=self.top.offset).contains(&position.offset)
    }
}

/// The kept publications of one channel. Times are milliseconds of any clock that does not go back.
#[derive(Debug, Default)]
pub struct Log {
    kept: VecDeque<Kept>,
    bytes: usize,
    floor: u64,
}

#[derive(Debug)]
struct Kept {
    publication: Arc<Publication>,
    bytes: usize,
    expires_ms: u64,
    /// Whether it expires before the channel's retention says so. Its publisher has declared it
    /// worthless by then, so that nobody misses it.
    is_fleeting: bool,
}

impl Kept {
    fn offset(&self) -> u64 {
        self.publication.position.offset
    }
}

impl Log {
    /// A log of what follows `floor`.
    pub fn new(floor: u64) -> Self {
        Log { floor, ..Log::default() }
    }

    /// Bytes of memory of what is kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was to be kept above this offset is there.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Keeps a publication; offsets grow. `ttl_ms` is its own, where it has one.
    pub fn append(&mut self, publication: Arc<Publication>, retention: &Retention, ttl_ms: Option<u64>, now_ms: u64) {
        self.expire(now_ms);
        let except = std::mem::size_of_val(&publication.except[..]);
        let bytes = publication.body.capacity() + publication.event.as_str().len() + except + OVERHEAD;
        let is_fleeting = ttl_ms.is_some_and(|ttl| ttl < retention.ttl_ms);
        let ttl = ttl_ms.map_or(retention.ttl_ms, |ttl| ttl.min(retention.ttl_ms));
        self.bytes += bytes;
        self.kept.push_back(Kept { publication, bytes, expires_ms: now_ms.saturating_add(ttl), is_fleeting });
        while self.kept.len() > retention.size || self.bytes > retention.bytes {
            if !self.drop_oldest() {
                break;
            }
        }
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now_ms: u64) {
        while let Some(oldest) = self.kept.front() {
            if oldest.expires_ms > now_ms {
                break;
            }
            if oldest.is_fleeting {
                self.bytes -= oldest.bytes;
                self.kept.pop_front();
            } else {
                self.drop_oldest();
            }
        }
    }

    /// Forgets the oldest publication; false: there is none.
    pub fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.kept.pop_front() else { return false };
        self.bytes -= oldest.bytes;
        self.floor = oldest.offset();
        true
    }

    /// Reads a part; `top` is where the channel stands.
    pub fn read(&mut self, range: &Range, top: Position, now_ms: u64) -> Page {
        self.expire(now_ms);
        let start = self.kept.partition_point(|kept| kept.offset() <= range.after);
        let end = self.kept.partition_point(|kept| kept.offset() <= range.until).max(start);
        let mut page = Page { top, floor: self.floor, publications: Vec::new(), more: false };
        let mut bytes = 0;
        let mut take = |kept: &Kept| {
            if kept.expires_ms <= now_ms {
                return true;
            }
            if page.publications.len() >= range.limit || (bytes >= range.bytes && !page.publications.is_empty()) {
                page.more = true;
                return false;
            }
            bytes += kept.publication.body.as_payload().len();
            page.publications.push(kept.publication.clone());
            true
        };
        if range.newest_first {
            let _all = self.kept.range(start..end).rev().all(&mut take);
        } else {
            let _all = self.kept.range(start..end).all(&mut take);
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Channel, Epoch, EventName};
    use proptest::prelude::*;

    /// What happens to a log next.
    #[derive(Debug, Clone)]
    enum Step {
        /// A publication of so many bytes; whether it is kept, and its own life.
        Publish(usize, bool, Option<u64>),
        Wait(u64),
        DropOldest,
    }

    /// Everything that was ever to be kept, with the time at which it goes and whether that is its publisher's wish.
    #[derive(Default)]
    struct Model {
        kept: Vec<(u64, usize, u64, bool)>,
        floor: u64,
    }

    impl Model {
        fn drop_oldest(&mut self) {
            if !self.kept.is_empty() {
                self.floor = self.kept.remove(0).0;
            }
        }

        fn expire(&mut self, now: u64) {
            while self.kept.first().is_some_and(|(_, _, end, _)| *end <= now) {
                if self.kept[0].3 {
                    self.kept.remove(0);
                } else {
                    self.drop_oldest();
                }
            }
        }

        fn bytes(&self) -> usize {
            self.kept.iter().map(|(_, bytes, ..)| bytes).sum()
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0usize..400, proptest::bool::weighted(0.8), proptest::option::weighted(0.3, 0u64..60))
                .prop_map(|(bytes, kept, ttl)| Step::Publish(bytes, kept, ttl)),
            2 => (0u64..40).prop_map(Step::Wait),
            1 => Just(Step::DropOldest),
        ]
    }

    proptest! {
        #[test]
        fn a_log_agrees_with_a_plain_list(
            steps in proptest::collection::vec(step(), 1..120), size in 1usize..12, bytes in 200usize..3_000,
            after in 0u64..40, until in 0u64..120, limit in 0usize..8, newest_first: bool,
        ) {
            let retention = Retention { size, ttl_ms: 50, bytes };
            let epoch = Epoch(9);
            let (mut log, mut model) = (Log::new(0), Model::default());
            let (mut now, mut top) = (0, 0);
            for step in steps {
                match step {
                    Step::Publish(length, kept, ttl) => {
                        top += 1;
                        if kept {
                            let publication = Publication {
                                channel: Channel::new("c", 1),
                                event: EventName::from("e"),
                                body: Body::Binary(vec![0; length]),
                                except: Vec::new(),
                                user_id: None,
                                position: Position { epoch, offset: top },
                            };
                            let cost = publication.body.capacity() + 1 + OVERHEAD;
                            log.append(Arc::new(publication), &retention, ttl, now);
                            model.expire(now);
                            model.kept.push((top, cost, now + ttl.unwrap_or(50).min(50), ttl.is_some_and(|ttl| ttl < 50)));
                            while model.kept.len() > size || model.bytes() > bytes {
                                model.drop_oldest();
                            }
                        }
                    }
                    Step::Wait(ms) => now += ms,
                    Step::DropOldest => {
                        prop_assert_eq!(log.drop_oldest(), !model.kept.is_empty());
                        model.drop_oldest();
                    }
                }
                let position = Position { epoch, offset: top };
                let all = log.read(&Range::default(), position, now);
                model.expire(now);
                let live: Vec<u64> = model.kept.iter().filter(|(_, _, end, _)| *end > now).map(|(offset, ..)| *offset).collect();
                let offsets = |page: &Page| page.publications.iter().map(|publication| publication.position.offset).collect::<Vec<_>>();
                prop_assert_eq!(offsets(&all), live.clone());
                prop_assert_eq!((all.floor, all.more, log.bytes()), (model.floor, false, model.bytes()));
                // I2: whoever may go on gets all that was to be kept since, and nobody else is told so.
                for since in 0..=top + 1 {
                    let may = all.continues(Position { epoch, offset: since });
                    prop_assert_eq!(may, since >= model.floor && since <= top);
                }
                // I5: another epoch continues nothing.
                let other = Position { epoch: Epoch(8), offset: top };
                prop_assert!(!all.continues(other));
                let part = log.read(&Range { after, until, limit, bytes: usize::MAX, newest_first }, position, now);
                let mut expected: Vec<u64> = live.into_iter().filter(|offset| *offset > after && *offset <= until).collect();
                if newest_first {
                    expected.reverse();
                }
                prop_assert_eq!(part.more, expected.len() > limit);
                expected.truncate(limit);
                prop_assert_eq!(offsets(&part), expected);
            }
        }
    }
}

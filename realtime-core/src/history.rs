//! What is kept of a channel: its newest publications, within a number, an age and a size.
//!
//! Offsets say what is missing. A log knows its floor: what was kept above it is still there. So a
//! client can be told that it gets everything it has missed, or that it cannot, and never something
//! in between.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::message::{Position, Publication};

/// What a kept publication costs beside its body: the record, its place in the log.
const OVERHEAD: usize = 160;

/// How much of a channel is kept. What passes one of the bounds goes, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Publications.
    pub size: usize,
    /// Their age in milliseconds.
    pub ttl_ms: u64,
    /// Their bytes of memory.
    pub bytes: usize,
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

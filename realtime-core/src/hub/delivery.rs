//! A publication on its way through the shards, with the frames that it has been encoded into.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::ingress::{ChannelLoad, Ingress};
use super::interest::Entry;
use crate::message::{Body, Epoch, EventName, Payload, Position, Publication, Publish};
use crate::presence::{self, Notice};
use crate::protocol::{Format, FormatKey, MessageKind, ProtocolState, Push};

/// What a queued publication costs beside its body: the record, its frame, the queue's slot.
const OVERHEAD: usize = 256;

/// Shared by the shards that have subscribers. Its release is the end of the fan-out and gives the
/// room in the ingress queue back.
pub(crate) struct Delivery {
    pub(crate) publication: Publication,
    /// What it tells instead of the publication, which is empty then.
    news: Option<Box<News>>,
    frames: Frames,
    /// What it holds of the ingress queue; 0 once that has been given back.
    charge: usize,
    load: Arc<ChannelLoad>,
    ingress: Arc<Ingress>,
}

/// What a channel's subscribers are told of the channel itself.
pub(crate) enum News {
    /// A change of its users.
    User(Notice),
    /// How many subscriptions it has.
    Count(usize),
}

impl News {
    fn push<'a>(&'a self, channel: &'a str) -> Push<'a> {
        match self {
            News::User(notice) => notice.push(channel),
            News::Count(subscriptions) => Push::Counted { channel, subscriptions: *subscriptions },
        }
    }

    fn size(&self) -> usize {
        match self {
            News::User(notice) => presence::user_bytes(&notice.user),
            News::Count(_) => size_of::<usize>(),
        }
    }
}

/// Encoded frames by format: the first inline, because most publications need one.
#[derive(Default)]
struct Frames {
    first: OnceLock<(FormatKey, Vec<u8>)>,
    next: OnceLock<Box<Frames>>,
    /// Memory of an earlier frame.
    spare: Mutex<Vec<u8>>,
}

/// Deliveries that have ended, for the next publications.
///
/// They are made on a publisher's thread and end on a shard's. Freed there, each would take the lock
/// of the allocator's arena that the publisher is allocating from: in bursts both sides then wait
/// for each other in the kernel (`docs/adr/0004-sequencing.md`).
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Arc<Delivery>>>);

impl Pool {
    /// Deliveries kept.
    const KEPT: usize = 1024;
    /// One that owns more memory than this is freed.
    const KEPT_BYTES: usize = 4096;

    fn take(&self) -> Option<Arc<Delivery>> {
        self.0.lock().pop()
    }

    fn put(&self, spent: &mut Vec<Arc<Delivery>>) {
        let mut kept = self.0.lock();
        let room = Self::KEPT.saturating_sub(kept.len()).min(spent.len());
        kept.extend(spent.drain(..room));
        drop(kept);
        // What did not fit is freed outside the lock.
        spent.clear();
    }
}

impl Delivery {
    /// A delivery in the pool's memory, if it has some.
    pub(crate) fn new(publish: &Publish<'_>, heard: &Entry, position: Position, ingress: &Arc<Ingress>, pool: &Pool) -> Arc<Self> {
        let charge = publish.payload.len() + OVERHEAD;
        ingress.charge(&heard.load, charge);
        if let Some(mut pooled) = pool.take()
            && let Some(delivery) = Arc::get_mut(&mut pooled)
        {
            let publication = &mut delivery.publication;
            // Bursts go to one channel: then nothing is counted, and nothing is shared by the count.
            if !Arc::ptr_eq(&delivery.load, &heard.load) {
                publication.channel = heard.channel.clone();
                delivery.load = heard.load.clone();
            }
            publication.event = EventName::from(publish.event);
            publication.body.refill(publish.payload);
            publication.except.clear();
            publication.except.extend_from_slice(publish.except);
            publication.user_id = publish.user_id.cloned();
            publication.position = position;
            delivery.frames.clear();
            delivery.charge = charge;
            return pooled;
        }
        Arc::new(Delivery {
            publication: Publication::on(heard.channel.clone(), publish, position),
            news: None,
            frames: Frames::default(),
            charge,
            load: heard.load.clone(),
            ingress: ingress.clone(),
        })
    }

    /// News of the channel on their way to subscribers.
    pub(crate) fn of_news(news: News, heard: &Entry, ingress: &Arc<Ingress>) -> Arc<Self> {
        let charge = news.size() + OVERHEAD;
        ingress.charge(&heard.load, charge);
        Arc::new(Delivery {
            publication: Publication {
                channel: heard.channel.clone(),
                event: EventName::from(""),
                body: Body::from(Payload::Text("")),
                except: Vec::new(),
                user_id: None,
                position: Position { epoch: Epoch(0), offset: 0 },
            },
            news: Some(Box::new(news)),
            frames: Frames::default(),
            charge,
            load: heard.load.clone(),
            ingress: ingress.clone(),
        })
    }

    pub(crate) fn news(&self) -> Option<&News> {
        self.news.as_deref()
    }

    /// The change of users that it tells of.
    pub(crate) fn notice(&self) -> Option<&Notice> {
        match self.news() {
            Some(News::User(notice)) => Some(notice),
            _ => None,
        }
    }

    /// Bytes of what it tells.
    pub(crate) fn size(&self) -> usize {
        self.news.as_ref().map_or_else(|| self.publication.body.as_payload().len(), |news| news.size())
    }

    /// Gives up a batch of one channel. What this shard was the last to hold leaves the ingress
    /// queue in one step, and its memory goes to the pool.
    pub(crate) fn release(batch: Vec<Arc<Delivery>>, pool: &Pool) {
        let mut freed = 0;
        let mut account = None;
        let mut spent: Vec<Arc<Delivery>> = batch
            .into_iter()
            .filter_map(|mut shared| {
                let delivery = Arc::get_mut(&mut shared)?;
                freed += std::mem::take(&mut delivery.charge);
                account.get_or_insert_with(|| (delivery.ingress.clone(), delivery.load.clone()));
                let size = delivery.publication.body.capacity() + delivery.frames.capacity();
                (size <= Pool::KEPT_BYTES && delivery.news.is_none()).then_some(shared)
            })
            .collect();
        if !spent.is_empty() {
            pool.put(&mut spent);
        }
        if let Some((ingress, load)) = account {
            ingress.release(&load, freed);
        }
    }

    /// The frame for a format, encoded by whichever shard asks first. Empty where the protocol has
    /// no words for the news.
    pub(crate) fn frame(&self, formats: &[Format], key: FormatKey, scratch: &mut Scratch) -> &[u8] {
        let mut frames = &self.frames;
        loop {
            let (existing, frame) = frames.first.get_or_init(|| {
                let mut frame = std::mem::take(&mut *frames.spare.lock());
                let format = &formats[usize::from(key.format)];
                scratch.payload.clear();
                let kind = match &self.news {
                    None => Some(format.protocol.encode(&self.publication, key.variant, &mut scratch.payload)),
                    Some(news) => {
                        let state = ProtocolState { variant: key.variant, ..ProtocolState::default() };
                        format.protocol.push(&state, &news.push(self.publication.channel.name()), &mut scratch.payload)
                    }
                };
                if let Some(kind) = kind {
                    format.framing.seal(kind, &scratch.payload, &mut frame);
                }
                scratch.payload.shrink_to(Scratch::KEPT);
                (key, frame)
            });
            if *existing == key {
                return frame;
            }
            frames = frames.next.get_or_init(Box::default);
        }
    }
}

impl Frames {
    fn clear(&mut self) {
        if let Some((_, mut frame)) = self.first.take() {
            frame.clear();
            *self.spare.get_mut() = frame;
        }
        self.next = OnceLock::new();
    }

    fn capacity(&self) -> usize {
        self.first.get().map_or(0, |(_, frame)| frame.capacity())
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.charge > 0 {
            self.ingress.release(&self.load, self.charge);
        }
    }
}

/// Buffers that encoding reuses.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) payload: Vec<u8>,
    pub(crate) frame: Vec<u8>,
}

impl Scratch {
    /// Bytes kept between uses.
    const KEPT: usize = 64 << 10;

    /// Frames what `write` puts into the payload; `None` if it wrote no message.
    pub(crate) fn seal(&mut self, format: &Format, write: impl FnOnce(&mut Vec<u8>) -> Option<MessageKind>) -> Option<Bytes> {
        self.payload.clear();
        self.frame.clear();
        let kind = write(&mut self.payload)?;
        format.framing.seal(kind, &self.payload, &mut self.frame);
        let frame = Bytes::copy_from_slice(&self.frame);
        self.payload.shrink_to(Self::KEPT);
        self.frame.shrink_to(Self::KEPT);
        Some(frame)
    }
}

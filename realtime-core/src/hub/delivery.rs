//! A publication on its way through the shards, with the frames that it has been encoded into.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::ingress::{ChannelLoad, Ingress};
use crate::message::{Body, Channel, EventName, Position, Publication, Publish};
use crate::protocol::{Format, FormatKey, MessageKind};

/// What a queued publication costs beside its body: the record, its frame, the queue's slot.
const OVERHEAD: usize = 256;

/// Shared by the shards that have subscribers. Its drop is the end of the fan-out and gives the
/// room in the ingress queue back.
pub(crate) struct Delivery {
    pub(crate) publication: Publication,
    frames: Frames,
    charge: usize,
    load: Arc<ChannelLoad>,
    ingress: Arc<Ingress>,
}

/// Encoded frames by format: the first inline, because most publications need one.
#[derive(Default)]
struct Frames {
    first: OnceLock<(FormatKey, Bytes)>,
    next: OnceLock<Box<Frames>>,
}

impl Delivery {
    pub(crate) fn new(publish: &Publish<'_>, channel: Channel, position: Position, load: Arc<ChannelLoad>, ingress: Arc<Ingress>) -> Self {
        let charge = publish.payload.len() + OVERHEAD;
        ingress.charge(&load, charge);
        Delivery {
            publication: Publication {
                channel,
                event: EventName::from(publish.event),
                body: Body::from(publish.payload),
                except: publish.except.to_vec(),
                user_id: publish.user_id.cloned(),
                position,
            },
            frames: Frames::default(),
            charge,
            load,
            ingress,
        }
    }

    /// The frame for a format, encoded by whichever shard asks first.
    pub(crate) fn frame(&self, formats: &[Format], key: FormatKey, scratch: &mut Scratch) -> &Bytes {
        let mut frames = &self.frames;
        loop {
            let (existing, frame) =
                frames.first.get_or_init(|| (key, encode(&self.publication, &formats[usize::from(key.format)], key, scratch)));
            if *existing == key {
                return frame;
            }
            frames = frames.next.get_or_init(Box::default);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.ingress.release(&self.load, self.charge);
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

fn encode(publication: &Publication, format: &Format, key: FormatKey, scratch: &mut Scratch) -> Bytes {
    scratch.seal(format, |out| Some(format.protocol.encode(publication, key.variant, out))).unwrap_or_default()
}

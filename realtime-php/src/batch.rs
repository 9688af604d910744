//! `Realtime\batch()`: what a callback publishes is kept, and sent together when it returns.

use std::ptr;

use ext_php_rs::types::{ZendCallable, Zval};
use ext_php_rs::zend::ExecutorGlobals;
use realtime_core::bus::frame::BusPublish;
use realtime_core::history::Keeping;
use realtime_core::{Payload, SocketId};

use crate::failure::{Failure, Kind};
use crate::globals::GLOBALS;
use crate::publishing;
use crate::testing;
use crate::zend::{self, Call, parse};

/// What a batch may hold, in bytes of names and bodies.
const MAX_BYTES: usize = 64 << 20;
/// Memory of each buffer that a thread keeps for its next batch.
const KEPT_BYTES: usize = 256 << 10;

/// Publications that wait for the end of the outermost callback. Texts share one buffer, because a
/// batch is made of many short ones.
#[derive(Default)]
pub(crate) struct Batch {
    depth: usize,
    texts: String,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    target: Part,
    to_user: bool,
    event: Part,
    id: Option<Part>,
    body: Body,
    except: Vec<SocketId>,
    keeping: Keeping,
}

enum Body {
    Text(Part),
    Json(Part),
    /// In `bytes`.
    Binary(Part),
}

/// A piece of a buffer, which has at most [`MAX_BYTES`].
#[derive(Clone, Copy)]
struct Part {
    start: u32,
    end: u32,
}

impl Part {
    fn new(start: usize, end: usize) -> Self {
        Part { start: start as u32, end: end as u32 }
    }

    fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// How much there was at some time.
#[derive(Clone, Copy)]
struct Mark {
    texts: usize,
    bytes: usize,
    entries: usize,
}

impl Batch {
    fn mark(&self) -> Mark {
        Mark { texts: self.texts.len(), bytes: self.bytes.len(), entries: self.entries.len() }
    }

    fn truncate(&mut self, mark: Mark) {
        self.texts.truncate(mark.texts);
        self.bytes.truncate(mark.bytes);
        self.entries.truncate(mark.entries);
    }

    fn text(&mut self, text: &str) -> Part {
        let start = self.texts.len();
        self.texts.push_str(text);
        Part::new(start, self.texts.len())
    }

    /// Empties it for the next one, and gives memory back that only a large one needed.
    fn reset(&mut self) {
        self.texts.clear();
        self.texts.shrink_to(KEPT_BYTES);
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.entries.clear();
        self.entries.shrink_to(KEPT_BYTES / size_of::<Entry>());
    }

    fn add(&mut self, publish: &BusPublish<'_>) {
        let target = self.text(publish.target);
        let event = self.text(publish.event);
        let id = publish.id.map(|id| self.text(id));
        let body = match publish.payload {
            Payload::Text(text) => Body::Text(self.text(text)),
            Payload::Json(text) => Body::Json(self.text(text)),
            Payload::Binary(bytes) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                Body::Binary(Part::new(start, self.bytes.len()))
            }
        };
        self.entries.push(Entry {
            target,
            to_user: publish.to_user,
            event,
            id,
            body,
            except: publish.except.clone(),
            keeping: publish.keeping,
        });
    }

    fn publishes(&self) -> impl Iterator<Item = BusPublish<'_>> {
        let text = |part: Part| &self.texts[part.range()];
        self.entries.iter().map(move |entry| BusPublish {
            target: text(entry.target),
            to_user: entry.to_user,
            event: text(entry.event),
            payload: match entry.body {
                Body::Text(part) => Payload::Text(text(part)),
                Body::Json(part) => Payload::Json(text(part)),
                Body::Binary(part) => Payload::Binary(&self.bytes[part.range()]),
            },
            except: entry.except.clone(),
            id: entry.id.map(text),
            keeping: entry.keeping,
        })
    }
}

/// Whether a batch is open on this thread.
#[inline]
pub(crate) fn is_open() -> bool {
    GLOBALS.get().batching.get()
}

/// Keeps checked publications until the batch ends.
pub(crate) fn add(publishes: &[BusPublish<'_>]) -> Result<(), Failure> {
    let mut batch = GLOBALS.get().batch.borrow_mut();
    let more: usize = publishes.iter().map(|publish| publish.target.len() + publish.event.len() + publish.payload.len()).sum();
    if batch.texts.len() + batch.bytes.len() + more > MAX_BYTES {
        return Err(Failure::Realtime(Kind::QueueFull, format!("a batch holds at most {MAX_BYTES} bytes; end it earlier")));
    }
    publishes.iter().for_each(|publish| batch.add(publish));
    Ok(())
}

/// RSHUTDOWN: a fatal error inside the callback ends the request without closing the batch.
pub(crate) fn end_request() {
    let globals = GLOBALS.get();
    if globals.batching.replace(false) {
        globals.batch.take();
    }
}

/// `Realtime\batch(callable $callback): mixed`
pub(crate) fn batch(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut callback = ptr::null_mut::<Zval>();
    parse!(call, c"z", callback)?;
    // SAFETY: parsed above; the call's frame holds it.
    let callback = unsafe { callback.as_ref() }.map(Zval::dereference).ok_or(Failure::Pending)?;
    let callable = ZendCallable::new(callback).map_err(|_| zend::argument_type_error(0, "a valid callback", callback))?;
    let fake = testing::snapshot();
    let mark = open();
    let returned = callable.try_call(Vec::new());
    let threw = returned.is_err() || ExecutorGlobals::has_exception();
    let complete = close(threw.then_some(mark));
    match returned {
        Ok(value) if !threw => *result = value,
        _ => {
            testing::roll_back(fake);
            return Err(Failure::Pending);
        }
    }
    let Some(mut complete) = complete else { return Ok(()) };
    let outcome = publishing::send_collected(complete.publishes()).or_else(|failure| publishing::report("Realtime\\batch", failure));
    complete.reset();
    let mut batch = GLOBALS.get().batch.borrow_mut();
    // Unless an error handler has begun another one.
    if batch.depth == 0 && batch.entries.is_empty() {
        *batch = complete;
    }
    outcome
}

fn open() -> Mark {
    let globals = GLOBALS.get();
    globals.batching.set(true);
    let mut batch = globals.batch.borrow_mut();
    batch.depth += 1;
    batch.mark()
}

/// Leaves a batch and drops what came after `drop_from`. Gives what is to be sent, if this was the
/// outermost one.
fn close(drop_from: Option<Mark>) -> Option<Batch> {
    let globals = GLOBALS.get();
    let mut batch = globals.batch.borrow_mut();
    if let Some(mark) = drop_from {
        batch.truncate(mark);
    }
    batch.depth = batch.depth.saturating_sub(1);
    if batch.depth > 0 {
        return None;
    }
    globals.batching.set(false);
    let complete = std::mem::take(&mut *batch);
    (!complete.entries.is_empty()).then_some(complete)
}

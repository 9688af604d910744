//! What is published, and what is said of it.

use std::ffi::{CStr, c_char, c_void};

use realtime_core::bus::frame::BusPublish;
use realtime_core::history::Keeping;
use realtime_core::message::{DEFAULT_EVENT, validate_json};
use realtime_core::{Payload, Publish, Receipt, SocketId};

use crate::status::Failure;
use crate::text::{array, bytes, optional};

/// `rt_publication.kind`: a string. Clients of JSON protocols get it as a JSON string.
pub const RT_TEXT: u32 = 0;
/// `rt_publication.kind`: JSON text. Clients get the value that it denotes.
pub const RT_JSON: u32 = 1;
/// `rt_publication.kind`: bytes, sent in binary frames where the client's protocol has them.
pub const RT_BINARY: u32 = 2;

/// `rt_publication.flags`: the channel's history does not keep it.
pub const RT_NO_HISTORY: u32 = 1;

/// A message and where it goes. Set it to zeros, then `size`, then what is needed:
///
/// ```c
/// rt_publication message = {0};
/// message.size = sizeof message;
/// message.channel = "orders";
/// message.data = "{\"id\":42}";
/// message.length = 9;
/// message.kind = RT_JSON;
/// ```
///
/// It is borrowed for the call, with everything it points to.
#[repr(C)]
pub struct rt_publication {
    /// `sizeof (rt_publication)`. Later versions add fields at the end.
    pub size: usize,
    /// The app by name. NULL: the default one.
    pub app: *const c_char,
    /// The channel: 1–200 bytes of UTF-8 without control characters. NULL if `user` is given.
    pub channel: *const c_char,
    /// Instead of a channel: all connections of this user.
    pub user: *const c_char,
    /// The event's name. NULL: `message`.
    pub event: *const c_char,
    /// The body; may be NULL if `length` is 0.
    pub data: *const c_void,
    /// Bytes in `data`, without a NUL.
    pub length: usize,
    /// `RT_TEXT`, `RT_JSON` or `RT_BINARY`.
    pub kind: u32,
    /// Socket ids of connections that do not get it; what is not a socket id is ignored, because it
    /// usually comes from clients. May be NULL.
    pub except: *const *const c_char,
    /// How many.
    pub except_count: usize,
    /// Idempotency key, 1–128 bytes: within five minutes a repeat is accepted and not sent again.
    /// NULL: none.
    pub id: *const c_char,
    /// How long it stays in the channel's history, in milliseconds; 0: as long as the channel keeps its
    /// messages.
    pub ttl_ms: u64,
    /// 0, or `RT_NO_HISTORY`.
    pub flags: u32,
}

/// Where an accepted publication stands.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rt_receipt {
    /// The numbering that `offset` belongs to.
    pub epoch: u64,
    /// The publication's number in its channel, from 1, without gaps; 0 where the channel's `conflate_ms`
    /// holds it until its window ends.
    pub offset: u64,
    /// Subscriptions on this hub that it was queued to.
    pub matched: usize,
}

impl From<Receipt> for rt_receipt {
    fn from(receipt: Receipt) -> Self {
        rt_receipt { epoch: receipt.position.epoch.0, offset: receipt.position.offset, matched: receipt.matched }
    }
}

/// A publication as the core has it.
pub(crate) struct Parsed<'a> {
    pub(crate) app: Option<&'a str>,
    pub(crate) to: Target<'a>,
    event: &'a str,
    payload: Payload<'a>,
    except: Vec<SocketId>,
    id: Option<&'a str>,
    keeping: Keeping,
}

pub(crate) enum Target<'a> {
    Channel(&'a str),
    User(&'a str),
}

impl<'a> Parsed<'a> {
    /// # Safety
    ///
    /// `publication` is NULL or points to an `rt_publication` of the size that it says, which does
    /// not change for `'a`, nor what it points to.
    pub(crate) unsafe fn read(publication: *const rt_publication) -> Result<Self, Failure> {
        if publication.is_null() {
            return Err(Failure::null("publication"));
        }
        if !publication.is_aligned() {
            return Err(Failure::invalid("`publication` is not aligned"));
        }
        // SAFETY: not NULL, aligned; `size` is the first field of every version.
        let size = unsafe { (*publication).size };
        if size < size_of::<rt_publication>() {
            return Err(Failure::invalid(format!("publication.size is {size}, this library needs {}", size_of::<rt_publication>())));
        }
        // SAFETY: the caller says that so much is there.
        let publication = unsafe { &*publication };
        // SAFETY: the caller's promise, for each of them.
        let (app, channel, user, event, id, data, excepted) = unsafe {
            (
                optional(publication.app, "app")?,
                optional(publication.channel, "channel")?,
                optional(publication.user, "user")?,
                optional(publication.event, "event")?.unwrap_or(DEFAULT_EVENT),
                optional(publication.id, "id")?,
                bytes(publication.data, publication.length, "data")?,
                array(publication.except, publication.except_count, "except")?,
            )
        };
        let to = match (channel, user) {
            (Some(channel), None) => Target::Channel(channel),
            (None, Some(user)) => Target::User(user),
            (None, None) => return Err(Failure::null("channel")),
            (Some(_), Some(_)) => return Err(Failure::invalid("a publication goes to a channel or to a user, not to both")),
        };
        let text = || std::str::from_utf8(data).map_err(|error| Failure::invalid(format!("`data` is not UTF-8: {error}")));
        let payload = match publication.kind {
            RT_TEXT => Payload::Text(text()?),
            RT_JSON => {
                let text = text()?;
                validate_json(text).map_err(|reason| Failure::invalid(format!("`data` is not JSON: {reason}")))?;
                Payload::Json(text)
            }
            RT_BINARY => Payload::Binary(data),
            other => return Err(Failure::invalid(format!("publication.kind is {other}, it must be RT_TEXT, RT_JSON or RT_BINARY"))),
        };
        if publication.flags & !RT_NO_HISTORY != 0 {
            return Err(Failure::invalid(format!(
                "publication.flags is {}, which holds something that this library does not know",
                publication.flags
            )));
        }
        let keeping =
            Keeping { history: publication.flags & RT_NO_HISTORY == 0, ttl_ms: (publication.ttl_ms > 0).then_some(publication.ttl_ms) };
        let socket_id = |text: &*const c_char| {
            if text.is_null() {
                return None;
            }
            // SAFETY: not NULL, and the caller's promise.
            unsafe { CStr::from_ptr(*text) }.to_str().ok()?.parse().ok()
        };
        Ok(Parsed { app, to, event, payload, except: excepted.iter().filter_map(socket_id).collect(), id, keeping })
    }

    pub(crate) fn as_publish<'s>(&'s self, channel: &'s str) -> Publish<'s> {
        let mut publish = Publish::new(channel, self.event, self.payload);
        publish.app = self.app;
        publish.except = &self.except;
        publish.id = self.id;
        publish.history = self.keeping.history;
        publish.ttl_ms = self.keeping.ttl_ms;
        publish
    }

    pub(crate) fn event(&self) -> &str {
        self.event
    }

    pub(crate) fn payload(&self) -> Payload<'_> {
        self.payload
    }

    pub(crate) fn except(&self) -> &[SocketId] {
        &self.except
    }

    pub(crate) fn into_bus(self) -> BusPublish<'a> {
        let (target, to_user) = match self.to {
            Target::Channel(channel) => (channel, false),
            Target::User(user) => (user, true),
        };
        BusPublish { target, to_user, event: self.event, payload: self.payload, except: self.except, id: self.id, keeping: self.keeping }
    }
}

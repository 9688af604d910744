//! Where the library's log records go: nowhere, or to a function of the host.

use std::ffi::{c_char, c_void};
use std::fmt::{self, Write};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::boundary::call;
use crate::status::{Failure, rt_status};
use crate::text::to_c;

/// Log level: what needs somebody now.
pub const RT_LOG_ERROR: u32 = 1;
/// Log level: what may need somebody soon.
pub const RT_LOG_WARN: u32 = 2;
/// Log level: starts, stops and refusals, with their reasons.
pub const RT_LOG_INFO: u32 = 3;
/// Log level: what helps to find a fault.
pub const RT_LOG_DEBUG: u32 = 4;

/// Takes one record: a line of UTF-8 that lives until the function returns. Called from the library's
/// threads, several at once; it must not call into the library and should not block.
pub type rt_log_callback = Option<unsafe extern "C" fn(level: u32, message: *const c_char, userdata: *mut c_void)>;

struct Sink {
    callback: unsafe extern "C" fn(u32, *const c_char, *mut c_void),
    userdata: *mut c_void,
}

// SAFETY: the host promises with `rt_log_to` that both may be used from every thread.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);
/// The least important level that is wanted; 0: none.
static WANTED: AtomicU32 = AtomicU32::new(0);

/// Sends log records of this level and of more important ones to a function, for all hubs of the
/// process. A NULL `callback` sends them nowhere, as before the first call; when that returns, no
/// thread is in the former callback any more. `RT_ERROR_STATE`: another library of this process has
/// taken the records.
///
/// # Safety
///
/// `callback` and `userdata` may be used from every thread, until they are replaced.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_log_to(callback: rt_log_callback, level: u32, userdata: *mut c_void) -> rt_status {
    call(|| {
        if callback.is_some() && !(RT_LOG_ERROR..=RT_LOG_DEBUG).contains(&level) {
            return Err(Failure::invalid(format!("log level {level} is not one of RT_LOG_ERROR to RT_LOG_DEBUG")));
        }
        static ONCE: Once = Once::new();
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        if callback.is_some() {
            ONCE.call_once(|| {
                if tracing::subscriber::set_global_default(Forward).is_ok() {
                    TAKEN.store(1, Ordering::Release);
                }
            });
            if TAKEN.load(Ordering::Acquire) == 0 {
                return Err(Failure::state("another library of this process has taken the log records"));
            }
        }
        WANTED.store(if callback.is_some() { level } else { 0 }, Ordering::Release);
        // Waits for those who are in the former one.
        *SINK.write() = callback.map(|callback| Sink { callback, userdata });
        Ok(())
    })
}

fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => RT_LOG_ERROR,
        Level::WARN => RT_LOG_WARN,
        Level::INFO => RT_LOG_INFO,
        Level::DEBUG => RT_LOG_DEBUG,
        Level::TRACE => RT_LOG_DEBUG + 1,
    }
}

/// Hands records to the sink of the moment. The library has no spans.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(*metadata.level()) <= WANTED.load(Ordering::Acquire)
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The level may change later.
        tracing::subscriber::Interest::sometimes()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = to_c(&line.finish());
        if let Some(sink) = &*SINK.read() {
            // SAFETY: the host promises that the function may be called from here.
            unsafe { (sink.callback)(number(*event.metadata().level()), text.as_ptr(), sink.userdata) };
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// A record as a line: the message, then `name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        // A record is a line, whatever a client has put into a name.
        self.message.replace(['\n', '\r'], " ")
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

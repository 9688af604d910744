//! `Realtime\events()`: what happened, one event at a time, acknowledged by asking for the next, or without.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ext_php_rs::ffi::{ZEND_ACC_FINAL, ZEND_ACC_NO_DYNAMIC_PROPERTIES, ZEND_ACC_NOT_SERIALIZABLE, ZEND_ACC_PRIVATE};
use ext_php_rs::types::Zval;
use realtime_core::bus::client::ClientError;
use realtime_core::bus::frame::{BusQuery, FailureCode};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::{Failure, Kind};
use crate::objects::{PRIVATE_READONLY, object};
use crate::publishing;
use crate::signature::{BOOL, Class, FunctionTable, INT, MIXED, Property, Signature, VOID, undefined};
use crate::zend::{self, Call, handler, parse};
use crate::{host, json};

static EVENTS: Class = Class::new();
/// Slots of the declared properties.
const TIMEOUT: usize = 0;
const NUMBER: usize = 1;
const CURRENT: usize = 2;
/// What `number` is before the first event and after the last one.
const NONE: i64 = -1;
/// Longest wait in one question.
const SLICE: Duration = Duration::from_millis(400);

/// MINIT.
pub(crate) fn register_class() -> Result<(), &'static str> {
    static TABLE: OnceLock<FunctionTable> = OnceLock::new();
    let methods = TABLE.get_or_init(|| {
        FunctionTable::new(&[
            Signature::private_constructor(handler!(nothing)),
            Signature {
                name: c"__destruct",
                handler: handler!(destruct),
                required: 0,
                parameters: &[],
                returns: None,
                flags: ext_php_rs::ffi::ZEND_ACC_PUBLIC,
            },
            Signature::new(c"current", handler!(current), 0, &[], MIXED),
            Signature::new(c"done", handler!(done), 0, &[], VOID),
            Signature::new(c"key", handler!(key), 0, &[], MIXED),
            Signature::new(c"next", handler!(next), 0, &[], VOID),
            Signature::new(c"rewind", handler!(rewind), 0, &[], VOID),
            Signature::new(c"valid", handler!(valid), 0, &[], BOOL),
        ])
    });
    let property = |name, kind, flags| Property { name, kind, flags, default: undefined };
    let properties = [
        property("timeoutMs", INT, PRIVATE_READONLY),
        property("number", INT, ZEND_ACC_PRIVATE),
        property("event", MIXED, ZEND_ACC_PRIVATE),
    ];
    let flags = ZEND_ACC_FINAL | ZEND_ACC_NOT_SERIALIZABLE | ZEND_ACC_NO_DYNAMIC_PROPERTIES;
    let class = EVENTS.register("Realtime\\Events", None, methods, flags, &properties)?;
    zend::implement_iterator(class);
    Ok(())
}

/// `Realtime\events(int $timeoutMs): iterable`
pub(crate) fn events(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut timeout = 0_i64;
    parse!(call, c"l", timeout)?;
    if timeout < 0 {
        return Err(zend::argument_value_error(0, "must not be negative"));
    }
    *result = object(&EVENTS, [json::zval(timeout), json::zval(NONE), Zval::null()]);
    Ok(())
}

fn nothing(_: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    Ok(())
}

fn number(call: &Call<'_>, slot: usize) -> i64 {
    // SAFETY: only called for methods of `Events`, which declares these slots.
    call.this().and_then(|this| unsafe { (*zend::property(this, slot)).long() }).unwrap_or(NONE)
}

fn set(call: &Call<'_>, number: i64, event: Zval) {
    if let Some(this) = call.this() {
        // SAFETY: as above; the old values are released.
        unsafe {
            *zend::property(this, NUMBER) = json::zval(number);
            *zend::property(this, CURRENT) = event;
        }
    }
}

#[derive(Deserialize)]
struct Leased {
    number: i64,
    attempt: i64,
    dropped: i64,
    event: Box<RawValue>,
}

/// An event that nobody will acknowledge: the next worker need not wait for its lease to end.
fn destruct(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    if let Ok(number) = u64::try_from(number(call, NUMBER)) {
        host::with_hub(|running| running.hub.give_event_back(number));
    }
    Ok(())
}

/// `Events::done(): void`
fn done(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let Ok(number) = u64::try_from(number(call, NUMBER)) else { return Ok(()) };
    set(call, NONE, Zval::null());
    publishing::ask(
        |hub| {
            hub.event_done(number);
            Ok::<_, realtime_core::QueryError>(true)
        },
        |client| client.query(&BusQuery::EventDone { number }),
    )?;
    Ok(())
}

/// Acknowledges the event at hand and waits for the next one.
fn fetch(call: &Call<'_>) -> Result<(), Failure> {
    let mut done = u64::try_from(number(call, NUMBER)).ok();
    let timeout = Duration::from_millis(u64::try_from(number(call, TIMEOUT)).unwrap_or(0));
    let deadline = Instant::now() + timeout;
    set(call, NONE, Zval::null());
    if publishing::lowered().is_some() {
        return Ok(());
    }
    // A hub without a queue will not have one by waiting.
    let mut unsupported = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(SLICE);
        let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(0);
        let answer: Option<Option<Leased>> = publishing::ask(
            |hub| {
                let text = hub.next_event(done, left)?;
                Ok::<_, realtime_core::QueryError>(text.and_then(|text| serde_json::from_str(&text).ok()))
            },
            |client| match client.query(&BusQuery::NextEvent { timeout_ms, done }) {
                Err(ClientError::Refused { code: FailureCode::Unsupported, message }) => {
                    unsupported = Some(message);
                    Ok(None)
                }
                answer => answer,
            },
        )?;
        if let Some(message) = unsupported {
            return Err(Failure::Realtime(Kind::Config, message));
        }
        done = None;
        match answer {
            None => return Ok(()),
            Some(None) if Instant::now() >= deadline => return Ok(()),
            Some(None) => {}
            Some(Some(leased)) => {
                let mut event = zend::decode_json(leased.event.get());
                if let Some(table) = event.array_mut() {
                    json::set(table, "number", json::zval(leased.number));
                    json::set(table, "attempt", json::zval(leased.attempt));
                    json::set(table, "dropped", json::zval(leased.dropped));
                }
                set(call, leased.number, event);
                return Ok(());
            }
        }
    }
}

/// `Events::current(): mixed`
fn current(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    if let Some(this) = call.this() {
        // SAFETY: as above.
        *result = unsafe { (*zend::property(this, CURRENT)).shallow_clone() };
    }
    Ok(())
}

/// `Events::key(): mixed`
fn key(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    result.set_long(number(call, NUMBER));
    Ok(())
}

/// `Events::next(): void`
fn next(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    fetch(call)
}

/// `Events::rewind(): void`
fn rewind(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    if number(call, NUMBER) == NONE { fetch(call) } else { Ok(()) }
}

/// `Events::valid(): bool`
fn valid(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    result.set_bool(number(call, NUMBER) != NONE);
    Ok(())
}

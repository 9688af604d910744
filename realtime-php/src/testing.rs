//! `Realtime\Testing\Fake`: records what would have been sent, and asserts on it.

use std::ptr;
use std::sync::OnceLock;

use ext_php_rs::ffi::{ZEND_ACC_FINAL, ZEND_ACC_NO_DYNAMIC_PROPERTIES, ZEND_ACC_NOT_SERIALIZABLE, ZEND_ACC_PRIVATE};
use ext_php_rs::types::{ZendCallable, ZendHashTable, ZendObject, ZendStr, Zval};

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::signature::{
    ARRAY, CALLABLE, Class, FunctionTable, INT, NULL, Parameter, Property, STRING, Signature, Type, VOID, empty_array, optional, parameter,
};
use crate::zend::{self, Call, handler, parse};
use crate::{json, laravel};

static FAKE: Class = Class::new();
static ASSERTION_FAILED: Class = Class::new();

/// Slots of the fake's properties, in the order of declaration.
const BROADCASTS: usize = 0;
const DISCONNECTED: usize = 1;

/// MINIT.
pub(crate) fn register_class() -> Result<(), &'static str> {
    static TABLES: OnceLock<[FunctionTable; 2]> = OnceLock::new();
    let [fake_methods, no_methods] = TABLES.get_or_init(|| {
        const CHANNEL: Parameter = parameter(c"channel", STRING);
        const USER_ID: Parameter = parameter(c"userId", STRING.or(INT));
        const CALLBACK: Parameter = optional(c"callback", CALLABLE.or(NULL), c"null");
        const NULLABLE_STRING: Type = STRING.or(NULL);
        [
            FunctionTable::new(&[
                Signature::private_constructor(handler!(construct)),
                Signature::new(c"recorded", handler!(recorded), 0, const { &[optional(c"channel", NULLABLE_STRING, c"null")] }, ARRAY),
                Signature::new(c"assertBroadcast", handler!(assert_broadcast), 1, const { &[CHANNEL, CALLBACK] }, VOID),
                Signature::new(c"assertNotBroadcast", handler!(assert_not_broadcast), 1, const { &[CHANNEL, CALLBACK] }, VOID),
                Signature::new(
                    c"assertBroadcastTimes",
                    handler!(assert_broadcast_times),
                    2,
                    const { &[CHANNEL, parameter(c"times", INT)] },
                    VOID,
                ),
                Signature::new(c"assertBroadcastToUser", handler!(assert_broadcast_to_user), 1, const { &[USER_ID, CALLBACK] }, VOID),
                Signature::new(c"assertNothingBroadcast", handler!(assert_nothing_broadcast), 0, &[], VOID),
                Signature::new(c"assertDisconnected", handler!(assert_disconnected), 1, const { &[USER_ID] }, VOID),
                Signature::new(c"restore", handler!(restore), 0, &[], VOID),
            ]),
            FunctionTable::new(&[]),
        ]
    });
    let list = |name| Property { name, kind: ARRAY, flags: ZEND_ACC_PRIVATE, default: empty_array };
    FAKE.register(
        "Realtime\\Testing\\Fake",
        None,
        fake_methods,
        ZEND_ACC_FINAL | ZEND_ACC_NOT_SERIALIZABLE | ZEND_ACC_NO_DYNAMIC_PROPERTIES,
        &[list("broadcasts"), list("disconnected")],
    )?;
    ASSERTION_FAILED.register("Realtime\\Testing\\AssertionFailed", Some(zend::assertion_error()), no_methods, 0, &[])?;
    Ok(())
}

/// Makes a fake and lets every call of this request go to it.
pub(crate) fn activate() -> Zval {
    let Some(class) = FAKE.entry() else { return Zval::null() };
    let mut fake = Zval::new();
    fake.set_object(&mut ZendObject::new(class));
    let globals = GLOBALS.get();
    globals.lowered.set(true);
    // Released outside the borrow: it may run PHP code.
    let previous = globals.fake.replace(Some(fake.shallow_clone()));
    drop(previous);
    fake
}

/// One call that would have sent something.
pub(crate) struct Record<'a> {
    pub(crate) channel: Option<&'a str>,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) message: &'a Zval,
    pub(crate) event: &'a str,
    pub(crate) options: Option<&'a ZendHashTable>,
}

/// Adds to what the fake has seen.
pub(crate) fn record(fake: &Zval, record: Record<'_>) {
    let mut entry = ZendHashTable::new();
    json::set(&mut entry, "channel", record.channel.map_or_else(Zval::null, json::zval));
    json::set(&mut entry, "userId", record.user_id.map_or_else(Zval::null, json::zval));
    json::set(&mut entry, "message", record.message.shallow_clone());
    json::set(&mut entry, "as", json::zval(record.event));
    json::set(
        &mut entry,
        "options",
        record.options.map_or_else(|| json::array(ZendHashTable::new()), |options| json::array(options.to_owned())),
    );
    append(fake, BROADCASTS, json::array(entry));
}

/// What the active fake has seen so far.
pub(crate) fn snapshot() -> Option<(Zval, Zval)> {
    let fake = GLOBALS.get().fake.borrow().as_ref().map(Zval::shallow_clone)?;
    // SAFETY: the fake declares the property.
    let list = unsafe { (*zend::property(fake.object()?, BROADCASTS)).shallow_clone() };
    Some((fake, list))
}

/// Forgets what came after the snapshot.
pub(crate) fn roll_back(snapshot: Option<(Zval, Zval)>) {
    let Some((fake, list)) = snapshot else { return };
    let Some(object) = fake.object() else { return };
    // SAFETY: as above.
    let later = std::mem::replace(unsafe { &mut *zend::property(object, BROADCASTS) }, list);
    drop(later);
}

/// Adds a user who would have been disconnected.
pub(crate) fn record_disconnect(fake: &Zval, user_id: &str) {
    append(fake, DISCONNECTED, json::zval(user_id));
}

fn append(fake: &Zval, index: usize, value: Zval) {
    let Some(object) = fake.object() else { return };
    // SAFETY: the fake declares both properties and they are always arrays.
    let list = unsafe { &mut *zend::property(object, index) };
    // `array_mut` copies a shared list, but the immutable empty one must be replaced.
    if list.array().is_none_or(ZendHashTable::is_immutable) {
        *list = json::array(ZendHashTable::new());
    }
    if let Some(list) = list.array_mut() {
        json::push(list, value);
    }
}

fn list<'a>(call: &Call<'a>, index: usize) -> impl Iterator<Item = &'a Zval> {
    // SAFETY: only called from methods of the fake, which declares both properties as arrays.
    let list = call.this().and_then(|this| unsafe { (*zend::property(this, index)).array() });
    list.into_iter().flat_map(|list| list.values())
}

fn construct(_: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    Ok(())
}

fn field<'a>(record: &'a Zval, name: &str) -> Option<&'a Zval> {
    record.array().and_then(|record| record.get(name))
}

/// `Fake::recorded(?string $channel = null): array`
fn recorded(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut channel = ptr::null_mut::<ZendStr>();
    parse!(call, c"|S!", channel)?;
    // SAFETY: parsed above; the call's frame holds it.
    let channel = unsafe { channel.as_ref() };
    let mut found = ZendHashTable::new();
    for record in list(call, BROADCASTS).filter(|record| channel.is_none_or(|channel| names(record, "channel", channel.as_bytes()))) {
        json::push(&mut found, record.shallow_clone());
    }
    *result = json::array(found);
    Ok(())
}

fn names(record: &Zval, key: &str, wanted: &[u8]) -> bool {
    field(record, key).and_then(Zval::zend_str).is_some_and(|name| name.as_bytes() == wanted)
}

/// How many records have `wanted` under `key` and please the callback.
fn count(call: &Call<'_>, key: &str, wanted: &str, callback: Option<&Zval>) -> Result<usize, Failure> {
    // Collected first: the callback may broadcast and so replace the list.
    let candidates: Vec<Zval> =
        list(call, BROADCASTS).filter(|record| names(record, key, wanted.as_bytes())).map(Zval::shallow_clone).collect();
    let Some(callback) = callback.filter(|callback| !callback.is_null()) else { return Ok(candidates.len()) };
    let callable = ZendCallable::new(callback).map_err(|_| zend::argument_type_error(1, "a valid callback or null", callback))?;
    let mut count = 0;
    for record in &candidates {
        let (Some(message), Some(event), Some(options)) = (field(record, "message"), field(record, "as"), field(record, "options")) else {
            continue;
        };
        let answer = callable.try_call(vec![message, event, options]).map_err(|_| Failure::Pending)?;
        count += usize::from(answer.coerce_to_bool());
    }
    Ok(count)
}

/// The channel and the callback of an assertion.
fn channel_and_callback<'a>(call: &Call<'a>) -> Result<(&'a str, Option<&'a Zval>), Failure> {
    let (mut channel, mut callback) = (ptr::null_mut::<ZendStr>(), ptr::null_mut::<Zval>());
    parse!(call, c"S|z!", channel, callback)?;
    // SAFETY: parsed above; the call's frame holds them.
    let (channel, callback) = unsafe { (channel.as_ref(), callback.as_ref()) };
    let channel = channel.and_then(zend::text_of).ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    Ok((channel, callback))
}

/// `Fake::assertBroadcast(string $channel, ?callable $callback = null): void`
fn assert_broadcast(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (channel, callback) = channel_and_callback(call)?;
    let found = count(call, "channel", channel, callback)?;
    assert_that(found > 0, &format!("Nothing{} was broadcast on channel [{channel}].", matching(callback)))
}

/// `Fake::assertNotBroadcast(string $channel, ?callable $callback = null): void`
fn assert_not_broadcast(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (channel, callback) = channel_and_callback(call)?;
    let found = count(call, "channel", channel, callback)?;
    assert_that(found == 0, &format!("{found} unexpected messages{} were broadcast on channel [{channel}].", matching(callback)))
}

/// `Fake::assertBroadcastTimes(string $channel, int $times): void`
fn assert_broadcast_times(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut channel, mut times) = (ptr::null_mut::<ZendStr>(), 0_i64);
    parse!(call, c"Sl", channel, times)?;
    // SAFETY: parsed above; the call's frame holds it.
    let channel = unsafe { channel.as_ref() }.and_then(zend::text_of).unwrap_or_default();
    let found = count(call, "channel", channel, None)?;
    assert_that(i64::try_from(found) == Ok(times), &format!("{found} messages were broadcast on channel [{channel}] instead of {times}."))
}

/// `Fake::assertBroadcastToUser(string|int $userId, ?callable $callback = null): void`
fn assert_broadcast_to_user(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut user_id, mut callback) = (ptr::null_mut::<Zval>(), ptr::null_mut::<Zval>());
    parse!(call, c"z|z!", user_id, callback)?;
    let user_id = call.string_or_int(0)?;
    // SAFETY: parsed above; the call's frame holds it.
    let callback = unsafe { callback.as_ref() };
    let found = count(call, "userId", &user_id, callback)?;
    assert_that(found > 0, &format!("Nothing{} was broadcast to user [{user_id}].", matching(callback)))
}

/// `Fake::assertNothingBroadcast(): void`
fn assert_nothing_broadcast(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let found = list(call, BROADCASTS).count();
    assert_that(found == 0, &format!("{found} unexpected messages were broadcast."))
}

/// `Fake::assertDisconnected(string|int $userId): void`
fn assert_disconnected(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let mut user_id = ptr::null_mut::<Zval>();
    parse!(call, c"z", user_id)?;
    let user_id = call.string_or_int(0)?;
    let found = list(call, DISCONNECTED).any(|entry| entry.zend_str().is_some_and(|id| id.as_bytes() == user_id.as_bytes()));
    assert_that(found, &format!("User [{user_id}] was not disconnected."))
}

/// `Fake::restore(): void`
fn restore(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let globals = GLOBALS.get();
    let this = call.this().map(|this| this.get_id());
    let is_active = globals.fake.borrow().as_ref().and_then(Zval::object).map(ZendObject::get_id) == this;
    if is_active {
        globals.lowered.set(globals.off.get());
        let fake = globals.fake.take();
        drop(fake);
    }
    Ok(())
}

fn matching(callback: Option<&Zval>) -> &'static str {
    if callback.is_some_and(|callback| !callback.is_null()) { " that pleases the callback" } else { "" }
}

/// Fails as PHPUnit does where PHPUnit runs, so that it also counts assertions that hold; else by
/// `Realtime\Testing\AssertionFailed`.
fn assert_that(holds: bool, message: &str) -> Result<(), Failure> {
    const PHPUNIT: &str = "PHPUnit\\Framework\\Assert";
    if laravel::is_loaded(PHPUNIT) {
        let name = json::zval(format!("{PHPUNIT}::assertTrue"));
        let assert_true = ZendCallable::new(&name).map_err(|_| Failure::Pending)?;
        return assert_true.try_call(vec![&holds, &message]).map(|_| ()).map_err(|_| Failure::Pending);
    }
    if holds {
        return Ok(());
    }
    if let Some(class) = ASSERTION_FAILED.entry() {
        let _ = ext_php_rs::exception::throw(class, &message.replace('\0', "\\0"));
    }
    Err(Failure::Pending)
}

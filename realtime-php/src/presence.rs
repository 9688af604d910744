//! `Realtime\presence()` and the class `Realtime\Presence`.

use std::ptr;
use std::sync::OnceLock;

use ext_php_rs::ffi::{ZEND_ACC_FINAL, ZEND_ACC_NO_DYNAMIC_PROPERTIES, ZEND_ACC_NOT_SERIALIZABLE};
use ext_php_rs::types::{ZendHashTable, ZendStr, Zval};
use realtime_core::bus::frame::BusQuery;
use realtime_core::message::validate_channel;
use serde::Deserialize;

use crate::failure::Failure;
use crate::functions::{self, QUERY_OPTIONS};
use crate::message::{self, Options};
use crate::objects::{READONLY, object};
use crate::signature::{ARRAY, BOOL, Class, FunctionTable, INT, Property, STRING, Signature, Type, parameter, undefined};
use crate::zend::{self, Call, handler, parse};
use crate::{json, publishing};

static PRESENCE: Class = Class::new();
/// Slot of `Presence::$channel`.
const CHANNEL: usize = 0;

/// MINIT.
pub(crate) fn register_class() -> Result<(), &'static str> {
    static TABLE: OnceLock<FunctionTable> = OnceLock::new();
    let methods = TABLE.get_or_init(|| {
        const USER_ID: Type = STRING.or(INT);
        FunctionTable::new(&[
            Signature::private_constructor(handler!(nothing)),
            Signature::new(c"count", handler!(count), 0, &[], INT),
            Signature::new(c"users", handler!(users), 0, &[], ARRAY),
            Signature::new(c"has", handler!(has), 1, const { &[parameter(c"userId", USER_ID)] }, BOOL),
        ])
    });
    let flags = ZEND_ACC_FINAL | ZEND_ACC_NOT_SERIALIZABLE | ZEND_ACC_NO_DYNAMIC_PROPERTIES;
    let channel = Property { name: "channel", kind: STRING, flags: READONLY, default: undefined };
    let class = PRESENCE.register("Realtime\\Presence", None, methods, flags, &[channel])?;
    zend::implement_countable(class);
    Ok(())
}

fn nothing(_: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    Ok(())
}

/// What a hub says of a channel's users.
#[derive(Deserialize)]
struct Said {
    count: Option<usize>,
    has: Option<bool>,
}

/// `Realtime\presence(string $channel, array $options = []): Presence`
pub(crate) fn presence(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut channel, mut options) = (ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"S|h", channel, options)?;
    // SAFETY: parsed above; the call's frame holds them.
    let (channel, options) = unsafe { (channel.as_ref(), options.as_ref()) };
    Options::parse(options, &QUERY_OPTIONS)?;
    let channel = channel.and_then(zend::text_of).ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    validate_channel(channel).map_err(message::invalid_channel)?;
    *result = object(&PRESENCE, [json::zval(channel)]);
    Ok(())
}

fn channel(call: &Call<'_>) -> String {
    // SAFETY: only called for methods of `Presence`, which declares it.
    call.this().and_then(|this| unsafe { (*zend::property(this, CHANNEL)).string() }).unwrap_or_default()
}

/// `Presence::count(): int`
fn count(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let channel = channel(call);
    let count = match publishing::lowered() {
        Some(_) => None,
        None => publishing::ask_hubs(
            "Realtime\\Presence::count",
            |hub| hub.count_users(&channel),
            |client| {
                let said: Said = client.query(&BusQuery::Presence { channel: channel.clone(), user: None })?;
                Ok(said.count.unwrap_or(0))
            },
            |publisher| publisher.count_users(&channel),
        )?,
    };
    result.set_long(functions::saturated(count.unwrap_or(0)));
    Ok(())
}

/// `Presence::users(): array`
fn users(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    *result = match publishing::lowered() {
        Some(_) => json::array(ZendHashTable::new()),
        None => functions::list_users("Realtime\\Presence::users", &channel(call))?,
    };
    Ok(())
}

/// `Presence::has(string|int $userId): bool`
fn has(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut user = ptr::null_mut::<Zval>();
    parse!(call, c"z", user)?;
    let (user, channel) = (call.string_or_int(0)?, channel(call));
    let has = match publishing::lowered() {
        Some(_) => None,
        None => publishing::ask_hubs(
            "Realtime\\Presence::has",
            |hub| hub.channel_user(&channel, &user).map(|found| found.is_some()),
            |client| {
                let said: Said = client.query(&BusQuery::Presence { channel: channel.clone(), user: Some(user.clone()) })?;
                Ok(said.has.unwrap_or(false))
            },
            |publisher| publisher.channel_user(&channel, &user).map(|gathered| gathered.map(|found| found.is_some())),
        )?,
    };
    result.set_bool(has.unwrap_or(false));
    Ok(())
}

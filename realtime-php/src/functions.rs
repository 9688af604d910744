//! The functions that PHP calls. Their signatures are repeated, with documentation, in
//! `realtime.stub.php`; a test compares the two.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ext_php_rs::types::{ZendHashTable, ZendStr, Zval};
use realtime_core::bus::client::{Client, ClientError};
use realtime_core::bus::frame::{BusQuery, Since};
use realtime_core::history::MAX_LIMIT;
use realtime_core::message::{DEFAULT_EVENT, validate_channel};
use realtime_core::{ChannelInfo, ChannelUser, Epoch, Position, QueryError};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::message::{self, Channels, IGNORED_SOCKET_IDS, Message, Options};
use crate::publishing::{self, Elsewhere, FAILED_CALLS, Outcome};
use crate::signature::{ARRAY, BOOL, CALLABLE, FunctionTable, INT, MIXED, Parameter, STRING, Signature, Type, VOID, optional, parameter};
use crate::testing::{self, Record};
use crate::zend::{self, Call, handler, parse};
use crate::{batch, events, host, json, laravel, objects, presence, serve};

const USER_ID: Type = STRING.or(INT);
const CHANNEL: Type = Type::class("Stringable|BackedEnum").or(ARRAY).or(STRING);
const RECEIPT: Type = Type::class("Realtime\\Receipt").or(ARRAY);
const AS: Parameter = optional(c"as", STRING, c"'message'");
const OPTIONS: Parameter = optional(c"options", ARRAY, c"[]");

/// What the functions outside the publishing ones take in `options`.
pub(crate) const QUERY_OPTIONS: [&str; 1] = ["app"];
const DISCONNECT_OPTIONS: [&str; 2] = ["ban_ms", "app"];
/// `id` and `history` belong to a channel.
const USER_OPTIONS: [&str; 4] = ["except", "json", "binary", "app"];

fn global_functions() -> &'static FunctionTable {
    static TABLE: OnceLock<FunctionTable> = OnceLock::new();
    TABLE.get_or_init(|| {
        FunctionTable::new(&[
            // `message` has no default that PHP knows: its presence decides what is meant.
            Signature::new(
                c"broadcast",
                handler!(broadcast),
                0,
                const { &[optional(c"event", MIXED, c"null"), parameter(c"message", MIXED), AS, OPTIONS] },
                MIXED,
            ),
            Signature::new(
                c"broadcastToUser",
                handler!(broadcast_to_user),
                2,
                const { &[parameter(c"userId", USER_ID), parameter(c"message", MIXED), AS, OPTIONS] },
                VOID,
            ),
            Signature::new(c"getChannelUsers", handler!(get_channel_users), 1, const { &[parameter(c"channel", STRING), OPTIONS] }, ARRAY),
            Signature::new(
                c"disconnectUser",
                handler!(disconnect_user),
                1,
                const { &[parameter(c"userId", USER_ID), optional(c"code", INT, c"4009"), optional(c"reason", STRING, c"''"), OPTIONS] },
                INT,
            ),
        ])
    })
}

fn namespaced_functions() -> &'static FunctionTable {
    static TABLE: OnceLock<FunctionTable> = OnceLock::new();
    TABLE.get_or_init(|| {
        const CONFIG: Parameter = optional(c"config", ARRAY, c"[]");
        FunctionTable::new(&[
            Signature::new(
                c"Realtime\\publish",
                handler!(publish),
                2,
                const { &[parameter(c"channel", CHANNEL), parameter(c"message", MIXED), AS, OPTIONS] },
                RECEIPT,
            ),
            Signature::new(c"Realtime\\batch", handler!(batch::batch), 1, const { &[parameter(c"callback", CALLABLE)] }, MIXED),
            Signature::new(
                c"Realtime\\presence",
                handler!(presence::presence),
                1,
                const { &[parameter(c"channel", STRING), OPTIONS] },
                Type::class("Realtime\\Presence"),
            ),
            Signature::new(
                c"Realtime\\events",
                handler!(events::events),
                1,
                const { &[parameter(c"timeoutMs", INT)] },
                Type::class("Realtime\\Events"),
            ),
            Signature::new(
                c"Realtime\\history",
                handler!(history),
                1,
                const {
                    &[
                        parameter(c"channel", STRING),
                        optional(c"limit", INT, c"100"),
                        optional(c"since", ARRAY, c"[]"),
                        optional(c"reverse", BOOL, c"false"),
                    ]
                },
                ARRAY,
            ),
            Signature::new(c"Realtime\\channels", handler!(channels), 0, &[], ARRAY),
            Signature::new(c"Realtime\\stats", handler!(stats), 0, &[], ARRAY),
            Signature::new(c"Realtime\\start", handler!(start), 0, const { &[CONFIG] }, Type::class("Realtime\\Hub")),
            Signature::new(c"Realtime\\serve", handler!(serve), 0, const { &[CONFIG] }, INT),
            Signature::new(c"Realtime\\off", handler!(off), 0, &[], VOID),
            Signature::new(c"Realtime\\Testing\\fake", handler!(fake), 0, &[], Type::class("Realtime\\Testing\\Fake")),
        ])
    })
}

/// MINIT.
pub(crate) fn register(with_globals: bool) -> Result<(), &'static str> {
    namespaced_functions().register()?;
    if with_globals { global_functions().register() } else { Ok(()) }
}

/// MSHUTDOWN.
pub(crate) fn unregister(with_globals: bool) {
    namespaced_functions().unregister();
    if with_globals {
        global_functions().unregister();
    }
}

/// Arguments that the engine parsed: valid until the call returns.
fn text<'a>(_: &Call<'a>, string: *mut ZendStr) -> Option<&'a ZendStr> {
    // SAFETY: null when the argument was not passed, else a string that the call's frame holds.
    unsafe { string.as_ref() }
}

fn table<'a>(_: &Call<'a>, array: *mut ZendHashTable) -> Option<&'a ZendHashTable> {
    // SAFETY: as above.
    unsafe { array.as_ref() }
}

fn value<'a>(_: &Call<'a>, value: *mut Zval) -> Result<&'a Zval, Failure> {
    // SAFETY: as above; required arguments are always there.
    unsafe { value.as_ref() }.map(Zval::dereference).ok_or_else(|| Failure::Error("an argument is missing".into()))
}

fn event(string: Option<&ZendStr>) -> Result<&str, Failure> {
    match string {
        None => Ok(DEFAULT_EVENT),
        Some(string) => zend::text_of(string).ok_or_else(|| Failure::invalid_message("the event name is not valid UTF-8")),
    }
}

/// `broadcast(mixed $event = null, mixed $message = UNKNOWN, string $as = 'message', array $options = []): mixed`
fn broadcast(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    // The call that programs make in a loop, kept free of everything else.
    if call.count() == 2
        && !GLOBALS.get().lowered.get()
        && let (Some(channel), Some(text)) = (call.argument(0).and_then(Zval::zend_str), call.argument(1).and_then(Zval::zend_str))
    {
        let channel = zend::text_of(channel).ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
        return match publishing::broadcast_text(channel, message::plain_text(text)?) {
            Ok(()) => Ok(()),
            Err(failure) => publishing::report("broadcast", failure),
        };
    }
    if call.count() <= 1 {
        return laravel::broadcast(call.argument(0), result);
    }
    match send(call, None) {
        Ok(_) => Ok(()),
        Err(failure) => publishing::report("broadcast", failure),
    }
}

/// Publishes as the arguments say, and collects a receipt for each channel, in order, if they are
/// wanted. Gives whether a list of channels was named.
fn send(call: &Call<'_>, mut receipts: Option<&mut Vec<Zval>>) -> Result<bool, Failure> {
    let wants_receipts = receipts.is_some();
    let (mut channel, mut message, mut name, mut options) =
        (ptr::null_mut::<Zval>(), ptr::null_mut::<Zval>(), ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"zz|Sh", channel, message, name, options)?;
    let name = event(text(call, name))?;
    let (given, table) = (value(call, message)?, table(call, options));
    let options = Options::of_publication(table)?;
    let channels = Channels::parse(value(call, channel)?, 0)?;
    let message = message::convert(given, &options)?;
    let mut sent = |outcome| {
        if let Some(receipts) = &mut receipts {
            receipts.push(objects::receipt(outcome));
        }
    };
    match publishing::lowered() {
        Some(Elsewhere::Fake(fake)) => {
            for channel in channels.iter() {
                testing::record(&fake, Record { channel: Some(channel), user_id: None, message: given, event: name, options: table });
                sent(Outcome::Recorded);
            }
        }
        Some(Elsewhere::Off) => channels.iter().for_each(|_| sent(Outcome::Dropped)),
        None if wants_receipts => publishing::publish(&channels, name, &message, &options, sent)?,
        None => publishing::broadcast(&channels, name, &message, &options)?,
    }
    Ok(matches!(channels, Channels::Many(_)))
}

/// `Realtime\publish(Stringable|BackedEnum|array|string $channel, mixed $message, string $as = 'message', array $options = []): Receipt|array`
fn publish(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut receipts = Vec::new();
    let list = send(call, Some(&mut receipts))?;
    if list {
        let mut array = ZendHashTable::new();
        for receipt in receipts {
            json::push(&mut array, receipt);
        }
        *result = json::array(array);
    } else if let Some(receipt) = receipts.into_iter().next() {
        *result = receipt;
    }
    Ok(())
}

/// `broadcastToUser(string|int $userId, mixed $message, string $as = 'message', array $options = []): void`
fn broadcast_to_user(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut user_id, mut message, mut name, mut options) =
        (ptr::null_mut::<Zval>(), ptr::null_mut::<Zval>(), ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"zz|Sh", user_id, message, name, options)?;
    let user_id = call.string_or_int(0)?;
    let name = event(text(call, name))?;
    let (given, table) = (value(call, message)?, table(call, options));
    let options = Options::parse(table, &USER_OPTIONS)?;
    check_user_id(&user_id)?;
    let message: Message<'_> = message::convert(given, &options)?;
    match publishing::lowered() {
        Some(Elsewhere::Fake(fake)) => {
            testing::record(&fake, Record { channel: None, user_id: Some(&user_id), message: given, event: name, options: table });
            Ok(())
        }
        Some(Elsewhere::Off) => Ok(()),
        None => publishing::broadcast_to_user(&user_id, name, &message, &options)
            .or_else(|failure| publishing::report("broadcastToUser", failure)),
    }
}

fn check_user_id(user_id: &str) -> Result<(), Failure> {
    realtime_core::User::new(user_id, None).map(|_| ()).map_err(|error| Failure::invalid_message(error.to_string()))
}

/// `getChannelUsers(string $channel, array $options = []): array`
fn get_channel_users(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut channel, mut options) = (ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"S|h", channel, options)?;
    Options::parse(table(call, options), &QUERY_OPTIONS)?;
    let channel =
        text(call, channel).and_then(zend::text_of).ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    validate_channel(channel).map_err(message::invalid_channel)?;
    *result = match publishing::lowered() {
        Some(_) => json::array(ZendHashTable::new()),
        None => match list_users("getChannelUsers", channel) {
            Ok(list) => list,
            Err(failure) => {
                publishing::report("getChannelUsers", failure)?;
                json::array(ZendHashTable::new())
            }
        },
    };
    Ok(())
}

/// The users of a channel as PHP's list.
pub(crate) fn list_users(function: &str, channel: &str) -> Result<Zval, Failure> {
    let users = publishing::ask_hubs(
        function,
        |hub| hub.channel_users(channel).map(users_of_hub),
        |client| users_over_bus(client, channel),
        |publisher| publisher.channel_users(channel).map(|gathered| gathered.map(users_of_hub)),
    )?;
    let mut list = ZendHashTable::new();
    for user in users.into_iter().flatten() {
        let mut entry = ZendHashTable::new();
        json::set(&mut entry, "id", json::zval(user.id.as_str()));
        json::set(&mut entry, "info", user.info.as_deref().map_or_else(Zval::null, |info| zend::decode_json(info.get())));
        json::set(&mut entry, "connections", json::zval(saturated(user.connections)));
        json::push(&mut list, json::array(entry));
    }
    Ok(json::array(list))
}

/// A user of a channel, from this process' hub or from another one's.
#[derive(Deserialize)]
struct ListedUser {
    id: String,
    info: Option<Box<RawValue>>,
    connections: usize,
}

fn users_of_hub(users: Vec<ChannelUser>) -> Vec<ListedUser> {
    let info = |text: &str| RawValue::from_string(text.to_owned()).ok();
    let listed = |ChannelUser { user, connections }: ChannelUser| ListedUser {
        id: user.id().to_owned(),
        info: user.info().and_then(info),
        connections,
    };
    users.into_iter().map(listed).collect()
}

fn users_over_bus(client: &mut Client, channel: &str) -> Result<Vec<ListedUser>, ClientError> {
    client.query(&BusQuery::ChannelUsers { channel: channel.to_owned() })
}

/// `Realtime\history(string $channel, int $limit = 100, array $since = [], bool $reverse = false): array`
fn history(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut channel, mut limit, mut since, mut reverse) = (ptr::null_mut::<ZendStr>(), 100_i64, ptr::null_mut::<ZendHashTable>(), false);
    parse!(call, c"S|lhb", channel, limit, since, reverse)?;
    let channel =
        text(call, channel).and_then(zend::text_of).ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    validate_channel(channel).map_err(message::invalid_channel)?;
    let limit = usize::try_from(limit).ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    let limit = limit.ok_or_else(|| zend::argument_value_error(1, "must be between 1 and 1000"))?;
    let since = position(table(call, since)).ok_or_else(|| zend::argument_value_error(2, "must be empty or have `epoch` and `offset`"))?;
    if publishing::lowered().is_some() {
        *result = zend::decode_json(NOTHING_KEPT);
        return Ok(());
    }
    // A text that is no epoch is one that no hub has.
    let known = |(epoch, offset): (String, u64)| Position { epoch: epoch.parse().unwrap_or(Epoch(0)), offset };
    let query = realtime_core::history::Query { since: since.clone().map(known), limit, newest_first: reverse };
    let text = publishing::ask_anywhere(
        |hub| hub.history(channel, &query).map(|history| serde_json::to_string(&history).unwrap_or_default()),
        |client| {
            let since = since.clone().map(|(epoch, offset)| Since { epoch, offset });
            let query = BusQuery::History { channel: channel.to_owned(), since, limit: Some(limit), reverse };
            client.query::<Box<RawValue>>(&query).map(|json| json.get().to_owned())
        },
        |publisher| publisher.history(channel, &query).map(|history| serde_json::to_string(&history).unwrap_or_default()),
    )?;
    *result = zend::decode_json(text.as_deref().unwrap_or(NOTHING_KEPT));
    Ok(())
}

/// What a history says where publishing is off.
const NOTHING_KEPT: &str = r#"{"epoch":"","offset":0,"complete":true,"more":false,"messages":[]}"#;

/// The position in an array; `Some(None)`: it is empty.
fn position(since: Option<&ZendHashTable>) -> Option<Option<(String, u64)>> {
    let Some(since) = since.filter(|since| !since.is_empty()) else { return Some(None) };
    let epoch = since.get("epoch")?.dereference().zend_str().and_then(zend::text_of)?;
    let offset = u64::try_from(since.get("offset")?.dereference().long()?).ok()?;
    Some(Some((epoch.to_owned(), offset)))
}

/// `disconnectUser(string|int $userId, int $code = 4009, string $reason = '', array $options = []): int`
fn disconnect_user(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut user_id, mut code, mut reason, mut options) =
        (ptr::null_mut::<Zval>(), 4009_i64, ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"z|lSh", user_id, code, reason, options)?;
    let user_id = call.string_or_int(0)?;
    let ban_ms = Options::parse(table(call, options), &DISCONNECT_OPTIONS)?.ban_ms;
    check_user_id(&user_id)?;
    let code = u16::try_from(code).ok().filter(|code| *code == 1000 || (3000..5000).contains(code));
    let code = code.ok_or_else(|| zend::argument_value_error(1, "must be 1000 or between 3000 and 4999"))?;
    let reason = text(call, reason).map_or(Some(""), zend::text_of).filter(|reason| reason.len() <= 123);
    let reason = reason.ok_or_else(|| zend::argument_value_error(2, "must be at most 123 bytes of UTF-8"))?;
    let closed = match publishing::lowered() {
        Some(Elsewhere::Fake(fake)) => {
            testing::record_disconnect(&fake, &user_id);
            0
        }
        Some(Elsewhere::Off) => 0,
        None => match publishing::ask_hubs(
            "disconnectUser",
            |hub| match ban_ms {
                0 => hub.disconnect_user(&user_id, code, reason),
                ban_ms => hub.ban_user(&user_id, Duration::from_millis(ban_ms), code, reason),
            },
            |client| {
                let (user, reason) = (user_id.clone(), reason.to_owned());
                client.query(&match ban_ms {
                    0 => BusQuery::DisconnectUser { user, code, reason },
                    ban_ms => BusQuery::BanUser { user, ban_ms, code, reason },
                })
            },
            |publisher| match ban_ms {
                0 => publisher.disconnect_user(&user_id, code, reason),
                ban_ms => publisher.ban_user(&user_id, Duration::from_millis(ban_ms), code, reason),
            },
        ) {
            Ok(closed) => closed.unwrap_or(0),
            Err(failure) => {
                publishing::report("disconnectUser", failure)?;
                0
            }
        },
    };
    result.set_long(saturated(closed));
    Ok(())
}

pub(crate) fn saturated(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `Realtime\channels(): array`
fn channels(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let channels = match publishing::lowered() {
        None => publishing::ask(
            |hub| {
                let entry = |channel: &ChannelInfo| serde_json::json!({"name": channel.name, "subscribers": channel.subscribers});
                Ok::<_, QueryError>(hub.channels().iter().map(entry).collect::<Value>())
            },
            |client| client.query::<Value>(&BusQuery::Channels),
        )?,
        Some(_) => None,
    };
    *result = json::to_array(&channels.unwrap_or_else(|| Value::Array(Vec::new())));
    Ok(())
}

/// `Realtime\stats(): array`
fn stats(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let hub = match publishing::lowered() {
        None => publishing::ask(
            |hub| Ok::<_, QueryError>(serde_json::to_value(hub.stats()).unwrap_or_default()),
            |client| client.query::<Value>(&BusQuery::Stats),
        )?,
        Some(_) => None,
    };
    let mut counters = match hub {
        Some(Value::Object(counters)) => counters,
        _ => Map::new(),
    };
    counters.insert("failed_calls".into(), FAILED_CALLS.load(Ordering::Relaxed).into());
    counters.insert("ignored_socket_ids".into(), IGNORED_SOCKET_IDS.load(Ordering::Relaxed).into());
    *result = json::to_array(&Value::Object(counters));
    Ok(())
}

fn config(call: &Call<'_>) -> Result<Map<String, Value>, Failure> {
    let mut config = ptr::null_mut::<ZendHashTable>();
    parse!(call, c"|h", config)?;
    table(call, config).map_or_else(|| Ok(Map::new()), json::settings)
}

/// `Realtime\start(array $config = []): Hub`
fn start(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let running = host::start(config(call)?)?;
    *result = objects::hub(&running);
    Ok(())
}

/// `Realtime\serve(array $config = []): int`
fn serve(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    result.set_long(serve::serve(config(call)?)?);
    Ok(())
}

/// `Realtime\off(): void`
fn off(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let globals = GLOBALS.get();
    globals.off.set(true);
    globals.lowered.set(true);
    Ok(())
}

/// `Realtime\Testing\fake(): Fake`
fn fake(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    *result = testing::activate();
    Ok(())
}

/// Milliseconds from PHP; none means the configured time.
pub(crate) fn milliseconds(value: Option<i64>, index: u32) -> Result<Option<Duration>, Failure> {
    match value.map(u64::try_from) {
        None => Ok(None),
        Some(Ok(milliseconds)) => Ok(Some(Duration::from_millis(milliseconds))),
        Some(Err(_)) => Err(zend::argument_value_error(index, "must be greater than or equal to 0")),
    }
}

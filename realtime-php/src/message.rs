//! PHP values to what the hub takes: channels, payloads and options.
//!
//! Strings are bytes in PHP. What must be text is checked to be UTF-8 and passed on where it lies;
//! a plain `broadcast('channel', 'text')` copies nothing here.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use ext_php_rs::boxed::ZBox;
use ext_php_rs::ffi::{zend_call_known_function, zend_fetch_function_str};
use ext_php_rs::types::{ArrayKey, ZendHashTable, ZendObject, ZendStr, Zval};
use ext_php_rs::zend::ExecutorGlobals;
use realtime_core::config::nearest;
use realtime_core::history::Keeping;
use realtime_core::message::{validate_channel, validate_json};
use realtime_core::{InvalidChannel, Payload, SocketId};

use crate::failure::{Failure, Kind};
use crate::settings::check_app;
use crate::zend;

/// Socket ids in `except` that were not socket ids. They come from clients (`X-Socket-ID`), so a
/// wrong one excludes nobody and is only counted.
pub(crate) static IGNORED_SOCKET_IDS: AtomicU64 = AtomicU64::new(0);

/// A PHP string of the caller's, or one that is held here: a conversion made it, or it is behind a reference, where PHP
/// code that runs before the string is used (`__toString()`, `jsonSerialize()`, a destructor) may put another in its place.
pub(crate) enum Text<'a> {
    Borrowed(&'a str),
    /// Known to be UTF-8.
    Owned(ZBox<ZendStr>),
}

impl Deref for Text<'_> {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(text) => text,
            Text::Owned(string) => zend::text_of(string).unwrap_or_default(),
        }
    }
}

impl<'a> Text<'a> {
    /// That of an argument, of an element that is no reference, or of an enum's case: it lives until the call returns.
    fn borrowed(string: &'a ZendStr) -> Option<Self> {
        zend::text_of(string).map(Text::Borrowed)
    }

    /// The string of an array's element, if it is one and UTF-8.
    fn of_element(element: &'a Zval) -> Result<Option<Self>, Failure> {
        if element.is_reference() && element.dereference().zend_str().is_some() {
            return zend::to_string(element.dereference()).map(Text::owned);
        }
        Ok(element.zend_str().and_then(Text::borrowed))
    }

    fn owned(string: ZBox<ZendStr>) -> Option<Self> {
        zend::text_of(&string).is_some().then_some(())?;
        Some(Text::Owned(string))
    }
}

/// A converted message; borrows from the caller's value where it can.
pub(crate) enum Message<'a> {
    Text(Text<'a>),
    Json(Text<'a>),
    Binary(&'a [u8]),
}

impl Message<'_> {
    #[inline]
    pub(crate) fn payload(&self) -> Payload<'_> {
        match self {
            Message::Text(text) => Payload::Text(text),
            Message::Json(text) => Payload::Json(text),
            Message::Binary(bytes) => Payload::Binary(bytes),
        }
    }
}

const NOT_UTF8: &str = "the message is not valid UTF-8; send bytes with the option binary: true";

/// A string that is sent as it is.
#[inline]
pub(crate) fn plain_text(string: &ZendStr) -> Result<&str, Failure> {
    zend::text_of(string).ok_or_else(|| Failure::invalid_message(NOT_UTF8))
}

/// Converts a message: a string stays that string; arrays, scalars, null and `JsonSerializable`
/// become JSON; a backed enum its value; a `Stringable` its string.
pub(crate) fn convert<'a>(value: &'a Zval, options: &Options<'_>) -> Result<Message<'a>, Failure> {
    let value = value.dereference();
    if options.binary {
        let string = value
            .zend_str()
            .ok_or_else(|| Failure::invalid_message(format!("binary: true needs a string, {} given", zend::type_name(value))))?;
        return Ok(Message::Binary(string.as_bytes()));
    }
    if options.json {
        let text = match (value.zend_str(), value.object()) {
            (Some(string), _) => Text::borrowed(string),
            (None, Some(object)) if zend::is_stringable(object) => Text::owned(zend::to_string(value)?),
            _ => return Err(Failure::invalid_message(format!("json: true needs a string of JSON, {} given", zend::type_name(value)))),
        };
        let text = text.ok_or_else(|| Failure::invalid_message("json: true needs valid UTF-8"))?;
        validate_json(&text).map_err(|reason| Failure::invalid_message(format!("the message is not valid JSON: {reason}")))?;
        return Ok(Message::Json(text));
    }
    if let Some(string) = value.zend_str() {
        return plain_text(string).map(|text| Message::Text(Text::Borrowed(text)));
    }
    let Some(object) = value.object() else {
        return match value.is_resource() {
            true => Err(unsendable(value)),
            false => encode(value).map(Message::Json),
        };
    };
    if zend::is_json_serializable(object) {
        encode(value).map(Message::Json)
    } else if zend::is_backed_enum(object) {
        let backing = enum_value(object);
        match backing.zend_str() {
            Some(string) => plain_text(string).map(|text| Message::Text(Text::Borrowed(text))),
            None => encode(backing).map(Message::Json),
        }
    } else if zend::is_stringable(object) {
        let text = Text::owned(zend::to_string(value)?).ok_or_else(|| Failure::invalid_message(NOT_UTF8))?;
        Ok(Message::Text(text))
    } else {
        Err(unsendable(value))
    }
}

fn unsendable(value: &Zval) -> Failure {
    let kind = zend::type_name(value);
    Failure::invalid_message(format!(
        "a message cannot be of type {kind}: send a string, an array, a scalar, null, a JsonSerializable, a backed enum or a Stringable"
    ))
}

fn enum_value(case: &ZendObject) -> &Zval {
    const VALUE: usize = 1;
    // SAFETY: a backed enum declares `name` and `value`, in this order.
    unsafe { &*zend::property(case, VALUE) }
}

/// `json_encode` with slashes and Unicode unescaped, zero fractions kept and errors thrown. The
/// function is called, rather than the C routine below it, because only the function leaves
/// `json_last_error()` alone.
pub(crate) fn encode<'a>(value: &Zval) -> Result<Text<'a>, Failure> {
    const FLAGS: i64 = UNESCAPED_SLASHES | UNESCAPED_UNICODE | PRESERVE_ZERO_FRACTION | THROW_ON_ERROR;
    const UNESCAPED_SLASHES: i64 = 1 << 6;
    const UNESCAPED_UNICODE: i64 = 1 << 8;
    const PRESERVE_ZERO_FRACTION: i64 = 1 << 10;
    const THROW_ON_ERROR: i64 = 1 << 22;
    const NAME: &str = "json_encode";

    let mut flags = Zval::new();
    flags.set_long(FLAGS);
    let mut arguments = [value.shallow_clone(), flags];
    let mut result = Zval::new();
    // SAFETY: the function is built in; the engine reads two arguments and writes the result.
    unsafe {
        let function = zend_fetch_function_str(NAME.as_ptr().cast(), NAME.len());
        if function.is_null() {
            return Err(Failure::Error("json_encode() is disabled".into()));
        }
        zend_call_known_function(
            function,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            &raw mut result,
            2,
            arguments.as_mut_ptr(),
            std::ptr::null_mut(),
        );
    }
    if ExecutorGlobals::has_exception() {
        return Err(encoding_failure());
    }
    let Some(string) = result.zend_str() else {
        return Err(Failure::Error("json_encode() gave no string".into()));
    };
    // The result's reference becomes ours.
    // SAFETY: the string is alive, and the result gives its reference up below.
    let string = unsafe { ZBox::from_raw(string.as_ptr().cast_mut()) };
    std::mem::forget(result);
    Text::owned(string).ok_or_else(|| Failure::invalid_message(NOT_UTF8))
}

/// A `JsonException` becomes `InvalidMessage`; what a `jsonSerialize()` threw stays as it is.
fn encoding_failure() -> Failure {
    // Looked at before it is taken: an `exit()` or a fatal error inside is an object of the engine's
    // own, without methods, which must stay where it is.
    let is_json = ExecutorGlobals::get().exception().is_some_and(zend::is_json_exception);
    let exception = if is_json { ExecutorGlobals::take_exception() } else { None };
    let Some(mut exception) = exception else { return Failure::Pending };
    let reason = exception.try_call_method("getMessage", Vec::new()).ok().and_then(|message| message.string()).unwrap_or_default();
    let mut cause = Zval::new();
    cause.set_object(&mut exception);
    Failure::Caused(Kind::InvalidMessage, format!("the message cannot be encoded as JSON: {reason}"), Box::new(cause))
}

/// What the caller asked for beyond channel and message.
#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) except: Vec<SocketId>,
    pub(crate) id: Option<Text<'a>>,
    pub(crate) json: bool,
    pub(crate) binary: bool,
    pub(crate) ban_ms: u64,
    pub(crate) keeping: Keeping,
}

const OPTIONS: [&str; 7] = ["except", "id", "ttl_ms", "history", "json", "binary", "app"];

impl<'a> Options<'a> {
    /// Reads the options array; `allowed` names those that this function takes.
    pub(crate) fn parse(table: Option<&'a ZendHashTable>, allowed: &[&str]) -> Result<Self, Failure> {
        let mut options = Options::default();
        let Some(table) = table.filter(|table| !table.is_empty()) else { return Ok(options) };
        for (key, element) in table.iter() {
            let value = element.dereference();
            let key = match key {
                ArrayKey::Long(index) => index.to_string(),
                other => String::try_from(other).map_err(|_| Failure::invalid_message("the name of an option is not valid UTF-8"))?,
            };
            if !allowed.contains(&key.as_str()) {
                return Err(unknown_option(&key, allowed));
            }
            match key.as_str() {
                "except" => options.except = socket_ids(value),
                "id" => options.id = id(element)?,
                "json" => options.json = flag(&key, value)?,
                "binary" => options.binary = flag(&key, value)?,
                "history" => options.keeping.history = value.is_null() || flag(&key, value)?,
                "ttl_ms" => options.keeping.ttl_ms = life(&key, value)?,
                "app" => app(value)?,
                "ban_ms" => options.ban_ms = milliseconds(&key, value)?,
                _ => {}
            }
        }
        if options.json && options.binary {
            return Err(Failure::invalid_message("options `json` and `binary` exclude each other"));
        }
        Ok(options)
    }

    /// Those of functions that publish to channels.
    pub(crate) fn of_publication(table: Option<&'a ZendHashTable>) -> Result<Self, Failure> {
        Self::parse(table, &OPTIONS)
    }
}

fn unknown_option(key: &str, allowed: &[&str]) -> Failure {
    let hint = nearest(key, allowed.iter().copied()).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
    Failure::invalid_message(format!("unknown option `{key}`{hint}"))
}

fn flag(key: &str, value: &Zval) -> Result<bool, Failure> {
    match value.bool() {
        Some(flag) => Ok(flag),
        None if value.is_null() => Ok(false),
        None => Err(Failure::invalid_message(format!("option `{key}` must be true or false, {} given", zend::type_name(value)))),
    }
}

fn life(key: &str, value: &Zval) -> Result<Option<u64>, Failure> {
    match milliseconds(key, value)? {
        0 if value.is_null() => Ok(None),
        0 => Err(Failure::invalid_message(format!("option `{key}` must be at least 1, 0 given"))),
        life => Ok(Some(life)),
    }
}

fn milliseconds(key: &str, value: &Zval) -> Result<u64, Failure> {
    match value.long() {
        Some(number) => {
            u64::try_from(number).map_err(|_| Failure::invalid_message(format!("option `{key}` must not be negative, {number} given")))
        }
        None if value.is_null() => Ok(0),
        None => Err(Failure::invalid_message(format!("option `{key}` must be a whole number, {} given", zend::type_name(value)))),
    }
}

fn id(element: &Zval) -> Result<Option<Text<'_>>, Failure> {
    let value = element.dereference();
    match value.zend_str() {
        Some(_) => Text::of_element(element)?.map(Some).ok_or_else(|| Failure::invalid_message("option `id` is not valid UTF-8")),
        None if value.is_null() => Ok(None),
        None => Err(Failure::invalid_message(format!("option `id` must be a string, {} given", zend::type_name(value)))),
    }
}

fn app(value: &Zval) -> Result<(), Failure> {
    match value.zend_str() {
        Some(string) => check_app(&String::from_utf8_lossy(string.as_bytes())),
        None if value.is_null() => Ok(()),
        None => Err(Failure::config(format!("option `app` must be a string, {} given", zend::type_name(value)))),
    }
}

fn socket_ids(value: &Zval) -> Vec<SocketId> {
    let one = |value: &Zval| {
        let value = value.dereference();
        if value.is_null() {
            return None;
        }
        let id = value.zend_str().and_then(zend::text_of).and_then(|text| text.parse().ok());
        if id.is_none() {
            IGNORED_SOCKET_IDS.fetch_add(1, Ordering::Relaxed);
        }
        id
    };
    match value.array() {
        Some(list) => list.values().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}

/// The channels that the first argument names: one, or a list.
pub(crate) enum Channels<'a> {
    One(Text<'a>),
    Many(Vec<Text<'a>>),
}

impl<'a> Channels<'a> {
    /// Converts and checks all of them, so that nothing is sent when one is wrong.
    pub(crate) fn parse(value: &'a Zval, index: u32) -> Result<Self, Failure> {
        let value = value.dereference();
        let Some(list) = value.array() else {
            return channel(value, Some(index)).map(Channels::One);
        };
        if list.is_empty() {
            return Err(Failure::invalid_channel("the list of channels is empty"));
        }
        list.values().map(|item| channel(item, None)).collect::<Result<_, _>>().map(Channels::Many)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Channels::One(name) => std::slice::from_ref(name).iter(),
            Channels::Many(names) => names.iter(),
        }
        .map(|name| &**name)
    }
}

fn channel<'a>(element: &'a Zval, argument: Option<u32>) -> Result<Text<'a>, Failure> {
    let value = element.dereference();
    let text = if value.is_string() {
        Text::of_element(element)?
    } else {
        match value.object() {
            Some(object) if zend::is_backed_enum(object) => match enum_value(object).zend_str() {
                Some(string) => Text::borrowed(string),
                // An int-backed enum is as good a name as its number.
                None => Text::owned(zend::to_string(enum_value(object))?),
            },
            Some(object) if zend::is_stringable(object) => Text::owned(zend::to_string(value)?),
            _ => return Err(not_a_channel(value, argument)),
        }
    };
    let text = text.ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    validate_channel(&text).map_err(invalid_channel)?;
    Ok(text)
}

fn not_a_channel(value: &Zval, argument: Option<u32>) -> Failure {
    match argument {
        Some(index) => zend::argument_type_error(
            index,
            "a channel (string, Stringable, backed enum, or a list of them) when a message is given",
            value,
        ),
        None => Failure::invalid_channel(format!(
            "a channel in the list is of type {}; it must be a string, a Stringable or a backed enum",
            zend::type_name(value)
        )),
    }
}

pub(crate) fn invalid_channel(error: InvalidChannel) -> Failure {
    Failure::invalid_channel(error.to_string())
}

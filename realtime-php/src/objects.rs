//! The classes `Realtime\Hub` and `Realtime\Receipt`.

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::OnceLock;

use ext_php_rs::ffi::{ZEND_ACC_FINAL, ZEND_ACC_NO_DYNAMIC_PROPERTIES, ZEND_ACC_NOT_SERIALIZABLE, ZEND_ACC_PRIVATE, ZEND_ACC_PUBLIC};
use ext_php_rs::types::{ZendObject, ZendStr, Zval};
use realtime_core::{SocketId, User};

use crate::failure::Failure;
use crate::functions::milliseconds;
use crate::host::{self, Running};
use crate::json;
use crate::message;
use crate::publishing::Outcome;
use crate::signature::{BOOL, Class, FunctionTable, INT, MIXED, NULL, Property, STRING, Signature, Type, optional, parameter, undefined};
use crate::zend::{self, Call, handler, parse};

/// Not in the bindings of every PHP version that has it.
pub(crate) const READONLY: u32 = ZEND_ACC_PUBLIC | 1 << 7;
pub(crate) const PRIVATE_READONLY: u32 = ZEND_ACC_PRIVATE | 1 << 7;

static HUB: Class = Class::new();
static RECEIPT: Class = Class::new();

/// Slot of `Hub::$id`, the first declared property.
const HUB_ID: usize = 0;

/// MINIT.
pub(crate) fn register_classes() -> Result<(), &'static str> {
    static TABLES: OnceLock<[FunctionTable; 2]> = OnceLock::new();
    let [hub_methods, receipt_methods] = TABLES.get_or_init(|| {
        const USER_ID: Type = STRING.or(INT).or(NULL);
        [
            FunctionTable::new(&[
                Signature::private_constructor(handler!(construct)),
                Signature::new(c"stop", handler!(stop), 0, const { &[optional(c"timeoutMs", INT.or(NULL), c"null")] }, BOOL),
                Signature::new(c"isRunning", handler!(is_running), 0, &[], BOOL),
                Signature::new(
                    c"setUser",
                    handler!(set_user_method),
                    2,
                    const { &[parameter(c"socketId", STRING), parameter(c"userId", USER_ID), optional(c"info", MIXED, c"null")] },
                    BOOL,
                ),
            ]),
            FunctionTable::new(&[Signature::private_constructor(handler!(construct))]),
        ]
    });
    let property = |name, kind, flags| Property { name, kind, flags, default: undefined };
    let hub_properties = [property("id", INT, PRIVATE_READONLY), property("port", INT, READONLY), property("url", STRING, READONLY)];
    HUB.register(
        "Realtime\\Hub",
        None,
        hub_methods,
        ZEND_ACC_FINAL | ZEND_ACC_NOT_SERIALIZABLE | ZEND_ACC_NO_DYNAMIC_PROPERTIES,
        &hub_properties,
    )?;
    let receipt_properties = [
        property("accepted", BOOL, READONLY),
        property("epoch", STRING, READONLY),
        property("offset", INT, READONLY),
        property("matched", INT, READONLY),
    ];
    RECEIPT.register("Realtime\\Receipt", None, receipt_methods, ZEND_ACC_FINAL | ZEND_ACC_NO_DYNAMIC_PROPERTIES, &receipt_properties)?;
    Ok(())
}

/// An object of one of the classes above with all its properties, in the order of declaration.
pub(crate) fn object<const N: usize>(class: &Class, properties: [Zval; N]) -> Zval {
    let Some(class) = class.entry() else { return Zval::null() };
    let mut object = ZendObject::new(class);
    for (index, value) in properties.into_iter().enumerate() {
        // SAFETY: the class declares N properties; the slot is uninitialized and needs no
        // destruction. Writing the whole slot also clears its "uninitialized" mark.
        unsafe { zend::property(&object, index).cast::<ManuallyDrop<Zval>>().write(ManuallyDrop::new(value)) };
    }
    let mut value = Zval::new();
    value.set_object(&mut object);
    value
}

/// A handle of the running hub.
pub(crate) fn hub(running: &Running) -> Zval {
    let id = i64::try_from(running.id).unwrap_or(i64::MAX);
    object(&HUB, [json::zval(id), json::zval(i64::from(running.hub.local_addr().port())), json::zval(running.hub.url())])
}

/// What became of a publication.
pub(crate) fn receipt(outcome: Outcome) -> Zval {
    let (accepted, epoch, offset, matched) = match outcome {
        Outcome::Accepted(receipt) => (true, receipt.position.epoch.to_string(), receipt.position.offset, receipt.matched),
        Outcome::Recorded => (true, String::new(), 0, 0),
        Outcome::Dropped => (false, String::new(), 0, 0),
    };
    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
    let matched = i64::try_from(matched).unwrap_or(i64::MAX);
    object(&RECEIPT, [json::zval(accepted), json::zval(epoch), json::zval(offset), json::zval(matched)])
}

fn construct(_: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    Ok(())
}

fn id(call: &Call<'_>) -> u64 {
    let Some(this) = call.this() else { return 0 };
    // SAFETY: only called as a method of `Hub`, which declares `id` first.
    let id = unsafe { (*zend::property(this, HUB_ID)).long() };
    id.and_then(|id| u64::try_from(id).ok()).unwrap_or(0)
}

/// `Hub::stop(?int $timeoutMs = null): bool`
fn stop(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut timeout, mut is_null) = (0_i64, true);
    parse!(call, c"|l!", timeout, is_null)?;
    let timeout = milliseconds((!is_null).then_some(timeout), 0)?;
    result.set_bool(host::stop(id(call), timeout));
    Ok(())
}

/// `Hub::isRunning(): bool`
fn is_running(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    result.set_bool(host::with_hub(|running| running.id == id(call) && running.hub.is_running()) == Some(true));
    Ok(())
}

/// `Hub::setUser(string $socketId, string|int|null $userId, mixed $info = null): bool`
fn set_user_method(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut socket, mut user, mut info) = (ptr::null_mut::<ZendStr>(), ptr::null_mut::<Zval>(), ptr::null_mut::<Zval>());
    parse!(call, c"Sz|z", socket, user, info)?;
    // SAFETY: parsed above; the call's frame holds them.
    let (socket, user, info) = unsafe { (socket.as_ref(), user.as_ref(), info.as_ref()) };
    let user_id = match user.map(Zval::dereference) {
        Some(value) if !value.is_null() => Some(call.string_or_int(1)?),
        _ => None,
    };
    let info = info.map(Zval::dereference).filter(|info| !info.is_null()).map(message::encode).transpose()?;
    let user = user_id.map(|id| User::new(&id, info.as_deref())).transpose().map_err(|error| Failure::Value(error.to_string()))?;
    // Socket ids come from clients: one that is none names no connection.
    let socket = socket.and_then(zend::text_of).and_then(|text| text.parse::<SocketId>().ok());
    let handle = id(call);
    let known =
        host::with_hub(|running| (running.id == handle).then(|| socket.map_or(Ok(false), |socket| running.hub.set_user(socket, user))));
    match known.flatten() {
        Some(found) => result.set_bool(found?),
        None => return Err(Failure::unavailable("this hub has been stopped, or belongs to the parent process")),
    }
    Ok(())
}

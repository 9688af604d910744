//! `broadcast($event)` as Laravel's helper of that name does it.
//!
//! Laravel defines its helper only if nobody else has defined `broadcast()`, and this extension
//! has. With at most one argument the call is therefore Laravel's, answered through the container:
//! `app(Illuminate\Contracts\Broadcasting\Factory::class)->event($event)`.

use ext_php_rs::types::{ZendCallable, ZendStr, Zval};
use ext_php_rs::zend::{ClassEntry, ExecutorGlobals, Function};

use crate::failure::Failure;
use crate::json;

const FACTORY: &str = "Illuminate\\Contracts\\Broadcasting\\Factory";
const CONTAINER: &str = "Illuminate\\Container\\Container";

pub(crate) fn broadcast(event: Option<&Zval>, result: &mut Zval) -> Result<(), Failure> {
    let Some(factory) = factory()? else {
        return Err(Failure::Type(
            "broadcast() with one argument is Laravel's helper and there is no Laravel application here; to send, call broadcast($channel, $message)".into(),
        ));
    };
    let event = event.map_or_else(Zval::null, Zval::shallow_clone);
    *result = call_method(&factory, "event", &event)?;
    Ok(())
}

/// The broadcasting factory of the application, or none outside Laravel.
fn factory() -> Result<Option<Zval>, Failure> {
    let name = json::zval(FACTORY);
    if let Some(container) = container()? {
        // `app()` marks an application. Without it this may be the container alone, in a program
        // that is not Laravel's.
        if has_app_helper() || call_method(&container, "bound", &name)?.bool() == Some(true) {
            return call_method(&container, "make", &name).map(Some);
        }
        return Ok(None);
    }
    if !has_app_helper() {
        return Ok(None);
    }
    let app = ZendCallable::try_from_name("app").map_err(|_| Failure::Pending)?;
    app.try_call(vec![&name]).map(Some).map_err(|_| Failure::Pending)
}

/// The container that `app()` uses, if its class has been loaded.
fn container() -> Result<Option<Zval>, Failure> {
    if !is_loaded(CONTAINER) {
        return Ok(None);
    }
    let get_instance = json::zval(format!("{CONTAINER}::getInstance"));
    let callable = ZendCallable::new(&get_instance).map_err(|_| Failure::Pending)?;
    callable.try_call(Vec::new()).map(Some).map_err(|_| Failure::Pending)
}

/// Looks the class up without running autoloaders: a program that never loaded the container has
/// no application in it.
pub(crate) fn is_loaded(class: &str) -> bool {
    const NO_AUTOLOAD: u32 = 0x80;
    let name = ZendStr::new(class, false);
    // SAFETY: a valid name for the time of the call; without autoloading no PHP code runs.
    let found: *mut ClassEntry =
        unsafe { ext_php_rs::ffi::zend_lookup_class_ex(name.as_ptr().cast_mut(), std::ptr::null_mut(), NO_AUTOLOAD) };
    !found.is_null()
}

fn has_app_helper() -> bool {
    // Declared by Laravel's helpers, which Composer loads in every request.
    Function::try_from_function("app").is_some() && is_loaded_or_autoloadable(FACTORY)
}

fn is_loaded_or_autoloadable(class: &str) -> bool {
    ClassEntry::try_find(class).is_some()
}

fn call_method(object: &Zval, method: &str, argument: &Zval) -> Result<Zval, Failure> {
    let result = object.try_call_method(method, vec![argument]).map_err(|_| Failure::Pending)?;
    // The call succeeds even where the method threw.
    if ExecutorGlobals::has_exception() { Err(Failure::Pending) } else { Ok(result) }
}

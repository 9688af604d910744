//! The Zend calls that `ext-php-rs` does not bind, each behind a safe function where one is
//! possible, and the boundary between PHP's C frames and this crate.

use std::any::Any;
use std::ffi::{CStr, CString, OsStr, OsString, c_char, c_int, c_long};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use ext_php_rs::boxed::ZBox;
use ext_php_rs::types::{ZendHashTable, ZendObject, ZendStr, Zval};
use ext_php_rs::zend::{ClassEntry, ExecuteData, ExecutorGlobals, FunctionEntry, ModuleEntry, ce};

use crate::failure::Failure;

unsafe extern "C" {
    pub(crate) fn zend_register_functions(
        scope: *mut ClassEntry,
        functions: *const FunctionEntry,
        table: *mut ZendHashTable,
        kind: c_int,
    ) -> c_int;
    pub(crate) fn zend_unregister_functions(functions: *const FunctionEntry, count: c_int, table: *mut ZendHashTable);
    pub(crate) fn zend_parse_parameters(count: u32, specification: *const c_char, ...) -> c_int;
    pub(crate) fn zend_declare_typed_property(
        class: *mut ClassEntry,
        name: *mut ZendStr,
        default: *mut Zval,
        flags: c_int,
        doc_comment: *mut ZendStr,
        kind: ext_php_rs::zend::ZendType,
    ) -> *mut ext_php_rs::ffi::zend_property_info;
    pub(crate) fn zend_unregister_ini_entries(module_number: c_int);
    pub(crate) fn display_ini_entries(module: *mut ModuleEntry);
    fn zend_parse_arg_str_or_long_slow(arg: *mut Zval, string: *mut *mut ZendStr, long: *mut i64, number: u32) -> bool;
    fn zend_argument_type_error(number: u32, format: *const c_char, ...);
    fn zend_argument_value_error(number: u32, format: *const c_char, ...);
    fn zend_zval_type_name(value: *const Zval) -> *const c_char;
    fn zval_try_get_string_func(value: *mut Zval) -> *mut ZendStr;
    fn zend_ini_string_ex(name: *const c_char, length: usize, original: c_int, exists: *mut bool) -> *const c_char;
    fn php_log_err_with_severity(message: *const c_char, severity: c_int);
    fn php_json_decode_ex(result: *mut Zval, text: *const c_char, length: usize, options: c_long, depth: c_long) -> c_int;
    fn zend_is_unwind_exit(exception: *const ZendObject) -> bool;
    fn zend_class_implements(class: *mut ClassEntry, count: c_int, ...);
    static zend_ce_iterator: *mut ClassEntry;
    static zend_ce_countable: *mut ClassEntry;
    pub(crate) static mut zend_post_startup_cb: Option<extern "C" fn() -> c_int>;
    static zend_ce_backed_enum: *mut ClassEntry;
    static php_json_serializable_ce: *mut ClassEntry;
    static php_json_exception_ce: *mut ClassEntry;
    static spl_ce_RuntimeException: *mut ClassEntry;
    static assertion_error_ce: *mut ClassEntry;
}

/// The arguments of one call. They live, and their strings with them, until the call returns.
pub(crate) struct Call<'a> {
    frame: *mut ExecuteData,
    lifetime: PhantomData<&'a mut ExecuteData>,
}

impl<'a> Call<'a> {
    /// How many arguments were passed; a named one counts those before it.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        // SAFETY: the frame is the running call's; every member of the union is a u32.
        unsafe { (*self.frame).This.u2.num_args }
    }

    /// The argument at `index`, or none when it was not passed.
    #[inline]
    pub(crate) fn argument(&self, index: u32) -> Option<&'a Zval> {
        if index >= self.count() {
            return None;
        }
        // SAFETY: `index` is below the number of slots that the engine filled.
        let value = unsafe { (*self.frame).zend_call_arg(index as usize) }?;
        Some(Zval::dereference(value))
    }

    /// The object whose method is called.
    pub(crate) fn this(&self) -> Option<&'a mut ZendObject> {
        // SAFETY: a method's frame holds its object until the call returns.
        unsafe { (*self.frame).This.object_mut() }
    }

    /// A `string|int` argument as a string; anything else gets PHP's own conversions or TypeError.
    pub(crate) fn string_or_int(&self, index: u32) -> Result<String, Failure> {
        let Some(value) = self.argument(index) else { return Ok(String::new()) };
        if let Some(number) = value.long() {
            return Ok(number.to_string());
        }
        if let Some(text) = value.zend_str() {
            return user_id(text);
        }
        let (mut string, mut number) = (ptr::null_mut(), 0);
        let slot = ptr::from_ref(value).cast_mut();
        // SAFETY: the slot is this call's and may be converted in place; one output is written on success.
        let converted = !value.is_null() && unsafe { zend_parse_arg_str_or_long_slow(slot, &raw mut string, &raw mut number, index + 1) };
        if !converted {
            return Err(argument_type_error(index, "of type string|int", value));
        }
        // SAFETY: null, or the string that the slot holds now.
        unsafe { string.as_ref() }.map_or_else(|| Ok(number.to_string()), user_id)
    }
}

fn user_id(text: &ZendStr) -> Result<String, Failure> {
    text_of(text).map(str::to_owned).ok_or_else(|| Failure::invalid_message("the user id is not valid UTF-8"))
}

/// Parses the arguments of `$call` by PHP's rules; see `zend_parse_parameters` for the letters.
/// Each output must be a variable of the C type that its letter names.
macro_rules! parse {
    ($call:expr, $specification:literal $(, $output:ident)*) => {
        // SAFETY: every caller passes the outputs that its letters write.
        if unsafe { $crate::zend::zend_parse_parameters($call.count(), $specification.as_ptr() $(, &raw mut $output)*) } == 0 {
            Ok(())
        } else {
            Err($crate::failure::Failure::Pending)
        }
    };
}
pub(crate) use parse;

/// What PHP calls: turns the frame into a [`Call`], an error into an exception and a panic into an
/// `Error`.
#[inline]
pub(crate) fn boundary(frame: *mut ExecuteData, result: *mut Zval, run: fn(&Call<'_>, &mut Zval) -> Result<(), Failure>) {
    let call = Call { frame, lifetime: PhantomData };
    // SAFETY: PHP passes a result slot that it has set to null.
    let result = unsafe { &mut *result };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        if let Err(failure) = run(&call, result) {
            failure.throw();
        }
    }));
    if let Err(panic) = outcome {
        Failure::Error(format!("panic in the realtime extension: {}", panic_text(&*panic))).throw();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// A `zif_handler` around a function of this crate.
macro_rules! handler {
    ($function:path) => {{
        extern "C" fn handler(frame: *mut ext_php_rs::zend::ExecuteData, result: *mut ext_php_rs::types::Zval) {
            $crate::zend::boundary(frame, result, $function);
        }
        handler
    }};
}
pub(crate) use handler;

/// Throws PHP's TypeError for an argument: "f(): Argument #1 ($x) must be …, … given".
pub(crate) fn argument_type_error(index: u32, expected: &str, given: &Zval) -> Failure {
    let kind = type_name(given);
    if let Ok(text) = CString::new(format!("must be {expected}, {kind} given")) {
        // SAFETY: the format takes one C string.
        unsafe { zend_argument_type_error(index + 1, c"%s".as_ptr(), text.as_ptr()) };
    }
    Failure::Pending
}

/// Throws PHP's ValueError for an argument: "f(): Argument #1 ($x) …".
pub(crate) fn argument_value_error(index: u32, text: &str) -> Failure {
    if let Ok(text) = CString::new(text) {
        // SAFETY: the format takes one C string.
        unsafe { zend_argument_value_error(index + 1, c"%s".as_ptr(), text.as_ptr()) };
    }
    Failure::Pending
}

/// PHP's name for the value's type: the class of an object, `int`, `string`, …
pub(crate) fn type_name(value: &Zval) -> String {
    if let Some(object) = value.object() {
        return object.get_class_entry().name().unwrap_or("object").to_owned();
    }
    // SAFETY: PHP returns a static C string for every value.
    unsafe { CStr::from_ptr(zend_zval_type_name(value)) }.to_string_lossy().into_owned()
}

/// The string as text, if it is UTF-8.
#[inline]
pub(crate) fn text_of(string: &ZendStr) -> Option<&str> {
    std::str::from_utf8(string.as_bytes()).ok()
}

/// What `(string) $value` gives; runs `__toString()` of objects.
pub(crate) fn to_string(value: &Zval) -> Result<ZBox<ZendStr>, Failure> {
    // SAFETY: PHP does not change the value; the result is null after an exception, else ours.
    let string = unsafe { zval_try_get_string_func(ptr::from_ref(value).cast_mut()) };
    if string.is_null() {
        return Err(Failure::Pending);
    }
    // SAFETY: not null, and one reference to it is ours.
    Ok(unsafe { ZBox::from_raw(string) })
}

/// Decodes JSON into arrays, as `json_decode($text, true)` does; null when it is not JSON.
pub(crate) fn decode_json(text: &str) -> Zval {
    const OBJECT_AS_ARRAY: c_long = 1;
    const DEPTH: c_long = 512;
    let mut value = Zval::new();
    // PHP's scanner ends at a NUL byte, which a Zend string has behind its text.
    let text = ZendStr::new(text, false);
    // SAFETY: PHP writes a value, or null after an error, to a slot that needs no destruction.
    unsafe { php_json_decode_ex(&raw mut value, text.as_bytes().as_ptr().cast(), text.len(), OBJECT_AS_ARRAY, DEPTH) };
    value
}

/// Whether the script is about to end, by `exit` for example.
pub(crate) fn is_exit_pending() -> bool {
    let globals = ExecutorGlobals::get();
    // SAFETY: the pending exception lives until it is cleared; only its class is looked at.
    globals.exception().is_some_and(|exception| unsafe { zend_is_unwind_exit(ptr::from_ref(exception)) })
}

/// Makes a class of this extension iterable by its methods. Only in MINIT.
pub(crate) fn implement_iterator(class: &ClassEntry) {
    // SAFETY: a class that was just registered, and one that the engine has made.
    unsafe { zend_class_implements(ptr::from_ref(class).cast_mut(), 1, zend_ce_iterator) };
}

/// Makes `count($object)` call its method. Only in MINIT.
pub(crate) fn implement_countable(class: &ClassEntry) {
    // SAFETY: as above.
    unsafe { zend_class_implements(ptr::from_ref(class).cast_mut(), 1, zend_ce_countable) };
}

/// The class that enum cases with a value belong to.
pub(crate) fn is_backed_enum(object: &ZendObject) -> bool {
    // SAFETY: set by PHP at its start, before any module.
    unsafe { zend_ce_backed_enum.as_ref() }.is_some_and(|class| object.instance_of(class))
}

/// Whether the object says itself what its JSON is.
pub(crate) fn is_json_serializable(object: &ZendObject) -> bool {
    // SAFETY: set by PHP at its start; json is always built in.
    unsafe { php_json_serializable_ce.as_ref() }.is_some_and(|class| object.instance_of(class))
}

/// Whether it is what `json_encode()` throws.
pub(crate) fn is_json_exception(object: &ZendObject) -> bool {
    // SAFETY: an exception is alive while it is pending; only the pointer of its class is read.
    unsafe { !php_json_exception_ce.is_null() && object.ce == php_json_exception_ce }
}

/// Parents of this extension's exceptions; they exist from the start of PHP, before class lookups
/// work.
pub(crate) fn runtime_exception() -> &'static ClassEntry {
    // SAFETY: set by SPL, which is always built in and starts before this module.
    unsafe { spl_ce_RuntimeException.as_ref() }.unwrap_or_else(|| ce::exception())
}

pub(crate) fn assertion_error() -> &'static ClassEntry {
    // SAFETY: set by the standard module, which starts before this one.
    unsafe { assertion_error_ce.as_ref() }.unwrap_or_else(|| ce::error())
}

/// Whether the object has `__toString()`.
pub(crate) fn is_stringable(object: &ZendObject) -> bool {
    object.instance_of(ce::stringable())
}

/// The declared property at `index` of an object.
///
/// # Safety
/// The class declares more than `index` properties.
pub(crate) unsafe fn property(object: &ZendObject, index: usize) -> *mut Zval {
    // SAFETY: the table follows the object and has a slot for each declared property.
    unsafe { (&raw const object.properties_table).cast::<Zval>().cast_mut().add(index) }
}

/// An INI value of now; none when it was never set.
pub(crate) fn ini(name: &CStr) -> Option<String> {
    let mut exists = false;
    // SAFETY: the name is a C string of that length; PHP returns null or a C string.
    unsafe {
        let value = zend_ini_string_ex(name.as_ptr(), name.count_bytes(), 0, &raw mut exists);
        (exists && !value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}

/// The environment of this process.
///
/// Not `std::env::vars_os()`: a PHP that was linked with a copy relocation has the variable
/// `environ` in its executable, and extensions, which PHP loads with `RTLD_DEEPBIND`, see the
/// libc's own, which nobody ever set. Asking the executable finds the one that is in use.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    // SAFETY: a handle of the executable, which is never unloaded.
    let executable = unsafe { libc::dlopen(ptr::null(), libc::RTLD_LAZY) };
    // SAFETY: that handle and a C string; the result is null or the address of a `char **`.
    let environ = unsafe { libc::dlsym(executable, c"environ".as_ptr()) }.cast::<*const *const c_char>();
    let mut variables = Vec::new();
    if environ.is_null() {
        return variables;
    }
    // SAFETY: as above.
    let mut entry = unsafe { *environ };
    // SAFETY: null, or an array of C strings that a null pointer ends. In MINIT nobody changes it.
    while let Some(variable) = unsafe { entry.as_ref() }.filter(|variable| !variable.is_null()) {
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(*variable) }.to_bytes();
        // As std does it: a name may begin with `=`.
        if let Some(equals) = text.iter().skip(1).position(|byte| *byte == b'=') {
            let (name, value) = (&text[..=equals], &text[equals + 2..]);
            variables.push((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()));
        }
        // SAFETY: not past the null pointer that ends the array.
        entry = unsafe { entry.add(1) };
    }
    variables
}

/// Writes to PHP's error log, through the SAPI where no file is set. Never a PHP warning.
pub(crate) fn log(message: &str) {
    const NOTICE: c_int = 5;
    if let Ok(message) = CString::new(message.replace('\0', "\\0")) {
        // SAFETY: a C string for the time of the call.
        unsafe { php_log_err_with_severity(message.as_ptr(), NOTICE) };
    }
}

/// Which SAPI runs this process: `cli`, `fpm-fcgi`, …
pub(crate) fn sapi_name() -> &'static str {
    // SAFETY: PHP's own static structure; the name is a C string for the life of the process.
    unsafe {
        let module = ext_php_rs::ffi::ext_php_rs_sapi_module();
        if module.is_null() || (*module).name.is_null() {
            return "";
        }
        CStr::from_ptr((*module).name).to_str().unwrap_or_default()
    }
}

/// Shows that a setting has a value, and not which.
pub(crate) unsafe extern "C" fn display_hidden_ini(entry: *mut ext_php_rs::ffi::_zend_ini_entry, _: c_int) {
    // SAFETY: the engine passes the entry that it displays.
    let is_set = unsafe { entry.as_ref() }.is_some_and(|entry| !entry.value.is_null());
    // Output that has ended is no matter here.
    drop(ext_php_rs::zend::printf(if is_set { "***" } else { "no value" }));
}

//! Function and method tables as C extensions write them: parameter names for named arguments,
//! unions, defaults and return types that reflection and opcache see.
//!
//! `ext-php-rs` derives tables from Rust types, which cannot say `string|int` or leave a default
//! unknown; its wrappers also collect arguments in a vector, which `broadcast()` should not pay.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use ext_php_rs::args::ArgInfo;
use ext_php_rs::convert::IntoZval;
use ext_php_rs::ffi::{
    IS_ARRAY, IS_LONG, IS_NULL, IS_STRING, IS_UNDEF, IS_VOID, MAY_BE_ANY, MAY_BE_BOOL, ZEND_ACC_PRIVATE, ZEND_ACC_PUBLIC, zend_class_entry,
    zend_register_internal_class_ex,
};
use ext_php_rs::flags::DataType;
use ext_php_rs::types::{ZendEmptyArray, ZendStr, Zval};
use ext_php_rs::zend::{ClassEntry, ExecuteData, FunctionEntry, ZendType};

use crate::zend::{zend_declare_typed_property, zend_register_functions, zend_unregister_functions};

/// A type as PHP writes it; `|` joins two.
#[derive(Clone, Copy)]
pub(crate) struct Type {
    mask: u32,
    class: Option<&'static str>,
}

pub(crate) const MIXED: Type = Type::of(MAY_BE_ANY);
pub(crate) const VOID: Type = Type::of(1 << IS_VOID);
pub(crate) const BOOL: Type = Type::of(MAY_BE_BOOL);
pub(crate) const INT: Type = Type::of(1 << IS_LONG);
pub(crate) const STRING: Type = Type::of(1 << IS_STRING);
pub(crate) const ARRAY: Type = Type::of(1 << IS_ARRAY);
pub(crate) const NULL: Type = Type::of(1 << IS_NULL);
/// `callable` has a bit of its own beside the value types.
pub(crate) const CALLABLE: Type = Type::of(1 << ext_php_rs::ffi::IS_CALLABLE);

impl Type {
    const fn of(mask: u32) -> Self {
        Type { mask, class: None }
    }

    /// Instances of a class, or of several (`"A|B"`).
    pub(crate) const fn class(name: &'static str) -> Self {
        Type { mask: 0, class: Some(name) }
    }

    /// This type or `other`.
    pub(crate) const fn or(self, other: Type) -> Self {
        let class = match self.class {
            Some(name) => Some(name),
            None => other.class,
        };
        Type { mask: self.mask | other.mask, class }
    }

    fn to_zend(self) -> ZendType {
        let named = self.class.and_then(|name| ZendType::empty_from_type(DataType::object(name), false, false, false));
        let mut kind = named.unwrap_or_else(|| ZendType::empty(false, false));
        kind.type_mask |= self.mask;
        kind
    }
}

/// One parameter. A parameter without a default is required, or must be named explicitly when a
/// later one is.
pub(crate) struct Parameter {
    name: &'static CStr,
    kind: Type,
    default: Option<&'static CStr>,
}

pub(crate) const fn parameter(name: &'static CStr, kind: Type) -> Parameter {
    Parameter { name, kind, default: None }
}

pub(crate) const fn optional(name: &'static CStr, kind: Type, default: &'static CStr) -> Parameter {
    Parameter { name, kind, default: Some(default) }
}

/// What PHP calls; see [`crate::zend::handler`].
pub(crate) type Handler = extern "C" fn(*mut ExecuteData, *mut Zval);

/// One function or method.
pub(crate) struct Signature {
    pub(crate) name: &'static CStr,
    pub(crate) handler: Handler,
    pub(crate) required: usize,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) returns: Option<Type>,
    pub(crate) flags: u32,
}

impl Signature {
    pub(crate) const fn new(
        name: &'static CStr,
        handler: Handler,
        required: usize,
        parameters: &'static [Parameter],
        returns: Type,
    ) -> Self {
        Signature { name, handler, required, parameters, returns: Some(returns), flags: ZEND_ACC_PUBLIC }
    }

    /// A constructor that only the extension may use.
    pub(crate) const fn private_constructor(handler: Handler) -> Self {
        Signature { name: c"__construct", handler, required: 0, parameters: &[], returns: None, flags: ZEND_ACC_PRIVATE }
    }

    fn to_entry(&self) -> FunctionEntry {
        let returns = self.returns.map_or_else(|| ZendType::empty(false, false), Type::to_zend);
        let mut table = Vec::with_capacity(self.parameters.len() + 1);
        // The first entry's name is the number of required parameters: `zend_internal_function_info`.
        table.push(ArgInfo { name: self.required as *const c_char, type_: returns, default_value: ptr::null() });
        table.extend(self.parameters.iter().map(|parameter| ArgInfo {
            name: parameter.name.as_ptr(),
            type_: parameter.kind.to_zend(),
            default_value: parameter.default.map_or(ptr::null(), CStr::as_ptr),
        }));
        let mut entry = FunctionEntry::end();
        entry.fname = self.name.as_ptr();
        entry.handler = Some(self.handler);
        entry.num_args = u32::try_from(self.parameters.len()).unwrap_or(0);
        // The engine borrows the table until the process ends.
        entry.arg_info = table.leak().as_ptr();
        entry.flags |= self.flags;
        entry
    }
}

/// A table that ends as the engine expects.
pub(crate) struct FunctionTable(&'static [FunctionEntry]);

// SAFETY: the table is never written after it was built, and its pointers are static.
unsafe impl Send for FunctionTable {}
// SAFETY: as above.
unsafe impl Sync for FunctionTable {}

impl FunctionTable {
    pub(crate) fn new(signatures: &[Signature]) -> Self {
        let entries: Vec<FunctionEntry> = signatures.iter().map(Signature::to_entry).chain([FunctionEntry::end()]).collect();
        FunctionTable(entries.leak())
    }

    /// Adds the functions to PHP's. Only in MINIT.
    pub(crate) fn register(&self) -> Result<(), &'static str> {
        const MODULE_PERSISTENT: i32 = 1;
        // SAFETY: a terminated table that lives as long as the process.
        match unsafe { zend_register_functions(ptr::null_mut(), self.0.as_ptr(), ptr::null_mut(), MODULE_PERSISTENT) } {
            0 => Ok(()),
            _ => Err("a function of this name exists already"),
        }
    }

    /// Takes them away again. Only in MSHUTDOWN.
    pub(crate) fn unregister(&self) {
        // SAFETY: the table that `register` was given.
        unsafe { zend_unregister_functions(self.0.as_ptr(), -1, ptr::null_mut()) };
    }
}

/// A declared property, typed; [`undefined`] as its default leaves it uninitialized.
pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    pub(crate) flags: u32,
    pub(crate) default: fn() -> Zval,
}

/// A class of this extension. Written in every MINIT: a host may start the engine again in the same
/// process.
pub(crate) struct Class(AtomicPtr<ClassEntry>);

impl Class {
    pub(crate) const fn new() -> Self {
        Class(AtomicPtr::new(ptr::null_mut()))
    }

    /// Makes the class known to PHP. Only in MINIT.
    pub(crate) fn register(
        &self,
        name: &str,
        parent: Option<&'static ClassEntry>,
        methods: &FunctionTable,
        flags: u32,
        properties: &[Property],
    ) -> Result<&'static ClassEntry, &'static str> {
        // SAFETY: all zeroes is how C extensions start a class (`INIT_CLASS_ENTRY`).
        let mut template: zend_class_entry = unsafe { std::mem::zeroed() };
        template.name = ZendStr::new_interned(name, true).into_raw();
        template.info.internal.builtin_functions = methods.0.as_ptr();
        let parent = parent.map_or(ptr::null_mut(), |class| ptr::from_ref(class).cast_mut());
        // SAFETY: the engine copies the template; the method table lives as long as the process.
        let class = unsafe { zend_register_internal_class_ex(&raw mut template, parent) };
        if class.is_null() {
            return Err("a class could not be registered");
        }
        // SAFETY: just registered, and nobody else has it yet.
        unsafe { (*class).ce_flags |= flags };
        for property in properties {
            let name = ZendStr::new_interned(property.name, true).into_raw();
            let (mut default, flags) = ((property.default)(), property.flags.cast_signed());
            // SAFETY: a class of this module, in MINIT; the engine copies the default.
            unsafe { zend_declare_typed_property(class, name, &raw mut default, flags, ptr::null_mut(), property.kind.to_zend()) };
        }
        self.0.store(class, Ordering::Relaxed);
        // SAFETY: it lives until MSHUTDOWN, and the engine guards its own changes to it.
        Ok(unsafe { &*class })
    }

    /// The class; none only if MINIT failed.
    pub(crate) fn entry(&self) -> Option<&'static ClassEntry> {
        // SAFETY: null, or registered in the MINIT before this call.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }
    }
}

/// No value: what a typed property holds before its first assignment.
pub(crate) fn undefined() -> Zval {
    let mut value = Zval::new();
    value.u1.type_info = IS_UNDEF;
    value
}

/// The shared empty array, the only array that may be a default.
pub(crate) fn empty_array() -> Zval {
    ZendEmptyArray.into_zval(true).unwrap_or_default()
}

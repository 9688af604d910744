//! The configuration: layers of settings, checked when a hub is made of them.

use std::ffi::c_char;
use std::path::Path;

use realtime_core::{ConfigBuilder, Source};

use crate::boundary::{call, quiet};
use crate::status::{Failure, rt_status};
use crate::text::required;

/// Settings for a hub. Not for several threads at once.
pub struct rt_config {
    pub(crate) builder: ConfigBuilder,
}

/// Makes a configuration in which everything has its default. Free it with `rt_config_free`. NULL
/// only when memory has run out.
#[unsafe(no_mangle)]
pub extern "C" fn rt_config_new() -> *mut rt_config {
    quiet(std::ptr::null_mut(), || Box::into_raw(Box::new(rt_config { builder: ConfigBuilder::new() })))
}

/// Frees a configuration. NULL is accepted. Hubs that were made of it are not affected.
///
/// # Safety
///
/// `config` came from `rt_config_new` and has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_config_free(config: *mut rt_config) {
    if !config.is_null() {
        // SAFETY: the caller's promise.
        quiet((), || drop(unsafe { Box::from_raw(config) }));
    }
}

/// Adds settings from TOML text. An unknown setting is an error that names the nearest one.
///
/// # Safety
///
/// `config` is NULL or from `rt_config_new`; `toml` is NULL or ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_config_toml(config: *mut rt_config, toml: *const c_char) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let toml = unsafe { required(toml, "toml") }?;
        // SAFETY: the caller's promise.
        unsafe { change(config, |builder| Ok(builder.toml(toml)?)) }
    })
}

/// Adds settings from a TOML file.
///
/// # Safety
///
/// `config` is NULL or from `rt_config_new`; `path` is NULL or ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_config_file(config: *mut rt_config, path: *const c_char) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { required(path, "path") }?;
        // SAFETY: the caller's promise.
        unsafe { change(config, |builder| Ok(builder.file(Path::new(path))?)) }
    })
}

/// Adds the settings from `REALTIME_*` environment variables (`REALTIME_LIMITS__OUTBOX_BYTES`). They
/// are stronger than a file and weaker than `rt_config_set`, whatever the order of the calls.
///
/// # Safety
///
/// `config` is NULL or from `rt_config_new`. No other thread changes the environment meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_config_environment(config: *mut rt_config) -> rt_status {
    // SAFETY: the caller's promise.
    call(|| unsafe {
        let variables = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        change(config, |builder| Ok(builder.environment(variables)))
    })
}

/// Sets one setting by its dotted name, its value as text: `"limits.outbox_bytes"`, `"2097152"`.
/// Stronger than files and the environment.
///
/// # Safety
///
/// `config` is NULL or from `rt_config_new`; the texts are NULL or end with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_config_set(config: *mut rt_config, name: *const c_char, value: *const c_char) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (name, value) = unsafe { (required(name, "name")?, required(value, "value")?) };
        // SAFETY: the caller's promise.
        unsafe { change(config, |builder| Ok(builder.text(Source::Code, name, value)?)) }
    })
}

/// # Safety
///
/// `config` is NULL or from `rt_config_new`, and nobody else uses it meanwhile.
unsafe fn change(config: *mut rt_config, apply: impl FnOnce(ConfigBuilder) -> Result<ConfigBuilder, Failure>) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    let config = unsafe { config.as_mut() }.ok_or_else(|| Failure::null("config"))?;
    // What fails leaves the configuration as it was.
    config.builder = apply(config.builder.clone())?;
    Ok(())
}

//! PHP arrays as configuration trees, and the hub's own structures as PHP arrays.

use ext_php_rs::boxed::ZBox;
use ext_php_rs::convert::IntoZval;
use ext_php_rs::types::{ArrayKey, ZendHashTable, Zval};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::zend;

/// Deeper than any configuration; ends arrays that contain themselves.
const MAX_DEPTH: usize = 16;

/// An array of settings. A list becomes a list, anything else a table.
pub(crate) fn settings(array: &ZendHashTable) -> Result<Map<String, Value>, Failure> {
    table(array, "", 0)
}

fn table(array: &ZendHashTable, path: &str, depth: usize) -> Result<Map<String, Value>, Failure> {
    array
        .iter()
        .map(|(key, value)| {
            let key = match key {
                ArrayKey::Long(index) => index.to_string(),
                other => String::try_from(other).map_err(|_| Failure::config("the name of a setting is not valid UTF-8"))?,
            };
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            Ok((key, setting(value, &path, depth + 1)?))
        })
        .collect()
}

fn setting(value: &Zval, path: &str, depth: usize) -> Result<Value, Failure> {
    let value = value.dereference();
    let refuse = |reason: &str| Failure::config(format!("setting `{path}`: {reason}"));
    if depth > MAX_DEPTH {
        return Err(refuse("nested too deeply"));
    }
    if let Some(array) = value.array() {
        return match array.has_sequential_keys() {
            true => array.values().map(|item| setting(item, path, depth + 1)).collect::<Result<Vec<_>, _>>().map(Value::Array),
            false => table(array, path, depth).map(Value::Object),
        };
    }
    if let Some(text) = value.zend_str() {
        return zend::text_of(text).map(Value::from).ok_or_else(|| refuse("not valid UTF-8"));
    }
    match (value.bool(), value.long(), value.double()) {
        (Some(flag), ..) => Ok(flag.into()),
        (_, Some(number), _) => Ok(number.into()),
        (.., Some(number)) => Ok(number.into()),
        _ if value.is_null() => Ok(Value::Null),
        _ => Err(refuse(&format!("a value of type {} is not a setting", zend::type_name(value)))),
    }
}

/// Counters as PHP's array; what passes PHP's integers becomes a float.
pub(crate) fn to_array(value: &Value) -> Zval {
    match value {
        Value::Null => Zval::null(),
        Value::Bool(flag) => zval(*flag),
        Value::Number(number) => number.as_i64().map_or_else(|| zval(number.as_f64().unwrap_or(f64::INFINITY)), zval),
        Value::String(text) => zval(text.as_str()),
        Value::Array(items) => {
            let mut list = ZendHashTable::new();
            for item in items {
                push(&mut list, to_array(item));
            }
            array(list)
        }
        Value::Object(entries) => {
            let mut table = ZendHashTable::new();
            for (key, value) in entries {
                set(&mut table, key, to_array(value));
            }
            array(table)
        }
    }
}

/// A PHP value; only a string longer than PHP's own limit has none.
pub(crate) fn zval(value: impl IntoZval) -> Zval {
    value.into_zval(false).unwrap_or_default()
}

pub(crate) fn array(table: ZBox<ZendHashTable>) -> Zval {
    let mut value = Zval::new();
    value.set_hashtable(table);
    value
}

pub(crate) fn set(table: &mut ZendHashTable, key: &str, value: Zval) {
    // The table grows or the process ends; there is no other failure.
    let _ = table.insert(key, value);
}

pub(crate) fn push(table: &mut ZendHashTable, value: Zval) {
    let _ = table.push(value);
}

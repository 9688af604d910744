//! The C library: the whole hub for any language that can call C.
//!
//! | module | what it is |
//! | --- | --- |
//! | `boundary` | what every exported function goes through: NULL, panics, the error text |
//! | `status` | what functions return, and which of the core's errors is which |
//! | `fork` | what becomes of a hub in a forked child |
//! | `text` | C's strings and arrays as Rust's, checked |
//! | `config`, `hub`, `publication`, `lists` | the hub's nouns, as `include/realtime.h` has them |
//! | `events` | what happens to connections and channels |
//! | `client` | a hub in another process, over its local socket |
//! | `log` | where log records go |
//!
//! `include/realtime.h` is made from this crate by cbindgen (`make header`); its opening comment,
//! in `cbindgen.toml`, has the conventions.
//!
//! Nothing here runs when the library is loaded, and nothing changes the process: no signal
//! handler, no environment. A fork handler is registered with the first hub or client.
#![allow(non_camel_case_types, reason = "the header's names are C's")]

mod boundary;
mod client;
mod config;
mod events;
mod fork;
mod hub;
mod lists;
mod log;
mod publication;
mod status;
mod text;

pub use boundary::rt_last_error_message;
pub use client::*;
pub use config::*;
pub use events::*;
pub use hub::*;
pub use lists::*;
pub use log::*;
pub use publication::*;
pub use status::*;

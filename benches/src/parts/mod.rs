//! The parts of the benchmark, each a question with a table for an answer.

pub(crate) mod beside;
pub(crate) mod bus;
pub(crate) mod capi;
pub(crate) mod channels;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod php;
pub(crate) mod poller;
pub(crate) mod redis;
pub(crate) mod saturation;
pub(crate) mod sequencing;
pub(crate) mod sinks;

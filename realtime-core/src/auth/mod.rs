//! Who may do what: decided before a shard acts.

pub mod signature;
pub(crate) mod user_data;

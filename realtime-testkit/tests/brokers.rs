//! The suite of every broker, on every broker that is here.

use std::sync::Arc;
use std::time::Duration;

use realtime_core::broker::memory::Memory;
use realtime_testkit::{Delayed, broker_conformance};

broker_conformance!(memory, || Arc::new(Memory::new(1_000, 1_000, 1 << 20).unwrap()), idempotency: true);
broker_conformance!(delayed, || Arc::new(Delayed::new(Duration::from_millis(1))), idempotency: false);
// Without a delay the answers race with the calls.
broker_conformance!(delayed_by_nothing, || Arc::new(Delayed::new(Duration::ZERO)), idempotency: false);

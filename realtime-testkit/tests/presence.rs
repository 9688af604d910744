//! The suite of presence, on every implementation that is here.

use std::sync::Arc;

use realtime_core::presence::memory::Memory;
use realtime_testkit::presence::Late;
use realtime_testkit::presence_conformance;

presence_conformance!(memory, || Arc::new(Memory::default()));
presence_conformance!(late, || Arc::new(Late::default()));

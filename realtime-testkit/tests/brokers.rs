//! The suite of every broker, on every broker that is here.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use realtime_core::broker::memory::Memory;
use realtime_core::broker::redis::Redis;
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::config::{BrokerConfig, Secret};
use realtime_core::history::{Page, Range};
use realtime_core::{BrokerError, Position, Publish};
use realtime_testkit::{DEADLINE, Delayed, RedisServer, broker_conformance, eventually};

broker_conformance!(memory, || Arc::new(Memory::new(1_000, 1_000, 1 << 20).unwrap()), idempotency: true);
broker_conformance!(delayed, || Arc::new(Delayed::new(Duration::from_millis(1))), idempotency: false);
broker_conformance!(redis, OnRedis::start, idempotency: true);
// Without a delay the answers race with the calls.
broker_conformance!(delayed_by_nothing, || Arc::new(Delayed::new(Duration::ZERO)), idempotency: false);

/// A broker with a server of its own, which ends with it.
struct OnRedis(Redis, RedisServer);

impl OnRedis {
    fn start() -> Arc<OnRedis> {
        let server = RedisServer::start();
        let config = BrokerConfig { url: Secret::from(server.url().as_str()), patience: 30, ..BrokerConfig::default() };
        Arc::new(OnRedis(Redis::new(&config).unwrap(), server))
    }
}

impl Broker for OnRedis {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        self.0.start(deliver)?;
        // However slow the machine is: the suite begins when both connections are there.
        eventually("the broker hears", || match self.0.subscribe("warm-up") {
            Reply::Now(answer) => answer.is_ok(),
            Reply::Later(answer) => answer.wait(DEADLINE).is_some_and(|answer| answer.is_ok()),
        });
        Ok(())
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        self.0.publish(publish)
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        self.0.subscribe(channel)
    }

    fn unsubscribe(&self, channel: &str) {
        self.0.unsubscribe(channel);
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        self.0.read(channel, range)
    }

    fn stop(&self) {
        self.0.stop();
        assert_eq!(self.1.command(&["PING"]), "+PONG");
    }
}

//! The suite of every broker, on every broker that is here.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use realtime_core::broker::memory::Memory;
use realtime_core::broker::redis::Redis;
use realtime_core::broker::{Broker, Deliver, Published, Reply};
use realtime_core::config::{BrokerConfig, Secret};
use realtime_core::history::{Page, Range};
use realtime_core::{BrokerError, Position, Publish};
use realtime_testkit::{DEADLINE, Delayed, RedisCluster, RedisSentinels, RedisServer, broker_conformance, eventually};

broker_conformance!(memory, || Arc::new(Memory::new(1_000, 1_000, 1 << 20).unwrap()), idempotency: true);
broker_conformance!(delayed, || Arc::new(Delayed::new(Duration::from_millis(1))), idempotency: false);
broker_conformance!(redis, OnRedis::start, idempotency: true);
broker_conformance!(sentinel, OnRedis::behind_sentinels, idempotency: true);
broker_conformance!(cluster, OnRedis::in_a_cluster, idempotency: true);
// Without a delay the answers race with the calls.
broker_conformance!(delayed_by_nothing, || Arc::new(Delayed::new(Duration::ZERO)), idempotency: false);

/// A broker with servers of its own, which end with it.
struct OnRedis {
    broker: Redis,
    _servers: Box<dyn Any + Send + Sync>,
}

impl OnRedis {
    fn start() -> Arc<OnRedis> {
        let server = RedisServer::start();
        OnRedis::on(&server.url(), server, |_| {})
    }

    /// None of the servers fails, and the replica has what is acknowledged.
    fn behind_sentinels() -> Arc<OnRedis> {
        let servers = RedisSentinels::start(1, 120_000, &[]);
        OnRedis::on(&servers.url(), servers, |config| (config.wait_replicas, config.wait_timeout_ms) = (1, 10_000))
    }

    fn in_a_cluster() -> Arc<OnRedis> {
        let (servers, prefix) = RedisCluster::shared();
        OnRedis::on(&servers.url(), servers, |config| config.prefix = prefix)
    }

    fn on(url: &str, servers: impl Any + Send + Sync, change: impl FnOnce(&mut BrokerConfig)) -> Arc<OnRedis> {
        let mut config = BrokerConfig { url: Secret::from(url), patience: 30, ..BrokerConfig::default() };
        change(&mut config);
        Arc::new(OnRedis { broker: Redis::new(&config).unwrap(), _servers: Box::new(servers) })
    }
}

impl Broker for OnRedis {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        self.broker.start(deliver)?;
        // However slow the machine is: the suite begins when both connections are there.
        eventually("the broker hears", || match self.broker.subscribe("warm-up") {
            Reply::Now(answer) => answer.is_ok(),
            Reply::Later(answer) => answer.wait(DEADLINE).is_some_and(|answer| answer.is_ok()),
        });
        Ok(())
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        self.broker.publish(publish)
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        self.broker.subscribe(channel)
    }

    fn unsubscribe(&self, channel: &str) {
        self.broker.unsubscribe(channel);
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        self.broker.read(channel, range)
    }

    fn stop(&self) {
        self.broker.stop();
    }
}

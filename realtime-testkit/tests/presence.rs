//! The suite of presence, on every implementation that is here.

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use realtime_core::broker::{Broker, Deliver, Reply, redis as broker};
use realtime_core::config::{BrokerConfig, Secret};
use realtime_core::message::ChannelUser;
use realtime_core::presence::memory::Memory;
use realtime_core::presence::redis::Redis;
use realtime_core::presence::{Entered, Entry, Notify, Presence, Present};
use realtime_core::{BrokerError, Position, Publish, User};
use realtime_testkit::presence::Late;
use realtime_testkit::{DEADLINE, RedisCluster, RedisServer, eventually, presence_conformance};

presence_conformance!(memory, || Arc::new(Memory::default()));
presence_conformance!(late, || Arc::new(Late::default()));
presence_conformance!(redis, OnRedis::start);
presence_conformance!(cluster, OnRedis::in_a_cluster);

/// Presence with a server of its own, which ends with it.
struct OnRedis {
    presence: Redis,
    broker: Arc<broker::Redis>,
    _servers: Box<dyn Any + Send + Sync>,
}

/// A node that hears no channel.
struct Deaf;

impl Deliver for Deaf {
    fn deliver(&self, _publish: &Publish<'_>, _position: Position) -> usize {
        0
    }

    fn interrupted(&self, _channel: &str, _position: Position) {}
}

impl OnRedis {
    fn start() -> Arc<OnRedis> {
        let server = RedisServer::start();
        OnRedis::on(&server.url(), "realtime", server)
    }

    fn in_a_cluster() -> Arc<OnRedis> {
        let (servers, prefix) = RedisCluster::shared();
        OnRedis::on(&servers.url(), &prefix, servers)
    }

    fn on(url: &str, prefix: &str, servers: impl Any + Send + Sync) -> Arc<OnRedis> {
        let config = BrokerConfig { url: Secret::from(url), prefix: prefix.into(), patience: 30, ..BrokerConfig::default() };
        let broker = Arc::new(broker::Redis::new(&config).unwrap());
        Arc::new(OnRedis { presence: Redis::new(broker.clone()), broker, _servers: Box::new(servers) })
    }
}

impl Presence for OnRedis {
    fn start(&self, notify: Arc<dyn Notify>) -> Result<(), BrokerError> {
        self.broker.start(Arc::new(Deaf))?;
        self.presence.start(notify)?;
        // However slow the machine is: the suite begins when both connections are there.
        eventually("the channel is heard", || match self.presence.watch("warm-up") {
            Reply::Now(answer) => answer.is_ok(),
            Reply::Later(answer) => answer.wait(DEADLINE).is_some_and(|answer| answer.is_ok()),
        });
        Ok(())
    }

    fn watch(&self, channel: &str) -> Reply<Present> {
        self.presence.watch(channel)
    }

    fn unwatch(&self, channel: &str) {
        self.presence.unwatch(channel);
    }

    fn enter(&self, entry: &Entry<'_>) -> Reply<Entered> {
        self.presence.enter(entry)
    }

    fn leave(&self, channel: &str, user: Option<&User>, grace: Duration) -> Option<Instant> {
        self.presence.leave(channel, user, grace)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        self.presence.expire(now)
    }

    fn users(&self, channel: &str) -> Reply<Vec<ChannelUser>> {
        self.presence.users(channel)
    }

    fn user(&self, channel: &str, id: &str) -> Reply<Option<ChannelUser>> {
        self.presence.user(channel, id)
    }

    fn count(&self, channel: &str) -> Reply<usize> {
        self.presence.count(channel)
    }

    fn stop(&self) {
        self.presence.stop();
    }
}

impl Drop for OnRedis {
    fn drop(&mut self) {
        self.presence.stop();
        self.broker.stop();
    }
}

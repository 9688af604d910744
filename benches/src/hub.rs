//! This hub, embedded in a process that publishes from a thread of its own.

use crate::clock::{Schedule, now_ns};
use crate::control::{Done, Listening, ServerCommand, answer, serve};
use crate::wire::stamped;
use anyhow::Result;
use realtime_core::config::{AppConfig, ChannelPolicy, HistoryPolicy, Secret};
use realtime_core::{Config, Hub, Payload, Publish, PublishError};

/// Longer than any part runs: pings of thousands of idle connections would disturb whoever is measured next to them.
const PING_INTERVAL_MS: u64 = 600_000;

/// The key of the app that Pusher clients connect to.
pub(crate) const KEY: &str = "bench";

/// The channel that keeps what was published.
pub(crate) const KEPT: &str = "kept";

fn history() -> ChannelPolicy {
    ChannelPolicy { pattern: KEPT.to_owned(), history: Some(HistoryPolicy::default()), ..ChannelPolicy::default() }
}

/// Serves until standard input closes. Commands run concurrently, each on its own thread.
pub(crate) fn run(shards: usize, pusher: bool, keeps: bool, redis: &str) -> Result<()> {
    let mut config = Config { listen: "127.0.0.1:0".to_owned(), socket: Some(String::new()), shards, ..Config::default() };
    config.heartbeat.ping_interval_ms = PING_INTERVAL_MS;
    config.broker.url = Secret::from(redis);
    // Only where it is asked for: with it each publication looks for its channel's policy.
    if keeps {
        config.channels.push(history());
    }
    if pusher {
        config.apps.push(AppConfig { name: "default".into(), key: KEY.into(), secret: KEY.into(), ..AppConfig::default() });
    }
    let hub = Hub::start(config)?;
    answer(&Listening { port: hub.local_addr().port(), pid: None })?;
    serve(|command| {
        let hub = hub.clone();
        std::thread::spawn(move || execute(&hub, command).and_then(|done| answer(&done)));
        Ok(())
    })
}

fn execute(hub: &Hub, command: ServerCommand) -> Result<Done> {
    Ok(match command {
        ServerCommand::Publish { id, channel, channels, size, count, interval_us } => {
            let names: Vec<String> = match channels {
                0 => vec![channel],
                many => (0..many).map(|number| format!("{channel}{number}")).collect(),
            };
            let mut done = Done { id, ..Done::default() };
            let schedule = Schedule::new(interval_us);
            for tick in 0..u64::from(count) {
                let mut stamp = schedule.wait(tick);
                for name in &names {
                    let message = stamped(size, stamp);
                    while !accepted(hub, name, &message)? {
                        done.refused += 1;
                    }
                    done.published += 1;
                    stamp = now_ns();
                }
            }
            done
        }
        ServerCommand::Saturate { id, channel, size, ms } => {
            let mut done = Done { id, ..Done::default() };
            let deadline = now_ns() + ms * 1_000_000;
            while now_ns() < deadline {
                if accepted(hub, &channel, &stamped(size, now_ns()))? {
                    done.published += 1;
                } else {
                    done.refused += 1;
                }
            }
            done
        }
        ServerCommand::Collect { id } => Done { id, ..Done::default() },
    })
}

/// Whether the hub took the message; false is `QueueFull`, after its publish timeout.
fn accepted(hub: &Hub, channel: &str, message: &str) -> Result<bool> {
    match hub.publish(&Publish::new(channel, "message", Payload::Text(message))) {
        Ok(_) => Ok(true),
        Err(PublishError::QueueFull { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

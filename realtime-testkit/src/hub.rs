//! A hub for one test, and what its process holds.

use realtime_core::config::{ChannelPolicy, HistoryPolicy, Secret};
use realtime_core::{Config, Hub};

use crate::raw::RawClient;
use crate::wait::{DEADLINE, eventually};

/// A configuration on a free port with two shards, changed by `change`. Its deadlines are a test's: those that a test is
/// about it sets itself, and no other one may end because the machine is slow.
pub fn config(change: impl FnOnce(&mut Config)) -> Config {
    let patience = DEADLINE.as_millis() as u64;
    let mut config = Config { listen: "127.0.0.1:0".into(), shards: 2, publish_timeout_ms: patience, ..Config::default() };
    config.heartbeat.pong_timeout_ms = patience;
    config.limits.handshake_timeout_ms = patience;
    config.limits.outbox_age_ms = patience;
    config.auth.timeout_ms = patience;
    config.auth.callback.timeout_ms = patience;
    config.hooks.timeout_ms = patience;
    config.hooks.lease_ms = patience;
    config.broker.patience = 30;
    change(&mut config);
    config
}

/// Starts a hub with [`config`].
pub fn start(change: impl FnOnce(&mut Config)) -> Hub {
    Hub::start(config(change)).unwrap()
}

/// Starts a hub with [`config`] on what `url` names, and waits until it has reached that with all its connections, however
/// slow the machine is.
pub fn on_broker(url: &str, change: impl FnOnce(&mut Config)) -> Hub {
    let hub = start(|config| {
        config.broker.url = Secret::from(url);
        change(config);
    });
    let (mut clients, mut looks) = (Vec::new(), 0);
    eventually("the hub hears", || {
        if looks % 100 == 0 {
            let mut client = RawClient::tcp(hub.local_addr());
            client.upgrade("/ws/warm-up");
            clients.push(client);
        }
        looks += 1;
        hub.channels().iter().any(|channel| channel.name == "warm-up")
    });
    hub
}

/// A policy that lets clients publish to the channels that match.
pub fn client_events(pattern: &str) -> ChannelPolicy {
    ChannelPolicy { pattern: pattern.into(), client_events: true, ..ChannelPolicy::default() }
}

/// A policy that keeps so many publications of the channels that match.
pub fn history(pattern: &str, size: usize) -> ChannelPolicy {
    let history = Some(HistoryPolicy { size, ..HistoryPolicy::default() });
    ChannelPolicy { pattern: pattern.into(), history, ..ChannelPolicy::default() }
}

/// The same, and pages of Pusher clients go on where they were, however long they were away.
pub fn resumed(pattern: &str, size: usize) -> ChannelPolicy {
    ChannelPolicy { resume_ms: 86_400_000, ..history(pattern, size) }
}

/// Names of this process's threads.
pub fn threads() -> Vec<String> {
    let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|entry| {
        // A thread may end between the listing and the read.
        std::fs::read_to_string(entry.ok()?.path().join("comm")).ok()
    });
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// How many descriptors this process holds.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

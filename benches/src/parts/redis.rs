//! What a Redis between the hubs costs, and how fast clients have what they missed.

use crate::clock::now_ns;
use crate::control::{Collected, Dialect, LoadCommand};
use crate::hub::KEPT;
use crate::machine::cpu_ns;
use crate::report::{Metric, Part, Row, Target, median};
use crate::session::{CHANNEL, Contender, Load, Options, Server, node, own, progress};
use anyhow::{Context, Result, ensure};
use realtime_testkit::RedisServer;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

const MEMORY: &str = "hub";
const ONE: &str = "hub, Redis, same node";
const TWO: &str = "hub, Redis, other node";
const SOCKETIO: &str = "Socket.IO, Redis adapter, other node";
const SIZE: usize = 100;
/// Latency: messages and the time between them.
const MESSAGES: u32 = 50;
const INTERVAL_US: u64 = 20_000;
/// Flood: subscribers, and how many messages each contender is given.
const SUBSCRIBERS: usize = 1_000;
const FLOOD: [(&str, u32); 4] = [(MEMORY, 4_000), (ONE, 4_000), (TWO, 4_000), (SOCKETIO, 200)];
/// Recovery: clients, and what each has missed.
const CLIENTS: usize = 2_000;
const MISSED: u32 = 100;

/// Servers, of which the first is published to and the last has the subscribers.
struct Cluster {
    name: &'static str,
    servers: Vec<Server>,
    load: Load,
    subscribers: usize,
}

impl Cluster {
    fn start(name: &'static str, redis: &RedisServer, options: &Options, subscribers: usize) -> Result<Self> {
        let start = || -> Result<Self> {
            let count = if [TWO, SOCKETIO].contains(&name) { 2 } else { 1 };
            let servers = (0..count).map(|_| server(name, redis, options)).collect::<Result<Vec<_>>>()?;
            let contender = if name == SOCKETIO { Contender::Socketio } else { Contender::Hub };
            let port = servers.last().context("a server")?.port;
            let load = Load::start(&contender.subscribers(port, subscribers, options.envelope))?;
            Ok(Self { name, servers, load, subscribers })
        };
        start().with_context(|| format!("{name} with {subscribers} subscribers"))
    }

    fn publish(&mut self, count: u32, interval_us: u64) -> Result<Collected> {
        self.load.reset(true)?;
        self.servers[0].start_publishing(CHANNEL, 0, SIZE, count, interval_us)?;
        self.servers[0].done()?;
        self.load.collect(u64::from(count) * self.subscribers as u64).with_context(|| self.name)
    }
}

fn server(name: &'static str, redis: &RedisServer, options: &Options) -> Result<Server> {
    let shards = options.shards.to_string();
    let command = match name {
        SOCKETIO => {
            let mut command = node(options, "socketio.js");
            command.arg(redis.port().to_string());
            command
        }
        MEMORY => own(&["hub", "--keep", "--shards", &shards])?,
        _ => own(&["hub", "--keep", "--shards", &shards, "--redis", &redis.url()])?,
    };
    Server::from_command(name, command)
}

/// What a message's way through Redis adds to its latency.
pub(crate) fn added(options: &Options) -> Result<Part> {
    let load = "1 x 100 B";
    let names = [MEMORY, ONE, TWO, SOCKETIO];
    let redis = RedisServer::start();
    let mut clusters = names.iter().map(|name| Cluster::start(name, &redis, options, 1)).collect::<Result<Vec<_>>>()?;
    let mut latencies = vec![Vec::new(); names.len()];
    for cluster in &mut clusters {
        cluster.publish(5, INTERVAL_US)?;
    }
    for round in 0..options.rounds {
        progress(format_args!("redis: latency, round {} of {}", round + 1, options.rounds));
        for (cluster, latencies) in clusters.iter_mut().zip(&mut latencies) {
            let collected = cluster.publish(MESSAGES, INTERVAL_US)?;
            latencies.push(median(&collected.messages.iter().map(|message| message.last_ns as f64 / 1000.0).collect::<Vec<_>>()));
        }
    }
    let rows = names.iter().zip(latencies).map(|(name, latencies)| row(load, name, vec![Metric::new("median", "us", latencies)]));
    let mut part = Part {
        name: "redis-latency",
        title: "From publishing to one subscriber, through Redis",
        baseline: MEMORY,
        rows: rows.collect(),
        targets: Vec::new(),
    };
    for name in [ONE, TWO] {
        let more = (part.median(load, name, "median") - part.median(load, MEMORY, "median")) / 1000.0;
        part.targets.push(Target::at_most(format!("{name}: added to the median latency, ms"), more, 0.5));
    }
    Ok(part)
}

/// How many deliveries a second are made of what comes through Redis.
pub(crate) fn flood(options: &Options) -> Result<Part> {
    let load = "1000 x 100 B";
    let redis = RedisServer::start();
    let mut clusters = FLOOD.iter().map(|(name, _)| Cluster::start(name, &redis, options, SUBSCRIBERS)).collect::<Result<Vec<_>>>()?;
    let mut rates = vec![Vec::new(); FLOOD.len()];
    let mut costs = vec![Vec::new(); FLOOD.len()];
    for round in 0..options.rounds {
        progress(format_args!("redis: flood, round {} of {}", round + 1, options.rounds));
        for (at, (cluster, (_, count))) in clusters.iter_mut().zip(FLOOD).enumerate() {
            let before = cpu_ns(redis.pid())?;
            let collected = cluster.publish(count, 0)?;
            costs[at].push((cpu_ns(redis.pid())? - before) as f64 / f64::from(count));
            let begin = collected.messages.iter().map(|message| message.stamp_ns).min().context("messages")?;
            let end = collected.messages.iter().map(|message| message.stamp_ns + message.last_ns).max().context("messages")?;
            rates[at].push(collected.deliveries as f64 * 1e9 / (end - begin) as f64);
        }
    }
    let rows = FLOOD.iter().zip(rates).zip(costs).map(|(((name, _), rates), costs)| {
        row(load, name, vec![Metric::new("deliveries", "1/s", rates), Metric::new("CPU of Redis per message", "ns", costs)])
    });
    let mut part = Part {
        name: "redis-flood",
        title: "Messages as fast as one publisher gets rid of them, through Redis",
        baseline: MEMORY,
        rows: rows.collect(),
        targets: Vec::new(),
    };
    let ratio = part.ratio(load, "deliveries", TWO, SOCKETIO);
    part.targets.push(Target::at_least("deliveries/s through Redis, against Socket.IO's adapter", ratio, 2.0));
    Ok(part)
}

/// How long it takes until clients that come back have what they missed.
pub(crate) fn recovery(options: &Options) -> Result<Part> {
    let load = "2000 clients, 100 missed";
    let names = [MEMORY, ONE];
    let redis = RedisServer::start();
    let mut times = vec![Vec::new(); names.len()];
    let mut connecting = vec![Vec::new(); names.len()];
    for round in 0..options.rounds {
        progress(format_args!("redis: recovery, round {} of {}", round + 1, options.rounds));
        for (at, name) in names.iter().enumerate() {
            let mut hub = server(name, &redis, options)?;
            let position = position(hub.port)?;
            hub.start_publishing(KEPT, 0, SIZE, MISSED, 100)?;
            hub.done()?;
            let recover = json!({"action": "subscribe", "channel": KEPT, "recover": position});
            let started = now_ns();
            let mut clients = Load::start(&connect(hub.port, recover.to_string()))?;
            connecting[at].push((now_ns() - started) as f64 / 1e6);
            let collected = clients.collect(CLIENTS as u64 * u64::from(MISSED)).with_context(|| format!("{name}, recovery"))?;
            ensure!(collected.deliveries == CLIENTS as u64 * u64::from(MISSED), "{name} sent something twice");
            times[at].push((now_ns() - started) as f64 / 1e6);
        }
    }
    let rows = names.iter().zip(times).zip(connecting).map(|((name, times), connecting)| {
        row(load, name, vec![Metric::new("all connected after", "ms", connecting), Metric::new("all have everything after", "ms", times)])
    });
    Ok(Part {
        name: "redis-recovery",
        title: "Clients that all come back at once, and what they missed",
        baseline: MEMORY,
        rows: rows.collect(),
        targets: Vec::new(),
    })
}

fn row(load: &str, contender: &str, metrics: Vec<Metric>) -> Row {
    Row { load: load.to_owned(), contender: contender.to_owned(), metrics }
}

fn connect(port: u16, subscribe: String) -> LoadCommand {
    LoadCommand::Connect {
        port,
        path: "/ws".to_owned(),
        count: CLIENTS,
        modulo: 1,
        dialect: Dialect::Websocket,
        send: vec![subscribe],
        greetings: 2,
    }
}

/// Where the channel with a history stands, as a subscriber is told.
fn position(port: u16) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(
        format!(
            "GET /ws/{KEPT} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let got = stream.read(&mut buffer)?;
        ensure!(got > 0, "not subscribed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..got]);
        let text = String::from_utf8_lossy(&seen);
        let told = text.find(r#"{"type":"subscribed""#).map(|at| &text[at..]);
        if let Some(told) = told
            && let Some(end) = told.find('}')
        {
            let told: serde_json::Value = serde_json::from_str(&told[..=end])?;
            return Ok(json!({"epoch": told["epoch"], "offset": told["offset"]}));
        }
    }
}

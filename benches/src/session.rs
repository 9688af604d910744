//! A contender's server and a load generator connected to it, kept open from round to round.

use crate::control::{Collected, Dialect, Done, Listening, LoadCommand, Peer, ServerCommand, Snapshot};
use crate::hub::KEY;
use crate::wire::Envelope;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longer than the slowest contender takes for its messages.
const PATIENCE: Duration = Duration::from_secs(120);
/// The channel that everybody subscribes to.
pub(crate) const CHANNEL: &str = "bench";

/// The command line of one benchmark run.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) envelope: Envelope,
    /// Shards of the hub; 0 is its default, one per core.
    pub(crate) shards: usize,
    /// The contenders of parts that compare several; empty is all.
    pub(crate) only: Vec<Contender>,
    /// The `benches` directory.
    pub(crate) home: PathBuf,
    /// The PHP extension.
    pub(crate) extension: PathBuf,
    /// The extension of `benches/php-floor`.
    pub(crate) floor_extension: PathBuf,
    /// The program from `c/publish.c`.
    pub(crate) publish: PathBuf,
    /// The program `realtime`.
    pub(crate) server: PathBuf,
}

impl Options {
    /// Those of a part's contenders that the command line leaves in.
    pub(crate) fn contenders(&self, all: &[Contender]) -> Vec<Contender> {
        all.iter().copied().filter(|contender| self.only.is_empty() || self.only.contains(contender)).collect()
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Floor,
    /// The floor with ten messages in each write: what coalescing alone could give.
    FloorTen,
    Naive,
    Ws,
    Socketio,
    Hub,
    /// The hub with clients that speak as pusher-js does.
    Pusher,
}

impl Contender {
    /// The word for it on the command line.
    pub(crate) fn from_word(word: &str) -> Result<Self> {
        Ok(match word {
            "floor" => Self::Floor,
            "floor10" => Self::FloorTen,
            "naive" => Self::Naive,
            "ws" => Self::Ws,
            "socketio" => Self::Socketio,
            "hub" => Self::Hub,
            "pusher" => Self::Pusher,
            other => bail!("unknown contender {other}"),
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::FloorTen => "floor, 10 a write",
            Self::Naive => "naive tungstenite",
            Self::Ws => "Node ws",
            Self::Socketio => "Socket.IO",
            Self::Hub => "hub",
            Self::Pusher => "hub, Pusher",
        }
    }

    fn command(self, options: &Options) -> Result<Command> {
        let envelope = match options.envelope {
            Envelope::Native => "native",
            Envelope::Raw => "raw",
        };
        Ok(match self {
            Self::Floor => own(&["floor", "--envelope", envelope])?,
            Self::FloorTen => own(&["floor", "--envelope", envelope, "--batch", "10"])?,
            Self::Naive => own(&["naive", "--envelope", envelope])?,
            Self::Hub => own(&["hub", "--shards", &options.shards.to_string()])?,
            Self::Pusher => own(&["hub-pusher", "--shards", &options.shards.to_string()])?,
            Self::Ws => node(options, "ws.js"),
            Self::Socketio => node(options, "socketio.js"),
        })
    }

    /// How `count` subscribers of [`CHANNEL`] connect.
    pub(crate) fn subscribers(self, port: u16, count: usize, envelope: Envelope) -> LoadCommand {
        let mut send = Vec::new();
        let (path, dialect, greetings) = match (self, envelope) {
            (Self::Pusher, _) => {
                send.push(format!(r#"{{"event":"pusher:subscribe","data":{{"auth":"","channel":"{CHANNEL}"}}}}"#));
                (format!("/app/{KEY}?protocol=7&client=js&version=8.6.0&flash=false"), Dialect::Websocket, 2)
            }
            (Self::Socketio, _) => ("/socket.io/?EIO=4&transport=websocket".to_owned(), Dialect::Socketio, 0),
            (Self::Hub, Envelope::Native) => (format!("/ws/{CHANNEL}"), Dialect::Websocket, 2),
            (Self::Hub, Envelope::Raw) => (format!("/ws/{CHANNEL}?envelope=raw"), Dialect::Websocket, 0),
            _ => ("/".to_owned(), Dialect::Websocket, 0),
        };
        LoadCommand::Connect { port, path, count, modulo: 1, dialect, send, greetings }
    }
}

/// This executable with other arguments.
pub(crate) fn own(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

pub(crate) fn node(options: &Options, script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg("--expose-gc").arg(options.home.join("node").join(script));
    command
}

/// Starts a trivial HTTP server for the PHP part; the answer is its process and port.
pub(crate) fn http_server(home: &Path) -> Result<(Peer, u16)> {
    let mut command = Command::new("node");
    command.arg(home.join("node/http.js"));
    let mut server = Peer::spawn("http", command)?;
    let listening: Listening = server.receive(PATIENCE)?;
    Ok((server, listening.port))
}

/// A running server.
pub(crate) struct Server {
    pub(crate) peer: Peer,
    pub(crate) port: u16,
    /// The process that has the hub, where it is not `peer`.
    pub(crate) hub_pid: u32,
    next_id: u64,
}

impl Server {
    pub(crate) fn start(contender: Contender, options: &Options) -> Result<Self> {
        Self::from_command(contender.name(), contender.command(options)?)
    }

    pub(crate) fn from_command(name: &str, command: Command) -> Result<Self> {
        let mut peer = Peer::spawn(name, command)?;
        let listening: Listening = peer.receive(PATIENCE)?;
        let hub_pid = listening.pid.unwrap_or(peer.pid());
        Ok(Self { peer, port: listening.port, hub_pid, next_id: 0 })
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends a `Publish` without waiting; the answer is read with [`Server::done`].
    pub(crate) fn start_publishing(&mut self, channel: &str, channels: u32, size: usize, count: u32, interval_us: u64) -> Result<()> {
        let id = self.id();
        self.peer.send(&ServerCommand::Publish { id, channel: channel.to_owned(), channels, size, count, interval_us })
    }

    pub(crate) fn start_saturating(&mut self, size: usize, ms: u64) -> Result<()> {
        let id = self.id();
        self.peer.send(&ServerCommand::Saturate { id, channel: CHANNEL.to_owned(), size, ms })
    }

    pub(crate) fn collect_garbage(&mut self) -> Result<()> {
        let id = self.id();
        self.peer.send(&ServerCommand::Collect { id })?;
        self.done().map(drop)
    }

    pub(crate) fn done(&mut self) -> Result<Done> {
        self.peer.receive(PATIENCE)
    }
}

/// A load generator process.
pub(crate) struct Load {
    peer: Peer,
}

impl Load {
    /// Starts the process and connects its subscribers.
    pub(crate) fn start(connect: &LoadCommand) -> Result<Self> {
        Self::from_command(own(&["load"])?, connect)
    }

    /// A load generator that runs as soon as it has something to read, before whoever shares the processor with it: it stands
    /// for another machine. Where the system does not allow that, one like any other.
    pub(crate) fn start_first(connect: &LoadCommand) -> Result<Self> {
        let first = ["--fifo", "1"];
        let allowed = Command::new("chrt").args(first).arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !allowed {
            progress(format_args!(
                "this user may not have real-time processes: a small channel's receiver waits for its turn like any other"
            ));
            return Self::start(connect);
        }
        let mut command = Command::new("chrt");
        command.args(first).arg(std::env::current_exe()?).arg("load");
        Self::from_command(command, connect)
    }

    fn from_command(command: Command, connect: &LoadCommand) -> Result<Self> {
        let mut load = Self { peer: Peer::spawn("load generator", command)? };
        load.connect(connect)?;
        Ok(load)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.peer.pid()
    }

    /// Stops it until [`Load::resume`]: a crowd that stands for other machines takes nothing from this one while it is measured. What is sent
    /// to it waits in its sockets.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process")?;
        kill_process(pid, signal).context("load generator")
    }

    pub(crate) fn connect(&mut self, connect: &LoadCommand) -> Result<()> {
        let answer: Value = self.peer.ask_value(connect, PATIENCE)?;
        ensure!(answer["ready"].is_u64(), "connecting: {answer}");
        Ok(())
    }

    /// Forgets what was counted, and returns when that is done.
    pub(crate) fn reset(&mut self, stamps: bool) -> Result<()> {
        self.peer.send(&LoadCommand::Reset { stamps })?;
        self.snapshot().map(drop)
    }

    pub(crate) fn snapshot(&mut self) -> Result<Snapshot> {
        self.peer.ask(&LoadCommand::Snapshot, PATIENCE)
    }

    /// Waits for exactly the expected deliveries.
    pub(crate) fn collect(&mut self, deliveries: u64) -> Result<Collected> {
        let command = LoadCommand::Collect { deliveries, timeout_ms: 60_000 };
        let collected: Collected = self.peer.ask(&command, PATIENCE)?;
        ensure!(
            collected.complete && collected.closed == 0,
            "{} of {deliveries} deliveries arrived, {} connections were closed",
            collected.deliveries,
            collected.closed
        );
        Ok(collected)
    }
}

/// A server with its subscribers.
pub(crate) struct Session {
    pub(crate) contender: Contender,
    pub(crate) server: Server,
    pub(crate) load: Load,
    subscribers: usize,
}

impl Session {
    pub(crate) fn start(contender: Contender, options: &Options, subscribers: usize) -> Result<Self> {
        let start = || -> Result<Self> {
            let server = Server::start(contender, options)?;
            let load = Load::start(&contender.subscribers(server.port, subscribers, options.envelope))?;
            Ok(Self { contender, server, load, subscribers })
        };
        start().with_context(|| format!("{} with {subscribers} subscribers", contender.name()))
    }

    /// Connects further subscribers.
    pub(crate) fn add(&mut self, count: usize, options: &Options) -> Result<()> {
        self.load.connect(&self.contender.subscribers(self.server.port, count, options.envelope))?;
        self.subscribers += count;
        Ok(())
    }

    /// Publishes on schedule and waits until every subscriber has every message.
    pub(crate) fn publish(&mut self, size: usize, count: u32, interval_us: u64) -> Result<Collected> {
        let mut publish = || -> Result<Collected> {
            self.load.reset(true)?;
            self.server.start_publishing(CHANNEL, 0, size, count, interval_us)?;
            self.server.done()?;
            self.load.collect(u64::from(count) * self.subscribers as u64)
        };
        publish().with_context(|| format!("{}, {count} messages of {size} bytes to {}", self.contender.name(), self.subscribers))
    }
}

/// Starts one session a contender.
pub(crate) fn sessions(contenders: &[Contender], options: &Options, subscribers: usize) -> Result<Vec<Session>> {
    contenders.iter().map(|contender| Session::start(*contender, options, subscribers)).collect()
}

/// Tells whoever watches what is being measured.
pub(crate) fn progress(text: impl std::fmt::Display) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("  {text}\n").as_bytes());
}

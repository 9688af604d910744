//! JSON lines between the driver and its children: one command a line in, one answer a line out.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// What a contender can be told to do. Each is answered by [`Done`] with the same `id`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub(crate) enum ServerCommand {
    /// Publishes `count` stamped messages, `interval_us` apart.
    Publish {
        id: u64,
        /// The channel, or the prefix when `channels` is not 0.
        channel: String,
        /// With n > 0 every tick publishes one message to each of `{channel}0` to `{channel}n-1`.
        channels: u32,
        size: usize,
        count: u32,
        interval_us: u64,
    },
    /// Publishes as fast as messages are accepted, for `ms` milliseconds.
    Saturate { id: u64, channel: String, size: usize, ms: u64 },
    /// Gives back what memory the runtime can give back, before resident memory is read.
    Collect { id: u64 },
}

/// A contender's answer to a command.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) id: u64,
    /// Messages accepted.
    pub(crate) published: u64,
    /// Publish calls that were refused (and tried again, or given up at the end).
    pub(crate) refused: u64,
}

/// A contender's first line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Listening {
    pub(crate) port: u16,
    /// Of the process that has the hub, if it is another one.
    #[serde(default)]
    pub(crate) pid: Option<u32>,
}

/// What the load generator can be told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub(crate) enum LoadCommand {
    /// Opens `count` connections; answered by `{"ready": n}` when all are subscribed.
    Connect {
        port: u16,
        /// The request's path. `{n}` is the number of the connection modulo `modulo`.
        path: String,
        count: usize,
        modulo: usize,
        dialect: Dialect,
        /// Frames to send once open, with `{n}` as in `path`.
        send: Vec<String>,
        /// Text frames that must arrive before the connection counts as ready.
        greetings: usize,
    },
    /// Forgets what was counted.
    Reset {
        /// Whether the stamps of messages are read. Without, frames are only counted.
        stamps: bool,
    },
    /// Waits until `deliveries` messages arrived since the reset, or `timeout_ms` passed; answered by [`Collected`].
    Collect { deliveries: u64, timeout_ms: u64 },
    /// Answered at once by [`Snapshot`].
    Snapshot,
}

/// The protocol that the generator speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dialect {
    /// Text frames are messages.
    Websocket,
    /// Engine.IO v4 packets; `42[…]` are messages.
    Socketio,
}

/// The counters of the load generator at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) at_ns: u64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    pub(crate) open: usize,
    pub(crate) closed: u64,
}

/// What arrived, message by message.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Collected {
    pub(crate) complete: bool,
    pub(crate) deliveries: u64,
    pub(crate) closed: u64,
    /// In order of publishing.
    pub(crate) messages: Vec<Arrival>,
}

/// One message's way to its subscribers.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Arrival {
    pub(crate) stamp_ns: u64,
    pub(crate) received: usize,
    pub(crate) median_ns: u64,
    pub(crate) last_ns: u64,
}

/// Writes one line to standard output, at once.
pub(crate) fn answer(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}

/// Runs `handle` for each command line of standard input until it closes, which is how the driver ends a child.
pub(crate) fn serve(mut handle: impl FnMut(ServerCommand) -> Result<()>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        handle(serde_json::from_str(&line?).context("command line")?)?;
    }
    Ok(())
}

/// A child process that speaks JSON lines. Dropping it closes its standard input and waits for it.
pub(crate) struct Peer {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Peer {
    /// Starts `command` with its standard streams piped (errors go to ours).
    pub(crate) fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("piped stdout")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, stdin, lines })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, command: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().context("standard input is open")?;
        stdin.write_all(&line).with_context(|| format!("writing to {}", self.name))
    }

    /// The next line, decoded.
    pub(crate) fn receive<T: for<'de> Deserialize<'de>>(&mut self, timeout: Duration) -> Result<T> {
        let line = match self.lines.recv_timeout(timeout) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!("{} did not answer within {timeout:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{} ended: {}", self.name, self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string()))
            }
        };
        serde_json::from_str(&line).with_context(|| format!("answer of {}: {line}", self.name))
    }

    /// Sends a command and waits for its answer.
    pub(crate) fn ask<T: for<'de> Deserialize<'de>>(&mut self, command: &impl Serialize, timeout: Duration) -> Result<T> {
        self.send(command)?;
        self.receive(timeout)
    }

    /// As [`Peer::ask`], for answers whose fields differ.
    pub(crate) fn ask_value(&mut self, command: &impl Serialize, timeout: Duration) -> Result<Value> {
        self.ask(command, timeout)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while std::time::Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

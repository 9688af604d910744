//! What a call costs from C, beside the same call from Rust.

use crate::report::{Metric, Part, Row, Target};
use crate::session::{Options, progress};
use anyhow::{Context, Result, ensure};
use realtime_core::{Config, Hub, Payload, Publish};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// As in `c/publish.c`.
const BURST: u32 = 1_000;
const BURSTS: u32 = 20;
const SIZE: usize = 100;
const LOAD: &str = "burst of 1,000, 100 B";
const METRIC: &str = "per call";
const RUST: &str = "Hub::publish";
const C: &str = "rt_hub_publish";

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    progress("capi: publishing from C and from Rust");
    let hub = Hub::start(Config { listen: "127.0.0.1:0".to_owned(), socket: Some(String::new()), ..Config::default() })?;
    let mut program = Program::start(options)?;
    for port in [hub.local_addr().port(), program.port] {
        subscribe(port)?;
    }
    let (mut rust, mut c) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        rust.push(burst(&hub)?);
        c.push(program.burst()?);
    }
    program.end()?;
    let row = |contender: &str, figures| Row {
        load: LOAD.to_owned(),
        contender: contender.to_owned(),
        metrics: vec![Metric::new(METRIC, "ns", figures)],
    };
    let mut part = Part {
        name: "capi",
        title: "Publishing to one subscriber",
        baseline: RUST,
        rows: vec![row(RUST, rust), row(C, c)],
        targets: Vec::new(),
    };
    let more = part.median(LOAD, C, METRIC) - part.median(LOAD, RUST, METRIC);
    part.targets.push(Target::at_most("a call from C costs more than one from Rust by, ns", more, 50.0));
    Ok(part)
}

/// `c/publish.c`, running.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Program {
    fn start(options: &Options) -> Result<Self> {
        let mut child = Command::new(&options.publish)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}", options.publish.display()))?;
        let input = child.stdin.take().context("no pipe to the program")?;
        let mut output = BufReader::new(child.stdout.take().context("no pipe from the program")?);
        let port = line(&mut output)?.parse()?;
        Ok(Program { child, input, output, port })
    }

    fn burst(&mut self) -> Result<f64> {
        writeln!(self.input, "burst")?;
        Ok(line(&mut self.output)?.parse()?)
    }

    fn end(self) -> Result<()> {
        let Program { mut child, input, .. } = self;
        drop(input);
        ensure!(child.wait()?.success(), "the C program failed");
        Ok(())
    }
}

fn line(output: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(output.read_line(&mut line)? > 0, "the C program has ended");
    Ok(line.trim().to_owned())
}

/// Adds a subscriber that takes everything and looks at nothing.
fn subscribe(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(
        b"GET /ws/c HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut seen = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    while !seen.windows(12).any(|window| window == b"\"subscribed\"") {
        let got = stream.read(&mut buffer)?;
        ensure!(got > 0, "not subscribed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..got]);
    }
    std::thread::spawn(move || while stream.read(&mut buffer).is_ok_and(|got| got > 0) {});
    Ok(())
}

/// The mean time of a call, in nanoseconds.
fn burst(hub: &Hub) -> Result<f64> {
    let payload = "x".repeat(SIZE);
    let mut spent = Duration::ZERO;
    for _ in 0..BURSTS {
        let start = Instant::now();
        for _ in 0..BURST {
            hub.publish(&Publish::new("c", "message", Payload::Text(&payload)))?;
        }
        spent += start.elapsed();
        loop {
            std::thread::sleep(Duration::from_micros(200));
            if hub.stats().ingress_bytes == 0 {
                break;
            }
        }
    }
    Ok(spent.as_nanos() as f64 / f64::from(BURSTS * BURST))
}

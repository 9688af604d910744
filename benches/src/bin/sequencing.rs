//! Which sequencing point gives a channel its one order sooner: a home shard, or a lock held only for the next offset?
//!
//! Eight threads publish on one channel whose subscribers live on four shards. A shard is a thread with an inbox: a locked queue, and a
//! flag that says whether it sleeps. Nothing is encoded or written, so that the hand-off is all there is to see.
//!
//! - **home shard**: publishers push to the home shard's inbox; the home shard gives the offset and forwards to the other inboxes.
//! - **home shard, receipt**: the same, and the publisher waits for its offset, as a publish call that returns a position must.
//! - **striped lock**: publishers take the channel's lock, give the offset, and push to every interested inbox before releasing it; they
//!   know the offset when the call returns.
//!
//! All keep one order: every shard sees offsets 1, 2, 3, …, and the benchmark fails if one does not.

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

const PUBLISHERS: usize = 8;
const SHARDS: usize = 4;
const HOME: usize = 0;
/// Publications that one thread sends without pause in the loaded run.
const LOADED_MESSAGES: u64 = 50_000;
/// The paced run: every publisher sends one message in this interval, as a busy application would.
const PACE: Duration = Duration::from_millis(2);
const PACED_MESSAGES: u64 = 250;
/// Ingress is bounded in a real hub as well: publishers wait while the slowest shard is this far behind.
const MAX_BEHIND: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Design {
    HomeShard,
    HomeShardReceipt,
    StripedLock,
}

impl Design {
    fn name(self) -> &'static str {
        match self {
            Self::HomeShard => "home shard",
            Self::HomeShardReceipt => "home shard, receipt",
            Self::StripedLock => "striped lock",
        }
    }

    fn has_home(self) -> bool {
        self != Self::StripedLock
    }
}

#[derive(Clone)]
struct Job {
    /// 0 until the sequencing point has given one.
    offset: u64,
    published: Instant,
    payload: Arc<[u8]>,
    /// Who waits for the offset.
    receipt: Option<Arc<Receipt>>,
}

/// Where the home shard leaves a publisher's offset.
struct Receipt {
    offset: AtomicU64,
    publisher: Thread,
}

impl Receipt {
    fn new() -> Self {
        Self { offset: AtomicU64::new(0), publisher: thread::current() }
    }

    fn give(&self, offset: u64) {
        self.offset.store(offset, Ordering::Release);
        self.publisher.unpark();
    }

    fn wait(&self) {
        while self.offset.swap(0, Ordering::Acquire) == 0 {
            thread::park();
        }
    }
}

/// A shard's inbox: what publishers and other shards leave for it.
#[derive(Default)]
struct Inbox {
    jobs: Mutex<Vec<Job>>,
    sleeping: AtomicBool,
}

impl Inbox {
    /// Leaves jobs and wakes the shard if it sleeps. The flag is read after the push, and the shard looks again after setting it, so one of
    /// the two always sees the other.
    fn push(&self, jobs: impl IntoIterator<Item = Job>, shard: &Thread) {
        lock(&self.jobs).extend(jobs);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            shard.unpark();
        }
    }

    /// Takes all jobs; parks while there are none and the run goes on. False at its end.
    fn take(&self, taken: &mut Vec<Job>, running: &AtomicBool) -> bool {
        taken.clear();
        loop {
            std::mem::swap(&mut *lock(&self.jobs), taken);
            if !taken.is_empty() {
                return true;
            }
            if !running.load(Ordering::Acquire) {
                return false;
            }
            self.sleeping.store(true, Ordering::SeqCst);
            if lock(&self.jobs).is_empty() && running.load(Ordering::Acquire) {
                thread::park();
            }
            self.sleeping.store(false, Ordering::SeqCst);
        }
    }
}

/// One channel, its shards, and the sequencing point of either design.
struct Bed {
    design: Design,
    inboxes: [Inbox; SHARDS],
    shards: Mutex<Vec<Thread>>,
    /// The striped lock with the channel's last offset inside; the home shard counts on its own.
    last_offset: Mutex<u64>,
    delivered: [AtomicU64; SHARDS],
    published: AtomicU64,
    running: AtomicBool,
}

impl Bed {
    fn new(design: Design) -> Self {
        Self {
            design,
            inboxes: Default::default(),
            shards: Mutex::default(),
            last_offset: Mutex::default(),
            delivered: Default::default(),
            published: AtomicU64::new(0),
            running: AtomicBool::new(true),
        }
    }

    /// Publishes; returns how long the call took.
    fn publish(&self, payload: &Arc<[u8]>, receipt: &Arc<Receipt>, shards: &[Thread]) -> Duration {
        let published = Instant::now();
        let mut job = Job { offset: 0, published, payload: Arc::clone(payload), receipt: None };
        match self.design {
            Design::HomeShard => self.inboxes[HOME].push([job], &shards[HOME]),
            Design::HomeShardReceipt => {
                job.receipt = Some(Arc::clone(receipt));
                self.inboxes[HOME].push([job], &shards[HOME]);
                receipt.wait();
            }
            Design::StripedLock => {
                let mut last = lock(&self.last_offset);
                *last += 1;
                job.offset = *last;
                for (inbox, shard) in self.inboxes.iter().zip(shards) {
                    inbox.push([job.clone()], shard);
                }
            }
        }
        published.elapsed()
    }

    /// How far the slowest shard is behind the publishers.
    fn behind(&self) -> u64 {
        let delivered = self.delivered.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0);
        self.published.load(Ordering::Relaxed).saturating_sub(delivered)
    }

    /// The body of a shard thread; the latencies that its subscriber saw.
    fn shard(&self, number: usize) -> Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        let mut taken = Vec::new();
        let mut last = 0;
        while self.inboxes[number].take(&mut taken, &self.running) {
            if self.design.has_home() && number == HOME {
                for (job, offset) in taken.iter_mut().zip(last + 1..) {
                    job.offset = offset;
                    if let Some(receipt) = job.receipt.take() {
                        receipt.give(offset);
                    }
                }
                let shards = lock(&self.shards);
                for other in (0..SHARDS).filter(|other| *other != HOME) {
                    self.inboxes[other].push(taken.iter().cloned(), &shards[other]);
                }
            }
            for job in &taken {
                ensure!(job.offset == last + 1 && !job.payload.is_empty(), "shard {number} saw offset {} after {last}", job.offset);
                last = job.offset;
                latencies.push(job.published.elapsed());
            }
            self.delivered[number].fetch_add(taken.len() as u64, Ordering::Relaxed);
        }
        Ok(latencies)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one run found.
struct Figures {
    publishes_per_second: f64,
    /// From the publish call to the subscriber's shard.
    p50_us: f64,
    p99_us: f64,
    /// What the publish call took.
    call_p50_us: f64,
    call_p99_us: f64,
}

/// Runs the publishers: `messages` each, `pace` apart (none: without pause).
fn run(design: Design, messages: u64, pace: Option<Duration>) -> Result<Figures> {
    let bed = Arc::new(Bed::new(design));
    let total = messages * PUBLISHERS as u64;
    // Shards look others up in the list, so it is complete before one of them has anything to do.
    let mut list = lock(&bed.shards);
    let shards: Vec<JoinHandle<Result<Vec<Duration>>>> = (0..SHARDS)
        .map(|number| {
            let bed = Arc::clone(&bed);
            thread::spawn(move || bed.shard(number))
        })
        .collect();
    list.extend(shards.iter().map(|shard| shard.thread().clone()));
    let threads = list.clone();
    drop(list);

    let start = Instant::now();
    let mut calls: Vec<Duration> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (bed, threads) = (&bed, &threads);
                scope.spawn(move || publisher_loop(bed, threads, publisher, messages, pace))
            })
            .collect();
        publishers.into_iter().filter_map(|publisher| publisher.join().ok()).flatten().collect()
    });
    ensure!(calls.len() as u64 == total, "a publisher panicked");
    let deadline = Instant::now() + Duration::from_secs(30);
    while bed.delivered.iter().any(|count| count.load(Ordering::Relaxed) < total) {
        ensure!(Instant::now() < deadline && !shards.iter().any(JoinHandle::is_finished), "a shard has stopped");
        thread::yield_now();
    }
    let elapsed = start.elapsed();
    bed.running.store(false, Ordering::Release);
    threads.iter().for_each(Thread::unpark);

    // One subscriber's latency: the one whose shard is not the home shard, which three of four are.
    let mut latencies = Vec::new();
    for (number, shard) in shards.into_iter().enumerate() {
        let seen = shard.join().ok().context("a shard panicked")??;
        if number != HOME {
            latencies.extend(seen);
        }
    }
    latencies.sort_unstable();
    calls.sort_unstable();
    Ok(Figures {
        publishes_per_second: total as f64 / elapsed.as_secs_f64(),
        p50_us: quantile(&latencies, 0.5),
        p99_us: quantile(&latencies, 0.99),
        call_p50_us: quantile(&calls, 0.5),
        call_p99_us: quantile(&calls, 0.99),
    })
}

/// A quantile of sorted times, in microseconds.
fn quantile(sorted: &[Duration], share: f64) -> f64 {
    sorted.get((sorted.len() as f64 * share) as usize).map_or(f64::NAN, |value| value.as_secs_f64() * 1e6)
}

/// Publishes one thread's messages; what each call took.
fn publisher_loop(bed: &Bed, shards: &[Thread], publisher: usize, messages: u64, pace: Option<Duration>) -> Vec<Duration> {
    let receipt = Arc::new(Receipt::new());
    let mut calls = Vec::new();
    let payload: Arc<[u8]> = vec![b'x'; 100].into();
    let start = Instant::now();
    for message in 0..messages {
        match pace {
            Some(pace) => {
                // Publishers are out of step with each other, as threads of an application are.
                let due = start + pace.mul_f64(message as f64 + publisher as f64 / PUBLISHERS as f64);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            None => {
                while bed.behind() > MAX_BEHIND {
                    thread::yield_now();
                }
            }
        }
        calls.push(bed.publish(&payload, &receipt, shards));
        bed.published.fetch_add(1, Ordering::Relaxed);
    }
    calls
}

/// All rounds of one design under one load.
struct Series {
    load: &'static str,
    messages: u64,
    pace: Option<Duration>,
    design: Design,
    rounds: Vec<Figures>,
}

fn main() -> Result<()> {
    let (mut rounds, mut json_lines) = (5, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("rounds") => rounds = parser.value()?.parse()?,
            Long("json") => json_lines = true,
            other => bail!("{}; usage: sequencing [--rounds N] [--json]", other.unexpected()),
        }
    }
    let mut series = Vec::new();
    for (load, messages, pace) in [("without pause", LOADED_MESSAGES, None), ("4,000/s together", PACED_MESSAGES, Some(PACE))] {
        for design in [Design::HomeShard, Design::HomeShardReceipt, Design::StripedLock] {
            series.push(Series { load, messages, pace, design, rounds: Vec::new() });
        }
    }
    for _ in 0..rounds {
        for series in &mut series {
            series.rounds.push(run(series.design, series.messages, series.pace)?);
        }
    }
    let mut out = std::io::stdout().lock();
    if !json_lines {
        writeln!(out, "{PUBLISHERS} publishers on one channel, {SHARDS} shards, medians of {rounds} rounds; times in us")?;
        writeln!(
            out,
            "{:<17} {:<20} {:>11} {:>13} {:>13} {:>9} {:>9}",
            "load", "design", "publishes/s", "to shard p50", "to shard p99", "call p50", "call p99"
        )?;
    }
    for Series { load, design, rounds, .. } in &series {
        let column = |value: fn(&Figures) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
        let rates = column(|figures| figures.publishes_per_second);
        let (p50, p99) = (column(|figures| figures.p50_us), column(|figures| figures.p99_us));
        let (call_p50, call_p99) = (column(|figures| figures.call_p50_us), column(|figures| figures.call_p99_us));
        let design = design.name();
        if json_lines {
            let line = json!({
                "load": load, "design": design, "publishes_per_second": rates, "p50_us": p50, "p99_us": p99, "call_p50_us": call_p50,
                "call_p99_us": call_p99,
            });
            writeln!(out, "{line}")?;
        } else {
            let [rate, p50, p99, call_p50, call_p99] = [rates, p50, p99, call_p50, call_p99].map(median);
            writeln!(out, "{load:<17} {design:<20} {rate:>11.0} {p50:>13.1} {p99:>13.1} {call_p50:>9.2} {call_p99:>9.1}")?;
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

//! Does the time that a wrong signature takes tell how much of it is right?
//!
//! Welch's t-test between signatures that are wrong in their first byte and in their last, interleaved; the slowest and
//! fastest are left out, because they are the machine's. A comparison that stops at the first difference is measured the
//! same way, so that a machine on which nothing could be seen does not count as a proof. `make test-deep` runs it; on a
//! busy machine it may need its further rounds.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use realtime_core::auth::signature::{sign, verify};

/// Pairs a round.
const RUNS: usize = 20_000;
/// Beyond this the two kinds differ (Reparaz, Balasch, Verbauwhede: "dude, is my code constant time?").
const THRESHOLD: f64 = 4.5;
/// A round that something else has disturbed may be repeated.
const ROUNDS: usize = 5;

const SECRET: &str = "7ad3773142a6692b25b8";
const TEXT: &str = "POST\n/apps/3/events\nauth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0";

fn main() -> ExitCode {
    let right = sign(SECRET, TEXT);
    let wrong = |at: usize| {
        let mut digits = right.clone().into_bytes();
        // A letter for a letter and a digit for a digit: reading hexadecimal takes what its sender chooses.
        digits[at] = match digits[at] {
            b'a' => b'b',
            b'b'..=b'f' => b'a',
            b'0' => b'1',
            _ => b'0',
        };
        String::from_utf8(digits).unwrap_or_default()
    };
    let (first, last) = (wrong(0), wrong(right.len() - 1));
    let mut secure = Vec::new();
    let mut leaky = Vec::new();
    for _ in 0..ROUNDS {
        secure.push(t_of(&first, &last, |signature| verify(SECRET, TEXT, signature)).abs());
        leaky.push(t_of(&first, &last, |signature| stops_early(signature.as_bytes(), right.as_bytes())).abs());
        if secure.last().is_some_and(|t| *t < THRESHOLD) && leaky.last().is_some_and(|t| *t > THRESHOLD) {
            break;
        }
    }
    let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    println(&format!("|t| of the hub's check: {secure:.2?}; of one that stops early: {leaky:.2?}; threshold {THRESHOLD}"));
    let (seen, passed) = (greatest(&leaky) > THRESHOLD, least(&secure) < THRESHOLD);
    if !seen {
        println("this machine does not show the difference that it should; nothing is proved");
    }
    println(&format!("{} passed, {} failed", u8::from(seen) + u8::from(passed), u8::from(!seen) + u8::from(!passed)));
    if seen && passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "a program that reports")]
fn println(line: &str) {
    println!("{line}");
}

/// What nobody should do: the time tells how much is right. A few times over, as a long signature would be.
fn stops_early(a: &[u8], b: &[u8]) -> bool {
    (0..4).all(|_| a.iter().zip(b).all(|(a, b)| black_box(a) == black_box(b)))
}

/// Welch's t between the times of two arguments.
fn t_of(a: &str, b: &str, check: impl Fn(&str) -> bool) -> f64 {
    let mut times = [Vec::with_capacity(RUNS), Vec::with_capacity(RUNS)];
    // Which comes first changes irregularly (xorshift), so that no rhythm of the machine can favour one.
    let mut signature = String::with_capacity(a.len());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for run in 0..RUNS + RUNS / 10 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for at in [(state & 1) as usize, 1 - (state & 1) as usize] {
            // Both at one place in memory, and long enough ago: where and when it was written must not count.
            signature.clear();
            signature.push_str([a, b][at]);
            black_box(sign(SECRET, TEXT));
            let begun = Instant::now();
            let accepted = black_box(check(black_box(&signature)));
            let taken = begun.elapsed().as_nanos() as f64;
            assert!(!accepted, "a wrong signature was accepted");
            // The first tenth warms up.
            if run >= RUNS / 10 {
                times[at].push(taken);
            }
        }
    }
    let mut all: Vec<f64> = times.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    let (low, high) = (all[all.len() / 100], all[all.len() * 9 / 10]);
    let [(mean_a, error_a), (mean_b, error_b)] = times.map(|times| {
        let kept: Vec<f64> = times.into_iter().filter(|time| (low..=high).contains(time)).collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let variance = kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    (mean_a - mean_b) / (error_a + error_b).sqrt().max(f64::MIN_POSITIVE)
}

//! A port for a server that has to be told one.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below these the kernel gives none to whoever asks for any, or connects: what is free here is taken by nobody who has
/// not chosen it.
const FIRST: u32 = 10_000;

/// A port of the loopback interface on which nobody listens, from outside the range from which the kernel gives any. It
/// is another one at each call.
///
/// # Panics
///
/// When all are taken.
pub fn spare_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok()).filter(|first| *first > FIRST + 1_000).unwrap_or(32_768);
    let count = end - FIRST;
    // Processes that run side by side begin far from each other.
    let start = std::process::id().wrapping_mul(7_919);
    for _ in 0..count {
        let at = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = u16::try_from(FIRST + at).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

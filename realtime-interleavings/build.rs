//! Puts a scheduler behind the locks of the sources (`realtime-core/src/sync.rs`).

#![expect(clippy::print_stdout, reason = "how cargo is told")]

fn main() {
    println!("cargo::rustc-cfg=interleavings");
}

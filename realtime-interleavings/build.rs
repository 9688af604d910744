//! Puts a scheduler behind the locks of the sources (`realtime-core/src/sync.rs`).

fn main() {
    println!("cargo::rustc-cfg=interleavings");
}

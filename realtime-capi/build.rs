//! Gives the shared library its versioned name.

fn main() {
    // What programs are linked against: raised when they would have to be compiled anew.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,librealtime.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}

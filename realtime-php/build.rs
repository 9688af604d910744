//! Linker settings of the extension.

fn main() {
    // PHP closes the library after MSHUTDOWN; a hub thread that has not ended by then would run
    // unmapped code. With NODELETE the code stays mapped until the process ends.
    println!("cargo:rustc-link-arg-cdylib=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}

//! The committed header is what cbindgen makes of the sources.

use std::path::Path;

/// `UPDATE_HEADER=1` (`make header`) writes it.
#[test]
fn the_committed_header_is_made_from_the_sources() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = cbindgen::Config::from_file(crate_dir.join("cbindgen.toml")).unwrap();
    config.after_includes = config.after_includes.map(|text| text.replace("@VERSION@", env!("CARGO_PKG_VERSION")));
    let mut made = Vec::new();
    cbindgen::Builder::new().with_crate(crate_dir).with_config(config).generate().unwrap().write(&mut made);
    // What Rust calls safety C calls the contract.
    let made = String::from_utf8(made).unwrap().replace("// # Safety\n//\n// ", "// Requires: ");
    let path = crate_dir.join("../include/realtime.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(committed.lines()).position(|(made, committed)| made != committed);
    assert!(made == committed, "include/realtime.h differs from line {}; run `make header`", differs.map_or(1, |at| at + 1));
}

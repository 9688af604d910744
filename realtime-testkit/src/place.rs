//! Directories of a test's own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Makes a directory for one test in the system's temporary one. It was not there before, whatever an earlier run with
/// the same process id has left behind.
pub fn fresh_directory(prefix: &str) -> PathBuf {
    fresh_directory_in(&std::env::temp_dir(), prefix).unwrap()
}

/// The same elsewhere.
///
/// # Errors
///
/// When nothing can be made there.
pub fn fresh_directory_in(parent: &Path, prefix: &str) -> std::io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let path = parent.join(format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

//! The log of hubs in this process: a file, by `realtime.log`. Without one their records go nowhere.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use realtime_core::Config;
use realtime_core::config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::failure::Failure;

/// Rights of a log file that is made here: channel names and addresses are in it.
const LOG_MODE: u32 = 0o640;

/// The process has one log; where it goes is decided by the first hub that has one.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    path: PathBuf,
    format: LogFormat,
    filter: reload::Handle<Targets, Registry>,
}

/// Logs as the hub that is about to start is configured.
pub(crate) fn start(config: &Config) -> Result<(), Failure> {
    let filter = match (&config.log, LOG.get()) {
        (None, None) => return Ok(()),
        (None, Some(_)) => Targets::new().with_default(LevelFilter::OFF),
        (Some(_), _) => targets(config.log_level),
    };
    let (path, log) = match (&config.log, LOG.get()) {
        (Some(path), None) => return begin(path.clone(), config.log_format, filter),
        (path, Some(log)) => (path, log),
        (None, None) => return Ok(()),
    };
    if path.as_ref().is_some_and(|path| *path != log.path || config.log_format != log.format) {
        let path = log.path.display();
        return Err(Failure::config(format!("a hub of this process logs to {path} already; a process has one log, in one format")));
    }
    log.filter.reload(filter).map_err(|error| Failure::config(format!("log_level: {error}")))
}

fn begin(path: PathBuf, format: LogFormat, filter: Targets) -> Result<(), Failure> {
    let file: Arc<File> = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(LOG_MODE)
        .open(&path)
        .map_err(|error| Failure::config(format!("cannot open the log {}: {error}", path.display())))?
        .into();
    let (filter, handle) = reload::Layer::new(filter);
    // A record is one write to a file that is appended to: no lock that a forked child could find taken.
    let records = match format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(file).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(file).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(filter).with(records);
    // Both fail only if another thread has just done it.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        drop(LOG.set(Log { path, format, filter: handle }));
    }
    Ok(())
}

/// The level is the hub's; of libraries only what warns is worth a line.
fn targets(level: LogLevel) -> Targets {
    let level = level.filter();
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("realtime", level)
}

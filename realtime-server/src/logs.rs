//! Structured records on stderr, with a level that can change while the hub runs.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use realtime_core::config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::failure::Failure;

/// Rights of a log file that the hub makes: channel names and addresses are in it.
const LOG_MODE: u32 = 0o640;

/// Makes a file the process' standard error, and with it the place of the log, of panics and of what libraries print. A
/// file that was moved away is made again.
pub(crate) fn append_to(path: &Path) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::Usage(format!("cannot open the log {}: {error}", path.display()));
    let file = OpenOptions::new().create(true).append(true).mode(LOG_MODE).open(path).map_err(cannot)?;
    rustix::stdio::dup2_stderr(&file).map_err(|error| cannot(error.into()))
}

/// Changes the level.
pub(crate) struct Logs(reload::Handle<Targets, Registry>);

/// Starts to write.
pub(crate) fn start(level: LogLevel, format: LogFormat) -> Logs {
    let (filter, handle) = reload::Layer::new(targets(level));
    let records = match format {
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(records).init();
    Logs(handle)
}

impl Logs {
    pub(crate) fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.0.reload(targets(level)) {
            tracing::error!(%error, "cannot change the log level");
        }
    }
}

/// The level is ours; of libraries only what warns is worth a line.
fn targets(level: LogLevel) -> Targets {
    let level = level.filter();
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("realtime", level)
}

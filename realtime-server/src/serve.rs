//! A hub's life as a process: start, signals, drain.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use realtime_core::bus::address::BusAddress;
use realtime_core::bus::socket::BusSocket;
use realtime_core::config::LogFormat;
use realtime_core::{Config, Hub, HubBuilder, StopReport};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{ServeArgs, SettingsArgs};
use crate::failure::Failure;
use crate::follow::{self, Followed};
use crate::logs::{self, Logs};
use crate::settings::{self, Settings};
use crate::spawned::{Staged, Worker};
use crate::systemd;

/// What a reload puts into effect.
const RELOADABLE: &str = "log_level";

/// What ends a hub, or brings its end further.
enum Told {
    /// By the one who looks after the process.
    Signal(i32),
    /// Those that it followed have ended, and its connections.
    NobodyLeft,
    /// It has stopped.
    Stopped(StopReport),
}

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let Settings { effective, .. } = settings::load(&args.settings)?;
    let worker = args.spawned.then(Worker::take).transpose()?;
    let log = match (&effective.config.log, args.spawned) {
        (None, true) => Some(PathBuf::from("/dev/null")),
        (log, _) => log.clone(),
    };
    if let Some(log) = &log {
        logs::append_to(log)?;
    }
    let values = settings::leaves(&effective);
    let reload = Reload { args: &args.settings, logs: logs::start(effective.config.log_level, effective.config.log_format), log, values };
    for warning in &effective.warnings {
        tracing::warn!("{warning}");
    }
    // From here on a signal waits until the hub can be stopped in order.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let linger = Duration::from_millis(effective.config.linger_ms);
    let started = start(args, effective.config);
    match (&started, worker) {
        (Ok(_), Some(worker)) => worker.ready(),
        (Err(failure), Some(worker)) => worker.failed(failure.message().unwrap_or_default()),
        (_, None) => {}
    }
    let (hub, followed) = started?;
    let (tell, told) = mpsc::channel();
    if let Some(followed) = followed {
        let (hub, tell) = (hub.clone(), tell.clone());
        thread::Builder::new().name("follow".into()).spawn(move || {
            if let Err(error) = followed.outlive(&hub, linger) {
                tracing::error!(%error, "cannot follow any longer: leaving");
            }
            tell.send(Told::NobodyLeft)
        })?;
    }
    let on_signal = tell.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut signals = signals;
        signals.forever().try_for_each(|signal| on_signal.send(Told::Signal(signal)))
    })?;
    until_stopped(&hub, &told, &tell, reload)
}

/// Starts the hub and says so.
fn start(args: &ServeArgs, config: Config) -> Result<(Hub, Option<Followed>), Failure> {
    let handed = systemd::listeners()?;
    let addresses = BusAddress::list(config.socket.as_deref().unwrap_or_default()).unwrap_or_default();
    let configured = addresses.iter().find_map(|address| address.path().map(PathBuf::from));
    let format = config.log_format;
    let listen = config.listen.clone();
    let mut builder = HubBuilder::new(config);
    if let Some(listener) = handed.clients {
        let address = listener.local_addr()?.to_string();
        if listen != address && listen != Config::default().listen {
            tracing::warn!(%listen, %address, "`listen` is not used: systemd has opened the clients' socket, and its unit says where");
        }
        builder = builder.listener(listener);
    }
    let mut staged = None;
    let bus = match (handed.bus, configured) {
        (Some(listener), Some(path)) if args.spawned => {
            staged = Staged::new(&listener, &path)?;
            builder = builder.bus_socket(BusSocket::taken_over(listener, &path)?);
            Some(path)
        }
        (Some(listener), _) => {
            let path = listener.local_addr()?.as_pathname().map(PathBuf::from);
            builder = builder.bus_listener(listener);
            path
        }
        (None, configured) => configured,
    };
    let followed = match args.follow.map(follow::begin).transpose()? {
        Some((asking, followed)) => {
            builder = builder.on_follow(move |pid| asking.follow(pid));
            Some(followed)
        }
        None => None,
    };
    let hub = builder.start()?;
    if let Some(staged) = staged {
        staged.put_in_place()?;
    }
    announce(&hub, bus, format);
    systemd::notify(&format!("READY=1\nSTATUS=Listening on {}", hub.url()));
    Ok((hub, followed))
}

/// One line that says where clients and processes find the hub.
fn announce(hub: &Hub, bus: Option<PathBuf>, format: LogFormat) {
    let addresses = BusAddress::list(hub.config().socket.as_deref().unwrap_or_default()).unwrap_or_default();
    let tcp = addresses.iter().find(|address| address.path().is_none()).zip(hub.bus_addr());
    let tcp = tcp.map(|(address, bound)| address.bound_to(bound).to_string());
    let bus: Vec<String> = bus.map(|path| path.display().to_string()).into_iter().chain(tcp).collect();
    let bus = (!bus.is_empty()).then(|| bus.join(" and "));
    match format {
        LogFormat::Text => {
            let bus = bus.map_or("no bus".into(), |places| format!("bus {places}"));
            eprintln!("realtime {} listens on {}, {bus}", env!("CARGO_PKG_VERSION"), hub.url());
        }
        LogFormat::Json => tracing::info!(version = env!("CARGO_PKG_VERSION"), url = hub.url(), bus, "listening"),
    }
}

/// Waits for the end. A second signal ends the hub at once; that nobody is left to follow is the first reason to stop, or
/// none: with the service that they were of, the processes that were followed and the hub are told to stop together.
fn until_stopped(hub: &Hub, told: &Receiver<Told>, tell: &Sender<Told>, mut reload: Reload<'_>) -> Result<(), Failure> {
    let drain_timeout = Duration::from_millis(hub.config().drain_timeout_ms);
    let (mut stopping, mut signalled) = (false, false);
    let report = loop {
        match told.recv().map_err(io::Error::other)? {
            Told::Stopped(report) => break report,
            Told::Signal(SIGHUP) if stopping => continue,
            Told::Signal(SIGHUP) => {
                reload.reload();
                continue;
            }
            Told::Signal(_) if signalled => {
                tracing::warn!("told to stop twice, ending at once");
                return Err(Failure::Failed("ended before clients had what was queued".into()));
            }
            Told::Signal(_) => signalled = true,
            Told::NobodyLeft => {}
        }
        if !std::mem::replace(&mut stopping, true) {
            systemd::notify("STOPPING=1\nSTATUS=Draining");
            tracing::info!(connections = hub.stats().connections, timeout_ms = drain_timeout.as_millis() as u64, "stopping");
            let (hub, tell) = (hub.clone(), tell.clone());
            // Signals are still taken while it drains.
            thread::Builder::new().name("drain".into()).spawn(move || tell.send(Told::Stopped(hub.stop(drain_timeout))))?;
        }
    };
    let complete = report.complete;
    let stats = hub.stats();
    tracing::info!(published = stats.published, bus_refused = stats.bus_refused, uptime_ms = stats.uptime_ms, complete, "stopped");
    if complete { Ok(()) } else { Err(Failure::Failed("not all of the hub ended within `drain_timeout_ms`".into())) }
}

/// What reading the configuration again needs.
struct Reload<'a> {
    args: &'a SettingsArgs,
    logs: Logs,
    /// Where the log goes, if not to the standard error that the process was given.
    log: Option<PathBuf>,
    /// In effect.
    values: BTreeMap<String, Value>,
}

impl Reload<'_> {
    fn reload(&mut self) {
        systemd::notify_reloading();
        if let Some(log) = &self.log
            && let Err(error) = logs::append_to(log)
        {
            tracing::error!(error = error.message(), "the log goes on in the old file");
        }
        match settings::load(self.args) {
            Ok(settings) => {
                let wanted = settings::leaves(&settings.effective);
                let changed: Vec<&str> =
                    wanted.iter().filter(|(key, value)| self.values.get(*key) != Some(value)).map(|(key, _)| key.as_str()).collect();
                let needs_restart: Vec<&str> = changed.iter().copied().filter(|key| *key != RELOADABLE).collect();
                let level = settings.effective.config.log_level;
                if changed.contains(&RELOADABLE) {
                    self.logs.set_level(level);
                    self.values.insert(RELOADABLE.into(), wanted[RELOADABLE].clone());
                }
                tracing::info!(log_level = ?level, "reloaded: log_level is in effect, everything else needs a restart");
                if !needs_restart.is_empty() {
                    tracing::warn!(settings = needs_restart.join(", "), "changed in the configuration; a restart puts it into effect");
                }
            }
            Err(error) => tracing::error!(%error, "not reloaded; the hub goes on as it was"),
        }
        systemd::notify("READY=1");
    }
}

//! Where settings come from: defaults < TOML file < INI < environment < the array given in code.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ext_php_rs::flags::IniEntryPermission;
use ext_php_rs::zend::{IniEntryDef, IniEntryDefs};
use realtime_core::apps::DEFAULT_APP;
use realtime_core::broker::redis::publisher::{Publisher, PublisherOptions};
use realtime_core::bus::address::BusAddress;
use realtime_core::bus::socket::default_addresses;
use realtime_core::config::{BrokerConfig, Limits, Secret, check_secret};
use realtime_core::{Config, ConfigBuilder, EffectiveConfig, Source};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::{host, zend};

/// INI settings that this extension interprets itself. The others belong to `Config`.
const MODE: Own = Own { ini: c"realtime.mode", variable: "REALTIME_MODE" };
const ON_ERROR: Own = Own { ini: c"realtime.on_error", variable: "REALTIME_ON_ERROR" };
const CONFIG: Own = Own { ini: c"realtime.config", variable: "REALTIME_CONFIG" };
const APP: Own = Own { ini: c"realtime.app", variable: "REALTIME_APP" };
const GLOBAL_FUNCTIONS: Own = Own { ini: c"realtime.global_functions", variable: "REALTIME_GLOBAL_FUNCTIONS" };
const AUTOSPAWN: Own = Own { ini: c"realtime.autospawn", variable: "REALTIME_AUTOSPAWN" };
const BINARY: Own = Own { ini: c"realtime.binary", variable: "REALTIME_BINARY" };

const OWN: [Own; 7] = [MODE, ON_ERROR, CONFIG, APP, GLOBAL_FUNCTIONS, AUTOSPAWN, BINARY];

/// INI settings that are passed on to `Config` when they are set.
const PASSED_ON: [(&CStr, &str); 9] = [
    (c"realtime.listen", "listen"),
    (c"realtime.socket", "socket"),
    (c"realtime.secret", "secret"),
    (c"realtime.socket_ca", "socket_ca"),
    (c"realtime.log", "log"),
    (c"realtime.linger_ms", "linger_ms"),
    (c"realtime.broker.url", "broker.url"),
    (c"realtime.broker.prefix", "broker.prefix"),
    (c"realtime.broker.ca_file", "broker.ca_file"),
];

struct Own {
    ini: &'static CStr,
    variable: &'static str,
}

static INI: IniEntryDefs<17> = IniEntryDefs::new([
    IniEntryDef::new(MODE.ini, c"auto", IniEntryPermission::System),
    IniEntryDef::new(GLOBAL_FUNCTIONS.ini, c"1", IniEntryPermission::System),
    IniEntryDef::new(ON_ERROR.ini, c"log", IniEntryPermission::System),
    IniEntryDef::new(CONFIG.ini, c"", IniEntryPermission::System),
    unset(c"realtime.listen"),
    unset(c"realtime.socket"),
    hidden(unset(c"realtime.secret")),
    unset(c"realtime.socket_ca"),
    unset(c"realtime.log"),
    unset(c"realtime.linger_ms"),
    // May hold a password.
    hidden(unset(c"realtime.broker.url")),
    unset(c"realtime.broker.prefix"),
    unset(c"realtime.broker.ca_file"),
    IniEntryDef::new(AUTOSPAWN.ini, c"0", IniEntryPermission::System),
    IniEntryDef::new(BINARY.ini, c"", IniEntryPermission::System),
    IniEntryDef::new(APP.ini, c"", IniEntryPermission::System),
    IniEntryDef::end(),
]);

/// A setting without a value: "not set" differs from "set empty".
const fn unset(name: &'static CStr) -> IniEntryDef {
    let mut entry = IniEntryDef::new(name, c"", IniEntryPermission::System);
    entry.value = std::ptr::null();
    entry
}

/// A setting whose value `phpinfo()` and `php --ri` do not show.
const fn hidden(mut entry: IniEntryDef) -> IniEntryDef {
    entry.displayer = Some(zend::display_hidden_ini);
    entry
}

/// What a hub that is spawned gets of the environment, besides `REALTIME_*`.
const GENERAL: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "XDG_RUNTIME_DIR"];

/// `REALTIME_*` and [`GENERAL`] as MINIT saw them: php-fpm clears the environment of its workers.
static ENVIRONMENT: RwLock<Vec<(String, String)>> = RwLock::new(Vec::new());

/// `realtime.global_functions` as MINIT saw it.
static GLOBALS_REGISTERED: AtomicBool = AtomicBool::new(false);

/// MINIT: makes the INI settings known.
pub(crate) fn register(module_number: i32) {
    IniEntryDef::register(INI.as_slice(), module_number);
}

/// MSHUTDOWN: takes them away again.
pub(crate) fn unregister(module_number: i32) {
    // SAFETY: the number that `register` was given.
    unsafe { zend::zend_unregister_ini_entries(module_number) };
}

/// MINIT: remembers the environment.
pub(crate) fn snapshot_environment() {
    let variables = zend::environment().into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("REALTIME_") || GENERAL.contains(&name.as_str()))?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    *ENVIRONMENT.write().unwrap_or_else(std::sync::PoisonError::into_inner) = variables.collect();
    let wanted = is_true(&own(&GLOBAL_FUNCTIONS));
    GLOBALS_REGISTERED.store(wanted, Ordering::Relaxed);
}

/// Whether `broadcast()` and its siblings exist as global functions. Fixed at MINIT.
pub(crate) fn global_functions() -> bool {
    GLOBALS_REGISTERED.load(Ordering::Relaxed)
}

fn environment() -> Vec<(String, String)> {
    ENVIRONMENT.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

fn own(setting: &Own) -> String {
    let variables = ENVIRONMENT.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    let variable = variables.iter().find(|(name, value)| name == setting.variable && !value.is_empty()).map(|(_, value)| value.clone());
    variable.or_else(|| zend::ini(setting.ini)).unwrap_or_default()
}

fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
}

/// What `realtime.mode` allows in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The role follows from what the process does.
    Auto,
    /// The hub runs in this process.
    Embedded,
    /// A hub outside this process, over its Unix socket; none may be started here.
    Bus,
    /// The hubs of other hosts, over the Redis that they share; none may be started here.
    Remote,
    /// Calls are checked and dropped.
    Off,
}

pub(crate) fn mode() -> Result<Mode, Failure> {
    match own(&MODE).as_str() {
        "auto" => Ok(Mode::Auto),
        "embedded" => Ok(Mode::Embedded),
        "bus" => Ok(Mode::Bus),
        "remote" => Ok(Mode::Remote),
        // An unquoted `off` in php.ini is the empty string.
        "" | "off" | "0" => Ok(Mode::Off),
        other => Err(Failure::config(format!("realtime.mode is `{other}`; it must be auto, embedded, bus, remote or off"))),
    }
}

/// What the global functions do when the hub cannot take a publication: true throws, false logs.
pub(crate) fn throws_on_outage() -> Result<bool, Failure> {
    match own(&ON_ERROR).as_str() {
        "log" => Ok(false),
        "throw" => Ok(true),
        other => Err(Failure::config(format!("realtime.on_error is `{other}`; it must be log or throw"))),
    }
}

/// The app whose channels and users calls of this process mean.
fn app() -> String {
    let app = own(&APP);
    if app.is_empty() { DEFAULT_APP.to_owned() } else { app }
}

/// Refuses an app other than that of this process.
pub(crate) fn check_app(named: &str) -> Result<(), Failure> {
    let own = app();
    if named.is_empty() || named == own {
        return Ok(());
    }
    Err(Failure::config(format!("option `app` names the app `{named}`, but calls of this process are in `{own}` (realtime.app)")))
}

/// Everything but what code says.
fn layers() -> Result<ConfigBuilder, Failure> {
    let mut builder = ConfigBuilder::new();
    let file = own(&CONFIG);
    if !file.is_empty() {
        builder = builder.file(Path::new(&file))?;
    }
    for (name, key) in PASSED_ON {
        if let Some(value) = zend::ini(name) {
            builder = builder.text(Source::Ini, key, &value)?;
        }
    }
    let passed_on = environment().into_iter().filter(|(name, _)| OWN.iter().all(|own| own.variable != name));
    Ok(builder.environment(passed_on))
}

/// The whole configuration of a hub, `code` being its strongest layer.
pub(crate) fn effective(code: Map<String, Value>) -> Result<EffectiveConfig, Failure> {
    let app = app();
    if app != DEFAULT_APP {
        let text =
            format!("realtime.app is `{app}`, and calls reach a hub in their own process in `{DEFAULT_APP}` only; run `realtime serve`");
        return Err(Failure::config(text));
    }
    Ok(layers()?.layer(Source::Code, Value::Object(code))?.build()?)
}

/// What a process needs to know of the hub that another one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BusSettings {
    /// Where it may be; none when the bus is switched off.
    pub(crate) sockets: Vec<BusAddress>,
    /// What it knows too, over TCP.
    pub(crate) secret: Secret,
    /// Whom to trust, over TLS; empty for whom the system trusts.
    pub(crate) ca_file: String,
    /// Whose channels and users calls mean; empty where nothing is said.
    pub(crate) app: String,
    /// `limits.publication_bytes`.
    pub(crate) publication_bytes: usize,
    /// Whether calls go straight to the broker where no hub answers: `realtime.mode` leaves it open, and there is one.
    pub(crate) or_broker: bool,
}

/// What a process needs to know of the Redis that hubs share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerSettings {
    /// Empty where there is none.
    pub(crate) url: Secret,
    pub(crate) prefix: String,
    /// Whom to trust, over TLS; empty for whom the system trusts.
    pub(crate) ca_file: String,
    /// Whose channels and users calls mean; empty where nothing is said.
    pub(crate) app: String,
}

/// Only what it says is read and checked: what is wrong with the hub's other settings is the hub's
/// own affair.
pub(crate) fn bus() -> Result<BusSettings, Failure> {
    let layers = layers()?;
    let (sockets, secret, publication_bytes) = match host::ancestors() {
        // Code may have said where its bus is, which no other layer knows.
        Some(hub) if !hub.addresses.is_empty() => (hub.addresses.clone(), hub.secret().clone(), hub.publication_bytes),
        _ => named(&layers)?,
    };
    let ca_file = layers.value("socket_ca").and_then(Value::as_str).unwrap_or_default().to_owned();
    // What only hubs can speak to, a cluster for instance, is no other way.
    let url = broker_of(&layers).url;
    let or_broker = mode()? == Mode::Auto && !url.is_empty() && Publisher::new(PublisherOptions::new(url)).is_ok();
    Ok(BusSettings { sockets, secret, ca_file, app: own(&APP), publication_bytes, or_broker })
}

/// Sockets, secret and limit that the layers name.
fn named(layers: &ConfigBuilder) -> Result<(Vec<BusAddress>, Secret, usize), Failure> {
    let sockets = match layers.value("socket") {
        None | Some(Value::Null) => default_addresses(),
        Some(Value::String(text)) => BusAddress::list(text).map_err(|error| Failure::config(format!("realtime.socket: {error}")))?,
        Some(_) => return Err(Failure::config("realtime.socket must be a path, tcp://host:port or tls://host:port")),
    };
    let secret = Secret::from(layers.value("secret").and_then(Value::as_str).unwrap_or_default());
    let over_tcp = sockets.iter().any(|address| address.path().is_none());
    check_secret(&secret, over_tcp).map_err(|reason| Failure::config(format!("realtime.secret: {reason}")))?;
    let limit = layers.value("limits.publication_bytes").and_then(Value::as_u64).and_then(|bytes| usize::try_from(bytes).ok());
    Ok((sockets, secret, limit.unwrap_or(Limits::default().publication_bytes)))
}

/// The broker that hubs use; what else a process without a hub has to know the hubs tell it there.
pub(crate) fn broker() -> Result<BrokerSettings, Failure> {
    Ok(broker_of(&layers()?))
}

fn broker_of(layers: &ConfigBuilder) -> BrokerSettings {
    let text = |key: &str| layers.value(key).and_then(Value::as_str);
    let prefix = text("broker.prefix").map_or_else(|| BrokerConfig::default().prefix, str::to_owned);
    let ca_file = text("broker.ca_file").unwrap_or_default().to_owned();
    BrokerSettings { url: text("broker.url").unwrap_or_default().into(), prefix, ca_file, app: own(&APP) }
}

/// Whether a worker may spawn the hub that it does not find. Other processes than php-fpm's have nobody whose life the hub
/// could share.
pub(crate) fn autospawn() -> bool {
    zend::sapi_name() == "fpm-fcgi" && is_true(&own(&AUTOSPAWN))
}

/// What a hub is spawned with.
pub(crate) struct SpawnSettings {
    /// `realtime.binary`; empty where it is not set.
    pub(crate) binary: String,
    /// `realtime.config`; empty where it is not set.
    pub(crate) config: String,
    /// Where it may serve the bus, the first preferred.
    pub(crate) sockets: Vec<PathBuf>,
    /// The rights of that socket.
    pub(crate) socket_mode: u32,
    /// Its environment: as MINIT saw this one, and what php.ini says where that says nothing. Not its arguments, which every
    /// user of the machine can see.
    pub(crate) environment: Vec<(String, String)>,
}

pub(crate) fn spawn() -> Result<SpawnSettings, Failure> {
    let layers = layers()?;
    let mode = match layers.value("socket_mode") {
        None => Config::default().socket_mode,
        Some(Value::String(mode)) => mode.clone(),
        Some(other) => other.to_string(),
    };
    let socket_mode =
        u32::from_str_radix(&mode, 8).map_err(|_| Failure::config(format!("socket_mode `{mode}` is not three octal digits")))?;
    let mut environment = environment();
    for (name, key) in PASSED_ON {
        let variable = format!("REALTIME_{}", key.replace('.', "__").to_ascii_uppercase());
        if environment.iter().all(|(name, _)| *name != variable)
            && let Some(value) = zend::ini(name)
        {
            environment.push((variable, value));
        }
    }
    let sockets = bus()?.sockets.iter().filter_map(|address| address.path().map(PathBuf::from)).collect();
    Ok(SpawnSettings { binary: own(&BINARY), config: own(&CONFIG), sockets, socket_mode, environment })
}

/// Where [`bus`] and [`broker`] have their values from and what may differ between the requests of one process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    file: String,
    socket: Option<String>,
    secret: Option<String>,
    ca_file: Option<String>,
    broker: [Option<String>; 3],
    app: String,
    autospawn: bool,
}

impl Origin {
    /// As it is in this request.
    pub(crate) fn now() -> Self {
        Origin {
            file: own(&CONFIG),
            socket: zend::ini(c"realtime.socket"),
            secret: zend::ini(c"realtime.secret"),
            ca_file: zend::ini(c"realtime.socket_ca"),
            broker: [zend::ini(c"realtime.broker.url"), zend::ini(c"realtime.broker.prefix"), zend::ini(c"realtime.broker.ca_file")],
            app: own(&APP),
            autospawn: autospawn(),
        }
    }
}

//! The section of `phpinfo()`.

use ext_php_rs::zend::ModuleEntry;
use ext_php_rs::{info_table_end, info_table_header, info_table_row, info_table_start};

use crate::settings::{self, Mode};
use crate::{bus, host, remote, spawn, zend};

/// Prints version, role and state, then the INI table.
pub(crate) fn print(module: *mut ModuleEntry) {
    let running = host::current();
    let sapi = zend::sapi_name();
    let role = match (&running, settings::mode()) {
        (Some(_), _) => "embedded hub".to_owned(),
        (None, Ok(Mode::Off)) => "off: realtime.mode is off".to_owned(),
        (None, Ok(Mode::Auto)) if host::shares_requests_among_processes() => {
            format!("client of another process' hub: realtime.mode is auto, and {sapi} spreads requests over processes")
        }
        (None, Ok(Mode::Auto)) => {
            format!("client of another process' hub: realtime.mode is auto, and no hub was started in this {sapi} process")
        }
        (None, Ok(Mode::Bus)) => "client of another process' hub: realtime.mode is bus".to_owned(),
        (None, Ok(Mode::Remote)) => "publisher to the hubs of other hosts, over their broker: realtime.mode is remote".to_owned(),
        (None, Ok(Mode::Embedded)) => "none until Realtime\\start() or Realtime\\serve(): realtime.mode is embedded".to_owned(),
        (None, Err(_)) => "none: realtime.mode is not valid".to_owned(),
    };
    let or_broker = settings::bus().is_ok_and(|settings| settings.or_broker);
    let role = if running.is_none() && or_broker { format!("{role}; of the broker where none answers") } else { role };
    let listening = running.as_ref().map_or_else(|| "no".to_owned(), |running| running.hub.url());
    let stats = running.as_ref().map_or_else(Default::default, |running| running.hub.stats());

    info_table_start!();
    info_table_header!("realtime", "enabled");
    info_table_row!("Version", env!("CARGO_PKG_VERSION"));
    info_table_row!("Role of this process", role);
    info_table_row!("Listening", listening);
    info_table_row!("Bus socket", bus::describe());
    info_table_row!("Broker", remote::describe());
    info_table_row!("Spawns a hub", spawn::describe());
    info_table_row!("Connections", stats.connections.to_string());
    info_table_row!("Channels", stats.channels.to_string());
    info_table_row!("Global functions", if settings::global_functions() { "yes" } else { "no" });
    info_table_end!();
    // SAFETY: the module that PHP asks about.
    unsafe { zend::display_ini_entries(module) };
}

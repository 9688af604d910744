//! Whether a PHP has the extension, which hub its calls reach, and why.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use realtime_core::bus::address::BusAddress;

use super::Finding;

/// Where distributions put php-fpm.
const SERVERS: &str = "/usr/sbin";

/// Looks at the given programs; at the usual ones if none is given, where a php-fpm without the extension may be meant.
pub(super) fn check(programs: &[PathBuf], sockets: &[BusAddress]) -> Vec<Finding> {
    if !programs.is_empty() {
        return programs.iter().map(|program| look(program, sockets, Finding::broken)).collect();
    }
    let mut findings = vec![look(Path::new("php"), sockets, Finding::broken)];
    findings.extend(servers().iter().map(|program| look(program, sockets, Finding::doubtful)));
    findings
}

/// The php-fpm programs of this machine.
fn servers() -> Vec<PathBuf> {
    let files = fs::read_dir(SERVERS).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        files.filter(|file| file.file_name().as_encoded_bytes().starts_with(b"php-fpm")).map(|file| file.path()).collect();
    found.sort();
    found
}

fn look(program: &Path, sockets: &[BusAddress], without: fn(&'static str, String, String) -> Finding) -> Finding {
    // Both `php` and `php-fpm` print what `phpinfo()` says, by the php.ini that they use.
    let output = match Command::new(program).arg("-i").stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Finding::fine("php", format!("{} was not found, so there is nothing to check", program.display()));
        }
        Err(error) => return Finding::broken("php", format!("{}: {error}", program.display()), "name another one with --php"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let (Some(php), Some(sapi)) = (value(said.lines(), "PHP Version"), value(said.lines(), "Server API")) else {
        let errors = String::from_utf8_lossy(&output.stderr);
        let text = format!("{} -i does not tell about a PHP: {}", program.display(), errors.lines().next().unwrap_or_default());
        return Finding::broken("php", text, "see what it says to `-v`");
    };
    let php = format!("{php} ({sapi})");
    let Some(section) = Section::find(&said) else {
        let fix = "extension=realtime in a php.ini of this PHP (phpenmod realtime on Debian); `php --ini` lists the files";
        return without("php", format!("{php} without the extension"), fix.into());
    };
    section.judge(&php, sockets)
}

/// What an extension says of itself.
struct Section<'a>(Vec<&'a str>);

impl<'a> Section<'a> {
    fn find(said: &'a str) -> Option<Self> {
        let lines = said.lines().skip_while(|line| *line != "realtime => enabled");
        // It ends with the next one's title.
        let lines: Vec<_> = lines.take_while(|line| line.is_empty() || line.contains(" => ")).collect();
        (!lines.is_empty()).then_some(Section(lines))
    }

    fn value(&self, name: &str) -> &'a str {
        value(self.0.iter().copied(), name).unwrap_or_default()
    }

    /// A setting, which has a local and a global value.
    fn setting(&self, name: &str) -> &'a str {
        let local = self.value(name).split(" => ").next().unwrap_or_default();
        if local == "no value" { "" } else { local }
    }

    fn judge(&self, php: &str, sockets: &[BusAddress]) -> Finding {
        let (version, role, mode) = (self.value("Version"), self.value("Role of this process"), self.setting("realtime.mode"));
        let text = format!("{php}, extension {version}, {role}");
        if version != env!("CARGO_PKG_VERSION") {
            let text = format!("{text}, but this program is {}", env!("CARGO_PKG_VERSION"));
            return Finding::doubtful("php", text, "install both from the same release");
        }
        if let Some(reason) = self.value("Spawns a hub").strip_prefix("not possible: ") {
            return Finding::broken("php", format!("{text}; it cannot start a hub: {reason}"), "realtime.binary in its php.ini");
        }
        if matches!(mode, "" | "off" | "0") {
            return Finding::doubtful("php", text, "broadcast() sends nothing; realtime.mode=auto in php.ini");
        }
        if mode == "remote" {
            let broker = self.value("Broker");
            let text = format!("{text}, {broker}");
            return match broker.starts_with("none") {
                true => Finding::broken("php", text, "realtime.broker.url=\"redis://…\" in its php.ini, or REALTIME_BROKER__URL"),
                false => Finding::fine("php", text),
            };
        }
        let its = self.setting("realtime.socket");
        let elsewhere = BusAddress::list(its).is_ok_and(|its| !its.is_empty() && !its.iter().any(|address| sockets.contains(address)));
        match sockets.first() {
            Some(socket) if elsewhere => {
                let fix = format!("realtime.socket={socket} in php.ini, if that is the hub you mean");
                Finding::doubtful("php", format!("{text}, realtime.socket={its}"), fix)
            }
            _ => Finding::fine("php", text),
        }
    }
}

/// The value in the first line `name => value`.
fn value<'a>(mut lines: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" => "))
}

//! Commands, options and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;

use crate::failure::EXIT_CODES;

/// A realtime hub for PHP: WebSocket clients on one side, every PHP process of the host on the other.
#[derive(Parser)]
#[command(
    name = "realtime",
    version,
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a hub until it is told to stop
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Show a running hub's connections, channels, memory, version and uptime
    #[command(after_help = "Examples:\n  realtime status\n  realtime status --json | jq .connections\n  realtime status --cluster")]
    Status(StatusArgs),
    /// Publish a message and print its receipt
    #[command(after_help = PUBLISH_HELP)]
    Publish(PublishArgs),
    /// List the channels that have subscribers
    Channels(ReportArgs),
    /// List the users who are subscribed to a channel
    Users(UsersArgs),
    /// Close all connections of a user
    #[command(after_help = "Example:\n  realtime disconnect 42 --reason 'signed out'")]
    Disconnect(DisconnectArgs),
    /// Show what is published, and to how many, live
    #[command(after_help = TAIL_HELP)]
    Tail(TailArgs),
    /// Look for what is wrong, one line each, with what mends it
    #[command(
        after_help = "It changes nothing. Run it as the user whose calls fail, for example:\n  sudo -u www-data realtime doctor\n  realtime doctor --url wss://example.com/ws\n\nExits with 1 if something is broken."
    )]
    Doctor(DoctorArgs),
    /// Print the configuration in effect, and where each value came from
    #[command(
        after_help = "Examples:\n  realtime config\n  realtime config --config ./realtime.toml --json\n\nWithout --json the output is TOML that `--config` reads again."
    )]
    Config(ConfigArgs),
    /// Print a completion script
    #[command(after_help = "Example:\n  realtime completions bash > /etc/bash_completion.d/realtime")]
    Completions {
        /// For which shell
        shell: Shell,
    },
}

const SERVE_HELP: &str = "\
Settings come from, weakest first: defaults, the TOML file, the .env file, REALTIME_* variables (REALTIME_LISTEN,
REALTIME_LIMITS__OUTBOX_BYTES), these options. `realtime config` takes the same options and shows the result.

Signals:
  TERM, INT  no new connections; what was accepted goes out, clients are closed, for at most `drain_timeout_ms`;
             a second one ends at once
  HUP        opens the log file anew and reads the configuration again: `log_level` takes effect, and the log names
             what needs a restart

Under systemd it says when it is ready (Type=notify or notify-reload), and takes over sockets: a TCP socket for
clients, a Unix socket for the bus. With both, a restart refuses no connection and loses no broadcast(); calls that
wait for an answer fail after a second if it takes longer.

Examples:
  realtime serve
  realtime serve --listen 127.0.0.1:9000 --set limits.max_connections=5000
  realtime serve --config /etc/realtime/realtime.toml --log-format json
  realtime serve --env-file /srv/app/.env
  realtime serve --follow \"$(cat /run/php/php8.2-fpm.pid)\"";

const PUBLISH_HELP: &str = "\
Without MESSAGE, or with `-`, the message is read from stdin; a newline at its end is left out, except with --binary.

Examples:
  realtime publish news 'Hello'
  realtime publish orders.1 --event shipped --json '{\"id\": 1}'
  realtime publish camera --binary < frame.jpg
  realtime publish --user 42 'For you only'";

const TAIL_HELP: &str = "\
For the hub's own user and root. A terminal that is slower than the hub misses publications, and says how many; the
hub never waits for it. Each line: time (UTC), channel, offset, subscriptions on this hub, event, message.

Examples:
  realtime tail orders.1
  realtime tail 'orders.*' --json
  realtime tail '*' --count 1";

#[derive(Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Leave when this process has ended: at once, or after `linger_ms` if there are connections
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) follow: Option<u32>,
    /// A PHP worker has bound the bus socket and waits for an answer
    #[arg(long, hide = true)]
    pub(crate) spawned: bool,
}

/// Where settings come from.
#[derive(Args, Default)]
pub(crate) struct SettingsArgs {
    /// TOML file; default: $REALTIME_CONFIG, else /etc/realtime/realtime.toml if it exists
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// An application's .env: its REALTIME_*, REVERB_* and PUSHER_* variables, APP_URL, ALLOWED_ORIGINS, SERVER_ADDRESS
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) env_file: Option<PathBuf>,
    /// Address and port for clients; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Bus: a path, tcp://host:port or tls://host:port, or a path and one of these with a comma between; '' for none [default:
    /// /run/realtime/realtime.sock for root, else in $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<String>,
    /// Any other setting by its name, such as limits.max_connections=5000; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// File to append the log to [default: stderr]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) log: Option<String>,
    /// How to write the log [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub(crate) log_format: Option<String>,
    /// What to log [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub(crate) log_level: Option<String>,
}

impl SettingsArgs {
    /// The settings that the command line gives; the options of their own win over `--set`.
    pub(crate) fn given(&self) -> Vec<(String, String)> {
        let own = [
            ("listen", &self.listen),
            ("socket", &self.socket),
            ("log", &self.log),
            ("log_format", &self.log_format),
            ("log_level", &self.log_level),
        ];
        let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        self.set.iter().cloned().chain(own).collect()
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// Which hub to ask.
#[derive(Args, Default)]
pub(crate) struct HubArgs {
    /// The hub's bus: a path, or tcp://host:port with the secret in $REALTIME_SECRET or the file, or tls://host:port,
    /// with $REALTIME_SOCKET_CA where the system does not trust its certificate; default: the configuration's `socket`,
    /// else the first of the usual places that answers
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<String>,
    /// TOML file that names the socket; default as for `serve`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) report: ReportArgs,
    /// Show all hubs that share a broker, and which of them did not answer
    #[arg(long)]
    pub(crate) cluster: bool,
}

#[derive(Args)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The channel, or with --user the user's id
    pub(crate) channel: String,
    /// The message; `-` or nothing: from stdin
    pub(crate) message: Option<String>,
    /// The event's name
    #[arg(long, value_name = "NAME", default_value = realtime_core::message::DEFAULT_EVENT)]
    pub(crate) event: String,
    /// The message is JSON
    #[arg(long, conflicts_with = "binary")]
    pub(crate) json: bool,
    /// The message is bytes, for binary frames
    #[arg(long)]
    pub(crate) binary: bool,
    /// Publish to all connections of a user
    #[arg(long)]
    pub(crate) user: bool,
    /// A connection that does not get it; may be repeated
    #[arg(long, value_name = "SOCKET_ID")]
    pub(crate) except: Vec<String>,
    /// Idempotency key: the hub publishes a key once in five minutes
    #[arg(long, value_name = "KEY")]
    pub(crate) id: Option<String>,
}

#[derive(Args)]
pub(crate) struct UsersArgs {
    /// The channel
    pub(crate) channel: String,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Args)]
pub(crate) struct DisconnectArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// The user's id
    pub(crate) user: String,
    /// Close code: 1000 or 3000–4999
    #[arg(long, default_value_t = 4009)]
    pub(crate) code: u16,
    /// Close reason
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

#[derive(Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(crate) hub: HubArgs,
    /// A channel, or a pattern in which each `*` stands for any text; '#user:42' is what is sent to user 42
    pub(crate) pattern: String,
    /// Print the hub's JSON lines
    #[arg(long)]
    pub(crate) json: bool,
    /// End after so many publications
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

#[derive(Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// A PHP to look at, such as /usr/sbin/php-fpm8.2; may be repeated [default: php, and php-fpm in /usr/sbin]
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::ExecutablePath)]
    pub(crate) php: Vec<PathBuf>,
    /// Where browsers connect, such as wss://example.com/ws: opens a WebSocket there, through the proxy
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) url: Option<String>,
}

#[derive(Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Print JSON: an object of `value` and `origin` a setting
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

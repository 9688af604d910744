//! Commands that speak to a running hub over its bus.

use std::io::Read;
use std::time::Duration;

use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client, ClientOptions};
use realtime_core::bus::frame::{BusPublish, BusQuery};
use realtime_core::bus::socket::default_addresses;
use realtime_core::history::Keeping;
use realtime_core::{Config, Payload, SocketId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::{DisconnectArgs, HubArgs, PublishArgs, ReportArgs, SettingsArgs, StatusArgs, UsersArgs};
use crate::failure::Failure;
use crate::{output, settings};

/// A person waits longer for a busy hub than a request does.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client of the hub that is meant, and where it is.
pub(crate) fn connect(args: &HubArgs) -> Result<(Client, BusAddress), Failure> {
    let (named, config) = named(args)?;
    let candidates = if named.is_empty() { default_addresses() } else { named };
    for address in &candidates {
        let mut client = Client::new(ClientOptions {
            secret: config.secret.clone(),
            ca_file: config.socket_ca.clone(),
            connect_timeout: PATIENCE,
            answer_timeout: PATIENCE,
            ..ClientOptions::probing(vec![address.clone()])
        });
        // A single candidate is asked whatever comes of it: the error then says why.
        if candidates.len() == 1 || client.is_reachable() {
            return Ok((client, address.clone()));
        }
    }
    let tried: Vec<String> = candidates.iter().map(BusAddress::to_string).collect();
    Err(Failure::NoHub(format!("no hub answers at {}; `realtime doctor` says more", tried.join(", "))))
}

/// What the command line or the configuration names, and the configuration.
fn named(args: &HubArgs) -> Result<(Vec<BusAddress>, Config), Failure> {
    let settings = settings::load(&SettingsArgs { config: args.config.clone(), socket: args.socket.clone(), ..SettingsArgs::default() })?;
    let addresses = match settings.named_socket() {
        Some("") => return Err(Failure::NoHub("the configuration has no bus: `socket` is empty".into())),
        Some(socket) => BusAddress::list(socket).map_err(|error| Failure::Usage(error.to_string()))?,
        None => Vec::new(),
    };
    Ok((addresses, settings.effective.config))
}

pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    if args.cluster { cluster_status(&args.report) } else { hub_status(&args.report) }
}

fn cluster_status(args: &ReportArgs) -> Result<(), Failure> {
    let (mut client, _) = connect(&args.hub)?;
    let cluster: Value = client.query(&BusQuery::Cluster)?;
    if args.json {
        return output::line(&cluster.to_string());
    }
    let items = |key: &str| cluster[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| output::printable(value.as_str().unwrap_or("unknown"));
    let mut rows = vec![["HUB", "HOST", "ADDRESS", "PROCESS", "VERSION", "UP", "CONNECTIONS", "CHANNELS"].map(str::to_owned).to_vec()];
    for hub in items("hubs") {
        let number = |key: &str| hub[key].as_u64().unwrap_or_default();
        rows.push(vec![
            Some(text(&hub["id"])).filter(|id| !id.is_empty()).unwrap_or_else(|| "-".into()),
            text(&hub["host"]),
            text(&hub["listen"]),
            number("pid").to_string(),
            text(&hub["version"]),
            output::duration(number("uptime_ms")),
            number("connections").to_string(),
            number("channels").to_string(),
        ]);
    }
    output::write(output::table(&rows).as_bytes())?;
    for missing in items("missing") {
        output::line(&format!("{} did not answer in time", text(&missing)))?;
    }
    Ok(())
}

fn hub_status(args: &ReportArgs) -> Result<(), Failure> {
    let (mut client, socket) = connect(&args.hub)?;
    let mut status: Value = client.query(&BusQuery::Status)?;
    status["socket"] = socket.to_string().into();
    if args.json {
        return output::line(&status.to_string());
    }
    let number = |key: &str| status[key].as_u64().unwrap_or_default();
    let text = |key: &str| output::printable(status[key].as_str().unwrap_or("unknown"));
    let rows = [
        ("version", text("version")),
        ("process", format!("{}, up {}", number("pid"), output::duration(number("uptime_ms")))),
        ("clients", format!("ws://{}/ws", text("listen"))),
        ("bus", text("socket")),
        ("connections", number("connections").to_string()),
        ("subscriptions", number("subscriptions").to_string()),
        ("channels", number("channels").to_string()),
        ("published", number("published").to_string()),
        ("memory", status["memory_bytes"].as_u64().map_or("unknown".into(), output::bytes)),
        ("open files", format!("{} of {}", status["open_files"]["used"], status["open_files"]["limit"])),
        (
            "trouble",
            format!(
                "{} slow clients closed, {} requests refused, {} publications refused by a full queue, {} panics",
                number("closed_slow"),
                number("refused"),
                number("queue_full"),
                number("panics")
            ),
        ),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::write(output::table(&rows).as_bytes())
}

pub(crate) fn publish(args: &PublishArgs) -> Result<(), Failure> {
    let except: Vec<SocketId> = args
        .except
        .iter()
        .map(|id| id.parse().map_err(|_| Failure::Usage(format!("--except {id}: not a socket id, which is two numbers and a dot"))))
        .collect::<Result<_, _>>()?;
    let body = match args.message.as_deref() {
        Some(message) if message != "-" => message.as_bytes().to_vec(),
        _ => {
            let mut body = Vec::new();
            std::io::stdin().lock().read_to_end(&mut body).map_err(|error| Failure::Failed(format!("cannot read stdin: {error}")))?;
            if !args.binary && body.last() == Some(&b'\n') {
                body.pop();
            }
            body
        }
    };
    let text = || std::str::from_utf8(&body).map_err(|_| Failure::Usage("the message is not UTF-8; --binary sends bytes".into()));
    let payload = match (args.json, args.binary) {
        (_, true) => Payload::Binary(&body),
        (true, _) => Payload::Json(text()?),
        _ => Payload::Text(text()?),
    };
    let publish = BusPublish {
        target: &args.channel,
        to_user: args.user,
        event: &args.event,
        payload,
        except,
        id: args.id.as_deref(),
        keeping: Keeping::default(),
    };
    let (mut client, _) = connect(&args.hub)?;
    let receipt = client.publish_with_receipt(&publish)?;
    output::line(&format!("epoch={} offset={} matched={}", receipt.position.epoch, receipt.position.offset, receipt.matched))
}

pub(crate) fn channels(args: &ReportArgs) -> Result<(), Failure> {
    let (mut client, _) = connect(&args.hub)?;
    let channels: Vec<Value> = client.query(&BusQuery::Channels)?;
    list(args.json, channels, &["SUBSCRIBERS", "CHANNEL"], |channel| {
        vec![channel["subscribers"].to_string(), output::printable(channel["name"].as_str().unwrap_or_default())]
    })
}

pub(crate) fn users(args: &UsersArgs) -> Result<(), Failure> {
    let (mut client, _) = connect(&args.report.hub)?;
    let users: Vec<ListedUser> = client.query(&BusQuery::ChannelUsers { channel: args.channel.clone() })?;
    list(args.report.json, users, &["CONNECTIONS", "USER", "INFO"], |user| {
        let info = user.info.as_ref().map_or(String::new(), |info| output::printable(info.get()));
        vec![user.connections.to_string(), output::printable(&user.id), info]
    })
}

/// A user of a channel; the info as it was given.
#[derive(Serialize, Deserialize)]
struct ListedUser {
    id: String,
    info: Option<Box<RawValue>>,
    connections: usize,
}

/// JSON, or a table with a heading.
fn list<T: Serialize>(json: bool, items: Vec<T>, heading: &[&str], row: impl Fn(&T) -> Vec<String>) -> Result<(), Failure> {
    if json {
        let text = serde_json::to_string(&items).map_err(|error| Failure::Failed(error.to_string()))?;
        return output::line(&text);
    }
    let mut rows = vec![heading.iter().map(|name| (*name).to_owned()).collect()];
    rows.extend(items.iter().map(row));
    output::write(output::table(&rows).as_bytes())
}

pub(crate) fn disconnect(args: &DisconnectArgs) -> Result<(), Failure> {
    let (mut client, _) = connect(&args.hub)?;
    let query = BusQuery::DisconnectUser { user: args.user.clone(), code: args.code, reason: args.reason.clone() };
    let closed: u64 = client.query(&query)?;
    output::line(&format!("closed {closed} connection{}", if closed == 1 { "" } else { "s" }))
}

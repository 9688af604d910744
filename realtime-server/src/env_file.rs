//! An application's `.env` as settings: what Laravel with Reverb or Pusher has there, and FrankenPHP's applications.
//!
//! Where browsers and PHP reach the hub (`REVERB_HOST`, `PUSHER_HOST`, …) is not where it listens, so those say nothing to
//! the hub. An empty variable counts as absent, as the applications' own files have many.

use std::collections::BTreeMap;

use realtime_core::ConfigError;
use realtime_core::config::LARAVEL_VARIABLES;
use serde_json::{Map, Value, json};

/// Switches that would change what a hub does, and have no counterpart here. What stands beside one is its harmless value.
const NOT_SUPPORTED: [(&str, &str); 3] =
    [("REVERB_SCALING_ENABLED", "false"), ("REVERB_APP_RATE_LIMITING_ENABLED", "false"), ("REVERB_MAX_REQUEST_SIZE", "10000")];

/// A file's variables.
pub(crate) type Variables = BTreeMap<String, String>;

/// What a file says to the hub.
#[derive(Debug)]
pub(crate) struct Application {
    /// By their names in the configuration.
    pub(crate) settings: Value,
    /// `REALTIME_*`, which are stronger than those of others.
    pub(crate) own: Vec<(String, String)>,
    /// What was left out.
    pub(crate) warnings: Vec<String>,
}

/// Translates variables. Where `origins_listed`, a weaker layer names origins itself, and `APP_URL` adds none.
pub(crate) fn read(variables: &Variables, origins_listed: bool) -> Result<Application, ConfigError> {
    let variable = |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let number = |name: &str| match variable(name).map(|text| (text, text.parse::<u64>())) {
        None => Ok(None),
        Some((_, Ok(number))) => Ok(Some(number)),
        Some((text, Err(_))) => Err(ConfigError::InvalidValue { key: name.into(), reason: format!("`{text}` is not a whole number") }),
    };
    let mut settings = Map::new();
    if let Some(listen) = listen(&variable) {
        settings.insert("listen".into(), listen.into());
    }
    // Reverb takes it with slashes and without.
    if let Some(path) = variable("REVERB_SERVER_PATH").map(|path| path.trim_matches('/')).filter(|path| !path.is_empty()) {
        settings.insert("path".into(), format!("/{path}").into());
    }
    match (variable("ALLOWED_ORIGINS"), variable("APP_URL")) {
        (Some(list), _) => {
            let list: Vec<&str> =
                list.split(',').map(|origin| origin.trim().trim_end_matches('/')).filter(|origin| !origin.is_empty()).collect();
            settings.insert("allowed_origins".into(), json!(list));
        }
        (None, Some(url)) if !origins_listed => {
            if let Some(origin) = origin_of(url) {
                settings.insert("allowed_origins".into(), json!(["default", origin]));
            }
        }
        _ => {}
    }
    let mut apps: Vec<Map<String, Value>> = Vec::new();
    // What the application broadcasts to is the app that is meant where none is named.
    let pusher_first = matches!(variable("BROADCAST_CONNECTION").or(variable("BROADCAST_DRIVER")), Some("pusher"));
    for prefix in if pusher_first { ["REALTIME", "PUSHER", "REVERB"] } else { ["REALTIME", "REVERB", "PUSHER"] } {
        let of = |what: &str| variable(&format!("{prefix}_APP_{what}"));
        let (Some(key), Some(secret)) = (of("KEY"), of("SECRET")) else {
            if of("KEY").is_some() || of("SECRET").is_some() {
                let (there, missing) = if of("KEY").is_some() { ("KEY", "SECRET") } else { ("SECRET", "KEY") };
                let reason = format!("{prefix}_APP_{missing} is missing");
                return Err(ConfigError::InvalidValue { key: format!("{prefix}_APP_{there}"), reason });
            }
            continue;
        };
        if apps.iter().any(|app| app["key"] == key) {
            continue;
        }
        let name = if apps.is_empty() { "default".to_owned() } else { prefix.to_ascii_lowercase() };
        let mut app =
            Map::from_iter([("name".to_owned(), json!(name)), ("key".to_owned(), json!(key)), ("secret".to_owned(), json!(secret))]);
        app.insert("id".into(), json!(of("ID").unwrap_or(&name)));
        if prefix == "REVERB" {
            if let Some(most) = number("REVERB_APP_MAX_CONNECTIONS")? {
                app.insert("max_connections".into(), most.into());
            }
            if of("ACCEPT_CLIENT_EVENTS_FROM") == Some("none") {
                app.insert("client_events".into(), false.into());
            }
        }
        apps.push(app);
    }
    if !apps.is_empty() {
        settings.insert("apps".into(), json!(apps));
    }
    let mut heartbeat = Map::new();
    for (name, key) in [("REVERB_APP_PING_INTERVAL", "ping_interval_ms"), ("REVERB_APP_ACTIVITY_TIMEOUT", "activity_timeout_ms")] {
        if let Some(seconds) = number(name)? {
            heartbeat.insert(key.into(), seconds.saturating_mul(1000).into());
        }
    }
    if !heartbeat.is_empty() {
        settings.insert("heartbeat".into(), heartbeat.into());
    }
    if let Some(bytes) = number("REVERB_APP_MAX_MESSAGE_SIZE")? {
        settings.insert("limits".into(), json!({"max_message_bytes": bytes}));
    }
    let mut warnings: Vec<String> = NOT_SUPPORTED
        .iter()
        .filter(|(name, harmless)| variable(name).is_some_and(|value| !value.eq_ignore_ascii_case(harmless)))
        .map(|(name, _)| format!("ignored {name}: this hub has nothing like it"))
        .collect();
    if variable("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM").is_some_and(|from| !matches!(from, "members" | "none")) {
        warnings.push(
            "ignored REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM: client events come from members of a channel, or from nobody (none)".into(),
        );
    }
    let own = variables
        .iter()
        .filter(|(name, value)| name.starts_with("REALTIME_") && !LARAVEL_VARIABLES.contains(&name.as_str()) && !value.is_empty());
    Ok(Application { settings: settings.into(), own: own.map(|(name, value)| (name.clone(), value.clone())).collect(), warnings })
}

/// Where to listen, by FrankenPHP's variable or Reverb's.
fn listen<'a>(variable: &impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    if let Some(address) = variable("SERVER_ADDRESS") {
        // Go's way to write all addresses.
        return Some(if address.starts_with(':') { format!("0.0.0.0{address}") } else { address.to_owned() });
    }
    match (variable("REVERB_SERVER_HOST"), variable("REVERB_SERVER_PORT")) {
        (None, None) => None,
        (host, port) => {
            let host = host.unwrap_or("127.0.0.1");
            let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
            Some(format!("{host}:{}", port.unwrap_or("8080")))
        }
    }
}

/// Scheme, host and port of an address.
fn origin_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"))?;
    let authority = rest.split(['/', '?', '#']).next().filter(|authority| !authority.is_empty() && !authority.contains('@'))?;
    let usual = if scheme == "https" { ":443" } else { ":80" };
    Some(format!("{scheme}://{}", authority.strip_suffix(usual).unwrap_or(authority)))
}

/// Reads a file as `vlucas/phpdotenv` does: `NAME=value`, `export`, comments, quotes, `${NAME}`. Values in double quotes may
/// go over lines.
pub(crate) fn parse(text: &str) -> Result<Variables, ConfigError> {
    let mut variables = Variables::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let this = rest[..end].trim();
        let assignment = this.strip_prefix("export ").unwrap_or(this);
        let Some((name, _)) = assignment.split_once('=').filter(|_| !assignment.starts_with('#')) else {
            (rest, line) = (&rest[end..], line + 1);
            continue;
        };
        let name = name.trim();
        // What stands behind the sign in the text itself: a quoted value may end in a later line.
        let value = rest[rest.find('=').map_or(rest.len(), |at| at + 1)..].trim_start_matches([' ', '\t']);
        let unterminated = || ConfigError::Syntax { reason: format!("line {line}: the quotes of {name} have no end") };
        let (read, behind) = match value.as_bytes().first() {
            Some(b'\'') => {
                let (inside, behind) = value[1..].split_once('\'').ok_or_else(unterminated)?;
                (inside.to_owned(), behind)
            }
            Some(b'"') => {
                let length = closing_quote(&value[1..]).ok_or_else(unterminated)?;
                (expand(&value[1..=length], true, &variables), &value[length + 2..])
            }
            _ => {
                let (own, behind) = value.split_at(value.find('\n').unwrap_or(value.len()));
                let own = own.find(" #").map_or(own, |at| &own[..at]);
                let own = if own.starts_with('#') { "" } else { own };
                (expand(own.trim(), false, &variables), behind)
            }
        };
        variables.insert(name.to_owned(), read);
        let after = behind.split_once('\n').map_or("", |(_, after)| after);
        line += rest[..rest.len() - after.len()].matches('\n').count();
        rest = after;
    }
    Ok(variables)
}

/// Where a text in double quotes ends.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Puts the values of variables that were set before in the place of `${NAME}`, and where there are `escapes` resolves them.
fn expand(text: &str, escapes: bool, variables: &Variables) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if escapes && let Some(escaped) = rest.strip_prefix('\\') {
            let letter = escaped.chars().next().unwrap_or('\\');
            match letter {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                '"' | '\\' | '$' => out.push(letter),
                other => out.extend(['\\', other]),
            }
            rest = escaped.get(letter.len_utf8()..).unwrap_or_default();
        } else if let Some((name, behind)) = rest.strip_prefix("${").and_then(|inside| inside.split_once('}')) {
            out.push_str(variables.get(name).map_or("", String::as_str));
            rest = behind;
        } else {
            out.push_str(&rest[..1]);
            rest = &rest[1..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Value {
        read(&parse(text).expect("valid"), false).expect("understood").settings
    }

    fn error(text: &str) -> String {
        parse(text).and_then(|variables| read(&variables, false)).expect_err("refused").to_string()
    }

    #[test]
    fn files_are_read_as_php_reads_them() {
        let text = "\u{feff}# a comment\nA=plain\n  export B = spaced out  # comment\nC='single ${A} \\n'\nD=\"double ${A} \\\"q\\\" \\$A \\n\"\n\
                    E=\nF=#nothing\nG=with#hash\nnot a variable\nH=\"two\nlines\"\r\nI=${A}-${H}\r\nJ=\"${NOBODY}\"x\nK=$A\\n\nL=\"\\x\"";
        let expected = [
            ("A", "plain"),
            ("B", "spaced out"),
            ("C", "single ${A} \\n"),
            ("D", "double plain \"q\" $A \n"),
            ("E", ""),
            ("F", ""),
            ("G", "with#hash"),
            ("H", "two\nlines"),
            ("I", "plain-two\nlines"),
            ("J", ""),
            ("K", "$A\\n"),
            ("L", "\\x"),
        ];
        let variables = parse(text).expect("valid");
        assert_eq!(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>(), expected);
        assert!(error("A=1\n\nB=\"2\n").contains("line 3: the quotes of B have no end"));
        assert!(error("A=\"1\n2\"\nB='2").contains("line 3: the quotes of B have no end"));
    }

    #[test]
    fn a_reverb_application_is_understood() {
        let text = "APP_URL=https://shop.test/\nBROADCAST_CONNECTION=reverb\nREVERB_APP_ID=123456\nREVERB_APP_KEY=key\nREVERB_APP_SECRET=geheim\n\
                    REVERB_HOST=ws.shop.test\nREVERB_PORT=443\nREVERB_SCHEME=https\nREVERB_SERVER_HOST=127.0.0.1\nREVERB_SERVER_PORT=6001\n\
                    REVERB_APP_PING_INTERVAL=60\nREVERB_APP_ACTIVITY_TIMEOUT=20\nREVERB_APP_MAX_MESSAGE_SIZE=20000\nREVERB_APP_MAX_CONNECTIONS=500\n\
                    REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=none\nVITE_REVERB_APP_KEY=\"${REVERB_APP_KEY}\"\nPUSHER_APP_ID=\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\n";
        let app =
            json!({"name": "default", "id": "123456", "key": "key", "secret": "geheim", "max_connections": 500, "client_events": false});
        assert_eq!(
            settings(text),
            json!({
                "listen": "127.0.0.1:6001",
                "allowed_origins": ["default", "https://shop.test"],
                "apps": [app],
                "heartbeat": {"ping_interval_ms": 60_000, "activity_timeout_ms": 20_000},
                "limits": {"max_message_bytes": 20_000},
            })
        );
    }

    #[test]
    fn the_app_that_is_broadcast_to_is_the_default_one() {
        let both = "REVERB_APP_KEY=r\nREVERB_APP_SECRET=s\nPUSHER_APP_ID=7\nPUSHER_APP_KEY=p\nPUSHER_APP_SECRET=t\n";
        let names =
            |text: String| settings(&text)["apps"].as_array().expect("apps").iter().map(|app| app["name"].clone()).collect::<Vec<_>>();
        let keys =
            |text: String| settings(&text)["apps"].as_array().expect("apps").iter().map(|app| app["key"].clone()).collect::<Vec<_>>();
        assert_eq!(names(both.into()), ["default", "pusher"]);
        assert_eq!(keys(format!("BROADCAST_DRIVER=pusher\n{both}")), ["p", "r"]);
        assert_eq!(names(format!("BROADCAST_DRIVER=pusher\n{both}")), ["default", "reverb"]);
        // The same app by two names is one.
        assert_eq!(keys(both.replace("=p\n", "=r\n")), ["r"]);
        // The package's own app comes before what was there, and is no setting of the hub's.
        let own = format!("REALTIME_APP_ID=5\nREALTIME_APP_KEY=o\nREALTIME_APP_SECRET=u\nREALTIME_QUEUE=false\n{both}");
        assert_eq!(keys(own.clone()), ["o", "r", "p"]);
        assert_eq!(names(own.clone()), ["default", "reverb", "pusher"]);
        assert!(read(&parse(&own).expect("valid"), false).expect("understood").own.is_empty());
        assert!(error("REVERB_APP_KEY=r").contains("REVERB_APP_SECRET is missing"));
        assert!(error("PUSHER_APP_SECRET=r").contains("PUSHER_APP_KEY is missing"));
    }

    #[test]
    fn a_frankenphp_application_is_understood() {
        for (text, listen) in [
            ("SERVER_ADDRESS=:8080", "0.0.0.0:8080"),
            ("SERVER_ADDRESS=127.0.0.1:81\nREVERB_SERVER_PORT=9", "127.0.0.1:81"),
            ("REVERB_SERVER_PORT=9", "127.0.0.1:9"),
            ("REVERB_SERVER_HOST=::1", "[::1]:8080"),
        ] {
            assert_eq!(settings(text)["listen"], listen, "{text}");
        }
        let origins = settings("ALLOWED_ORIGINS=\"https://a.test/, https://*.b.test,\"\nAPP_URL=https://c.test");
        assert_eq!(origins["allowed_origins"], json!(["https://a.test", "https://*.b.test"]));
    }

    #[test]
    fn the_applications_address_adds_its_origin() {
        for (url, origin) in [
            ("http://localhost", "http://localhost"),
            ("https://a.test:443/x", "https://a.test"),
            ("https://a.test:8443", "https://a.test:8443"),
        ] {
            assert_eq!(settings(&format!("APP_URL={url}"))["allowed_origins"], json!(["default", origin]), "{url}");
        }
        for url in ["", "a.test", "ftp://a.test", "https://", "https://me@a.test"] {
            assert_eq!(settings(&format!("APP_URL={url}")), json!({}), "{url}");
        }
        assert_eq!(read(&parse("APP_URL=https://a.test").expect("valid"), true).expect("understood").settings, json!({}));
    }

    #[test]
    fn a_path_is_reverbs_with_and_without_slashes() {
        for text in ["ws", "/ws", "ws/", "/ws/"] {
            assert_eq!(settings(&format!("REVERB_SERVER_PATH={text}")), json!({"path": "/ws"}), "{text}");
        }
        for text in ["", "/", "//"] {
            assert_eq!(settings(&format!("REVERB_SERVER_PATH={text}")), json!({}), "{text}");
        }
    }

    #[test]
    fn what_has_no_counterpart_is_said() {
        let text = "REVERB_MAX_REQUEST_SIZE=5\nREVERB_SCALING_ENABLED=true\nREVERB_APP_RATE_LIMITING_ENABLED=false\nREVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=all\n\
                    REALTIME_SHARDS=2";
        let application = read(&parse(text).expect("valid"), false).expect("understood");
        assert_eq!(application.warnings.len(), 3, "{:?}", application.warnings);
        assert_eq!(application.own, [("REALTIME_SHARDS".to_owned(), "2".to_owned())]);
        assert!(error("REVERB_APP_PING_INTERVAL=often").contains("REVERB_APP_PING_INTERVAL"));
    }
}

//! What is published, live.

use serde_json::Value;

use crate::ask;
use crate::cli::TailArgs;
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(args: &TailArgs) -> Result<(), Failure> {
    let (mut client, socket) = ask::connect(&args.hub)?;
    let mut left = args.count;
    let mut written = Ok(());
    let began = || eprintln!("watching {} at {}; Ctrl-C ends", output::printable(&args.pattern), socket);
    if left == Some(0) {
        return Ok(());
    }
    client.tail(&args.pattern, began, |line| {
        let parsed: Value = serde_json::from_str(line).unwrap_or_default();
        let dropped = parsed["dropped"].as_u64();
        written = if args.json { output::line(line) } else { output::line(&describe(&parsed)) };
        if dropped.is_none() {
            left = left.map(|left| left - 1);
        }
        written.is_ok() && left != Some(0)
    })?;
    written
}

/// A publication in one line for people.
fn describe(line: &Value) -> String {
    if let Some(dropped) = line["dropped"].as_u64() {
        return format!("… {dropped} not shown: this terminal is slower than the hub");
    }
    let text = |key: &str| output::printable(line[key].as_str().unwrap_or_default());
    let target = if line["user"].is_string() { format!("user {}", text("user")) } else { text("channel") };
    let body = match line.get("data") {
        Some(data) => output::printable(&data.to_string()),
        None => format!("{} bytes", line["bytes"]),
    };
    let cut = if line["cut"] == true { format!(" … of {} bytes", line["bytes"]) } else { String::new() };
    let time = output::time_of_day(line["at_ms"].as_u64().unwrap_or_default());
    format!("{time}  {target}  #{}  →{}  {}  {body}{cut}", line["offset"], line["matched"], text("event"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_publication_is_one_line() {
        let mut line = json!({
            "at_ms": 45_296_789, "channel": "news", "event": "message", "kind": "json", "bytes": 7,
            "matched": 3, "epoch": "6f", "offset": 42, "data": {"n": 1},
        });
        assert_eq!(describe(&line), "12:34:56.789  news  #42  →3  message  {\"n\":1}");
        line["data"] = "a\u{9b}\n".into();
        line["cut"] = true.into();
        assert_eq!(describe(&line), "12:34:56.789  news  #42  →3  message  \"a\u{fffd}\\n\" … of 7 bytes");
        assert!(describe(&json!({"dropped": 5})).starts_with("… 5 not shown"));
        let binary = json!({"at_ms": 0, "user": "7", "event": "e", "bytes": 9, "matched": 0, "offset": 1});
        assert_eq!(describe(&binary), "00:00:00.000  user 7  #1  →0  e  9 bytes");
    }
}

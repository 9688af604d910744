//! The hub beside axum: axum serves a page and takes readings, the hub brings them to every browser
//! that looks.
//!
//! ```text
//! cargo run -p realtime-example [PORT]
//! curl -d 71.5 http://127.0.0.1:PORT/sensors/boiler-1
//! ```

#![expect(clippy::print_stdout, reason = "a program that talks to people")]

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse};
use axum::routing::{get, post};
use realtime_core::{Config, Hub, Payload, Publish};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse::<u16>())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let page = listener.local_addr()?;
    // From before anybody is told that this runs.
    let signals = Signals::new([SIGINT, SIGTERM])?;
    // Another port than the page's: what a browser may open is decided by the host alone.
    let hub = Hub::start(Config { listen: "127.0.0.1:0".into(), ..Config::default() })?;
    let html = include_str!("../../page.html").replace("${location.host}", &hub.local_addr().to_string());

    let app = Router::new().route("/", get(|| async { Html(html) })).route("/sensors/{name}", post(publish)).with_state(hub.clone());
    println!("page     http://{page}/\nreadings curl -d 71.5 http://{page}/sensors/NAME");
    axum::serve(listener, app).with_graceful_shutdown(asked_to_stop(signals)).await?;
    // Waits for clients to take what is queued: not on a thread of the runtime.
    tokio::task::spawn_blocking(move || hub.stop(Duration::from_secs(5))).await?;
    println!("stopped");
    Ok(())
}

/// Publishes what was posted; says to how many it goes.
async fn publish(State(hub): State<Hub>, Path(name): Path<String>, body: String) -> impl IntoResponse {
    if body.trim().parse::<f64>().is_err() {
        return (StatusCode::BAD_REQUEST, "the body must be a number\n".to_owned());
    }
    // Waits only when the hub is full; on a busy server that is `spawn_blocking`'s business.
    match hub.publish(&Publish::new("sensors", &name, Payload::Json(body.trim()))) {
        Ok(receipt) => (StatusCode::ACCEPTED, format!("to {} subscribers\n", receipt.matched)),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error}\n")),
    }
}

async fn asked_to_stop(mut signals: Signals) {
    if let Err(error) = tokio::task::spawn_blocking(move || signals.forever().next()).await {
        eprintln!("cannot wait for signals: {error}");
    }
}

//! One publication's way: to the hub of this process, to that of another one, to the broker of hubs elsewhere, to a fake, or nowhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext_php_rs::types::Zval;
use realtime_core::broker::redis::publisher::{Gathered, Publisher, PublisherError};
use realtime_core::bus::client::{Client, ClientError};
use realtime_core::bus::frame::{BusPublish, MAX_EXCEPT};
use realtime_core::history::Keeping;
use realtime_core::message::{DEFAULT_EVENT, validate_channel};
use realtime_core::{Hub, Payload, Publish, PublishError, Receipt};

use crate::bus::{self, Role};
use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::message::{self, Channels, Message, Options};
use crate::{batch, host, remote, settings};

/// Calls of the global functions that the hub could not take and that were logged instead.
pub(crate) static FAILED_CALLS: AtomicU64 = AtomicU64::new(0);

/// Where a call goes when no hub is meant to take it.
pub(crate) enum Elsewhere {
    /// The fake records it.
    Fake(Zval),
    /// It is dropped.
    Off,
}

/// Whether the script lowered what calls do; none means that they go to the hub.
pub(crate) fn lowered() -> Option<Elsewhere> {
    let globals = GLOBALS.get();
    if !globals.lowered.get() {
        return None;
    }
    match &*globals.fake.borrow() {
        Some(fake) => Some(Elsewhere::Fake(fake.shallow_clone())),
        None => globals.off.get().then_some(Elsewhere::Off),
    }
}

/// Where the publications of a process without a hub go now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Bus,
    Broker,
    Nowhere,
}

fn way() -> Result<Way, Failure> {
    Ok(match bus::role()? {
        Role::Off => Way::Nowhere,
        Role::Remote => Way::Broker,
        Role::Client if bus::is_away()? => Way::Broker,
        Role::Client => Way::Bus,
    })
}

/// Asks the hub of this process, or the one behind the bus; none when publishing is off.
pub(crate) fn ask<R, E: Into<Failure>>(
    own: impl FnOnce(&Hub) -> Result<R, E>,
    other: impl FnOnce(&mut Client) -> Result<R, ClientError>,
) -> Result<Option<R>, Failure> {
    match host::with_hub(|running| own(&running.hub)) {
        Some(result) => result.map(Some).map_err(Into::into),
        None => match bus::role()? {
            Role::Client => bus::with_client(other).map(Some),
            Role::Remote => Err(remote::needs_hub()),
            Role::Off => Ok(None),
        },
    }
}

/// The same where the broker can answer too.
pub(crate) fn ask_anywhere<R, E: Into<Failure>>(
    own: impl FnOnce(&Hub) -> Result<R, E>,
    other: impl FnOnce(&mut Client) -> Result<R, ClientError>,
    broker: impl FnOnce(&mut Publisher) -> Result<R, PublisherError>,
) -> Result<Option<R>, Failure> {
    match host::with_hub(|running| own(&running.hub)) {
        Some(result) => result.map(Some).map_err(Into::into),
        None => match way()? {
            Way::Bus => bus::with_client(other).map(Some),
            Way::Broker => remote::with_publisher(broker).map(Some),
            Way::Nowhere => Ok(None),
        },
    }
}

/// The same where the broker leads to hubs that can answer together; what is missing of that is logged.
pub(crate) fn ask_hubs<R, E: Into<Failure>>(
    function: &str,
    own: impl FnOnce(&Hub) -> Result<R, E>,
    other: impl FnOnce(&mut Client) -> Result<R, ClientError>,
    broker: impl FnOnce(&mut Publisher) -> Result<Gathered<R>, PublisherError>,
) -> Result<Option<R>, Failure> {
    let (mut hubs, mut missing) = (0, 0);
    let answer = ask_anywhere(own, other, |publisher| {
        let gathered = broker(publisher)?;
        (hubs, missing) = (gathered.hubs, gathered.missing);
        Ok(gathered.answer)
    })?;
    if missing > 0 {
        log(&format!("realtime: {function}(): {missing} of {hubs} hubs did not answer, and what they have is missing"));
    }
    Ok(answer)
}

/// What became of a publication to one channel.
pub(crate) enum Outcome {
    /// The hub has it.
    Accepted(Receipt),
    /// The fake has it.
    Recorded,
    /// Nobody has it: publishing is off.
    Dropped,
}

/// A publication to each of the channels.
fn to_channels<'a>(channels: &'a Channels<'_>, event: &'a str, message: &'a Message<'_>, options: &'a Options<'_>) -> Vec<BusPublish<'a>> {
    let publish = |target| BusPublish {
        target,
        to_user: false,
        event,
        payload: message.payload(),
        except: options.except.clone(),
        id: options.id.as_deref(),
        keeping: options.keeping,
    };
    channels.iter().map(publish).collect()
}

/// Publishes to every channel and waits for the receipts, in order; ends at the first failure. Over the bus what was under way
/// behind it may be out.
pub(crate) fn publish(
    channels: &Channels<'_>,
    event: &str,
    message: &Message<'_>,
    options: &Options<'_>,
    mut sent: impl FnMut(Outcome),
) -> Result<(), Failure> {
    if batch::is_open() {
        return Err(Failure::Error(
            "Realtime\\publish() has no receipt to give inside Realtime\\batch(), which sends when its callback has returned; call broadcast() there".into(),
        ));
    }
    let publishes = to_channels(channels, event, message, options);
    for (at, publish) in publishes.iter().enumerate() {
        match host::with_hub(|running| hand_over(&running.hub, publish)) {
            Some(receipt) => sent(Outcome::Accepted(receipt?)),
            None => return publish_elsewhere(&publishes[at..], sent),
        }
    }
    Ok(())
}

fn publish_elsewhere(publishes: &[BusPublish<'_>], mut sent: impl FnMut(Outcome)) -> Result<(), Failure> {
    let receipts = match way()? {
        Way::Nowhere => {
            publishes.iter().for_each(|_| sent(Outcome::Dropped));
            return Ok(());
        }
        Way::Broker => over_broker(publishes)?,
        Way::Bus => {
            let limit = bus::publication_bytes()?;
            publishes.iter().try_for_each(|publish| check(publish, limit))?;
            if let [publish] = publishes {
                sent(Outcome::Accepted(bus::with_client(|client| client.publish_with_receipt(publish))?));
                return Ok(());
            }
            bus::with_client(|client| client.publish_with_receipts(publishes))?
        }
    };
    receipts.into_iter().for_each(|receipt| sent(Outcome::Accepted(receipt)));
    Ok(())
}

/// Straight to the broker, in as few round trips as can be. There is no buffer between that could take them meanwhile: who
/// publishes waits for the server, and hears what it says.
fn over_broker(publishes: &[BusPublish<'_>]) -> Result<Vec<Receipt>, Failure> {
    publishes.iter().try_for_each(check_except)?;
    let mut receipts = Vec::with_capacity(publishes.len());
    remote::with_publisher(|publisher| publisher.publish_all(publishes, |receipt| receipts.push(receipt)))?;
    Ok(receipts)
}

/// Publishes to every channel without waiting for a receipt.
pub(crate) fn broadcast(channels: &Channels<'_>, event: &str, message: &Message<'_>, options: &Options<'_>) -> Result<(), Failure> {
    send(&to_channels(channels, event, message, options))
}

/// The shortest way: one channel, one string, no options.
#[inline]
pub(crate) fn broadcast_text(channel: &str, text: &str) -> Result<(), Failure> {
    let payload = Payload::Text(text);
    if !batch::is_open()
        && let Some(receipt) = host::with_hub(|running| running.hub.publish(&Publish::new(channel, DEFAULT_EVENT, payload)))
    {
        return receipt.map(drop).map_err(Failure::from);
    }
    validate_channel(channel).map_err(message::invalid_channel)?;
    send(&[BusPublish {
        target: channel,
        to_user: false,
        event: DEFAULT_EVENT,
        payload,
        except: Vec::new(),
        id: None,
        keeping: Keeping::default(),
    }])
}

/// Publishes to the connections of one user.
pub(crate) fn broadcast_to_user(user_id: &str, event: &str, message: &Message<'_>, options: &Options<'_>) -> Result<(), Failure> {
    let payload = message.payload();
    send(&[BusPublish {
        target: user_id,
        to_user: true,
        event,
        payload,
        except: options.except.clone(),
        id: None,
        keeping: Keeping::default(),
    }])
}

/// Sends publications whose targets have been checked, or keeps them for the batch that is open.
fn send(publishes: &[BusPublish<'_>]) -> Result<(), Failure> {
    if !batch::is_open() {
        return send_now(publishes);
    }
    let limit = match host::with_hub(|running| running.publication_bytes) {
        Some(limit) => limit,
        None => match way()? {
            Way::Bus => bus::publication_bytes()?,
            Way::Broker => remote::with_publisher(Publisher::publication_bytes)?,
            Way::Nowhere => return Ok(()),
        },
    };
    publishes.iter().try_for_each(|publish| check(publish, limit))?;
    batch::add(publishes)
}

/// Sends publications whose targets have been checked, together where there is a bus between.
fn send_now(publishes: &[BusPublish<'_>]) -> Result<(), Failure> {
    if let Some(outcome) = hand_all_over(publishes) {
        return outcome;
    }
    match way()? {
        Way::Nowhere => return Ok(()),
        Way::Broker => return over_broker(publishes).map(drop),
        Way::Bus => {}
    }
    let limit = bus::publication_bytes()?;
    // Nobody answers a publication without a receipt: what is wrong with it must be said here.
    publishes.iter().try_for_each(|publish| check(publish, limit))?;
    over_bus(publishes)
}

/// Sends what a batch has collected, all of it checked.
pub(crate) fn send_collected<'p>(mut publishes: impl Iterator<Item = BusPublish<'p>>) -> Result<(), Failure> {
    match host::with_hub(|running| publishes.try_for_each(|publish| hand_over(&running.hub, &publish).map(|_| ()))) {
        Some(outcome) => outcome.map_err(Failure::from),
        None => match way()? {
            Way::Nowhere => Ok(()),
            Way::Broker => remote::with_publisher(|publisher| publisher.publish_all(publishes, drop)),
            Way::Bus => bus::with_client(|client| client.batch(&mut publishes)),
        },
    }
}

/// To the hub of this process, if there is one.
fn hand_all_over(publishes: &[BusPublish<'_>]) -> Option<Result<(), Failure>> {
    let outcome = host::with_hub(|running| publishes.iter().try_for_each(|publish| hand_over(&running.hub, publish).map(|_| ())));
    outcome.map(|outcome| outcome.map_err(Failure::from))
}

fn over_bus(publishes: &[BusPublish<'_>]) -> Result<(), Failure> {
    bus::with_client(|client| match publishes {
        [publish] => client.publish(publish),
        publishes => client.batch(publishes),
    })
}

fn hand_over(hub: &Hub, publish: &BusPublish<'_>) -> Result<Receipt, PublishError> {
    if publish.to_user {
        hub.publish_to_user(publish.target, publish.event, publish.payload, &publish.except)
    } else {
        hub.publish(&as_publish(publish))
    }
}

fn as_publish<'a>(publish: &'a BusPublish<'_>) -> Publish<'a> {
    let mut direct = Publish::new(publish.target, publish.event, publish.payload);
    direct.except = &publish.except;
    direct.id = publish.id;
    direct.history = publish.keeping.history;
    direct.ttl_ms = publish.keeping.ttl_ms;
    direct
}

/// What the hub would refuse, and what a frame cannot say.
fn check(publish: &BusPublish<'_>, limit: usize) -> Result<(), Failure> {
    as_publish(publish).check(limit)?;
    check_except(publish)
}

fn check_except(publish: &BusPublish<'_>) -> Result<(), Failure> {
    if publish.except.len() > MAX_EXCEPT {
        let count = publish.except.len();
        return Err(Failure::invalid_message(format!("option `except` names {count} connections, the limit is {MAX_EXCEPT}")));
    }
    Ok(())
}

/// What a global function does with a failure: programming mistakes are thrown, an outage is
/// logged (at most once a second, the rest counted) unless `realtime.on_error` is throw.
#[cold]
pub(crate) fn report(function: &str, failure: Failure) -> Result<(), Failure> {
    let Some(reason) = failure.outage() else { return Err(failure) };
    if settings::throws_on_outage()? {
        return Err(failure);
    }
    FAILED_CALLS.fetch_add(1, Ordering::Relaxed);
    log(&format!("realtime: {function}() failed: {reason}"));
    Ok(())
}

/// A line for PHP's log, at most one a second.
fn log(line: &str) {
    if let Some(unlogged) = LIMITER.admit() {
        let more = if unlogged == 0 { String::new() } else { format!(" ({unlogged} more failures since the last line)") };
        crate::zend::log(&format!("{line}{more}"));
    }
}

static LIMITER: LazyLock<Limiter> = LazyLock::new(|| Limiter(Mutex::new(Limited { last: None, unlogged: 0 })));

/// Lets one line a second through.
struct Limiter(Mutex<Limited>);

struct Limited {
    last: Option<Instant>,
    unlogged: u64,
}

impl Limiter {
    /// How many were held back since the last admitted one; none when this one is held back too.
    fn admit(&self) -> Option<u64> {
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut limited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if limited.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            limited.unlogged += 1;
            return None;
        }
        limited.last = Some(now);
        Some(std::mem::take(&mut limited.unlogged))
    }
}

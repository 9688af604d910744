//! The blocking side of the bus, for processes that do not hold the hub.
//!
//! A call either succeeds, fails, or fails by its deadline; it never hangs. A broken connection is
//! replaced within the call; one whose hub is late is kept, because what goes over another one would overtake what stands in
//! it. After a call has run into its deadline, calls that would have to wait fail at once for a second, then one tries again, so
//! that a hub that stands still costs a site one deadline a second and not one a request.
//!
//! A publication costs one `sendmsg`: it does not wait, and the clock is read by calls that do.
//!
//! Over TCP the system throws away what it has yet to send when a socket is closed with something unread, or is sent something
//! after that. A process may end at any moment, so nothing may be on its way to it behind a publication that nobody waits
//! for: the welcome is read before the first one, and an answer that a call gave up waiting for before the next.

use std::borrow::Borrow;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use super::address::{BusAddress, resolve};
use super::frame::{
    BatchFrame, BusFrameError, BusPublish, BusQuery, FailureCode, MAX_FRAME_BYTES, OLDEST_VERSION, Request, Response, VERSION, request_of,
    write_publish_head,
};
use super::link::{Access, Link};
use super::tls::Trust;
use crate::config::Secret;
use crate::deadline::{Deadline, NotNow, Waiting};
use crate::hooks::Kind;
use crate::message::{Payload, Receipt};
pub use crate::wire::Resolve;

/// Publications whose receipts are waited for together: they fit any socket's buffer, and a call's deadline is as good for so
/// many as for one.
const MAX_UNANSWERED: usize = 64;
const MAX_UNANSWERED_BYTES: usize = 256 << 10;
/// Between looks at a hub that somebody else brings up.
const RESCUE_POLL: Duration = Duration::from_millis(1);

/// How a client reaches its hub, and how long it waits.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Where the hub may be, tried in this order. Default none: calls fail.
    pub addresses: Vec<BusAddress>,
    /// What both sides of a bus over TCP know. Default none.
    pub secret: Secret,
    /// The PEM file of the certificates that a hub over TLS must have one of, or one signed by them. Default empty: the
    /// system's.
    pub ca_file: String,
    /// How names of hosts are looked up. Default [`resolve`]; a host that must not have threads of
    /// others' signals wraps it.
    pub resolve: Resolve,
    /// For a connection. Default 100 ms.
    pub connect_timeout: Duration,
    /// For a whole call: connecting, sending, and the answer. Default 1 s. Each frame of a batch
    /// has it anew.
    pub answer_timeout: Duration,
    /// A process that the hub is asked to live as long as, if it lives as long as others. Default none.
    pub follow: Option<u32>,
}

impl ClientOptions {
    /// The defaults for a Unix socket.
    pub fn new(socket: &Path) -> Self {
        ClientOptions::probing(vec![socket.into()])
    }

    /// The defaults for whichever of these is served, the first preferred.
    pub fn probing(addresses: Vec<BusAddress>) -> Self {
        ClientOptions {
            addresses,
            secret: Secret::default(),
            ca_file: String::new(),
            resolve,
            connect_timeout: Duration::from_millis(100),
            answer_timeout: Duration::from_secs(1),
            follow: None,
        }
    }
}

/// Why a request over the bus failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody serves the bus there, or it may not be used.
    #[error("no hub at {address}: {source}")]
    Connect {
        /// Where.
        address: BusAddress,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke twice within one call.
    #[error("connection to the hub broke: {0}")]
    Broken(io::Error),
    /// The deadline passed. A publication may have been accepted.
    #[error("no answer from the hub within {} ms", waited.as_millis())]
    Timeout {
        /// The deadline.
        waited: Duration,
    },
    /// A call has just run into its deadline; this one would have had to wait.
    #[error("the hub did not answer a moment ago; trying again in {} ms", left.as_millis())]
    Paused {
        /// Until the next attempt.
        left: Duration,
    },
    /// The hub refused.
    #[error("{message}")]
    Refused {
        /// Why.
        code: FailureCode,
        /// The hub's words.
        message: String,
    },
    /// The calls before have used up what they were allowed to wait ([`Client::allow_waiting`]).
    #[error("calls have waited {} ms for the hub already", allowance.as_millis())]
    WaitedEnough {
        /// What they were allowed together.
        allowance: Duration,
    },
    /// The request does not fit a frame.
    #[error("request has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// What came is not an answer.
    #[error("the hub's answer is not valid: {0}")]
    Protocol(String),
}

impl From<BusFrameError> for ClientError {
    fn from(error: BusFrameError) -> Self {
        ClientError::Protocol(error.to_string())
    }
}

impl From<NotNow> for ClientError {
    fn from(reason: NotNow) -> Self {
        match reason {
            NotNow::Paused(left) => ClientError::Paused { left },
            NotNow::WaitedEnough(allowance) => ClientError::WaitedEnough { allowance },
        }
    }
}

/// One process' connection to its hub. Not shared: each thread that publishes has its own.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    link: Option<Link>,
    /// The link before, if a frame was cut there, half closed: the hub has to read it to its end before there is another one.
    leaving: Option<Link>,
    /// What [`ClientOptions::ca_file`] says, once a hub over TLS has been connected to.
    trust: Option<Trust>,
    /// Numbers requests that want an answer; 0 wants none.
    last_request: u32,
    /// Reused for the heads of frames.
    head: Vec<u8>,
    /// Reused for batches.
    collected: BatchFrame,
    /// What has been received and not yet read.
    received: Vec<u8>,
    waiting: Waiting,
    /// Of the call under way.
    deadline: Deadline,
    /// Whose channels and users calls mean; empty is the default app, or the one that the hub binds this system user to.
    app: String,
    /// The one that the connection is in.
    entered: String,
    rescue: Option<Rescue>,
    /// The request that the hub answers with events, without being asked for each, and what of them
    /// has come and not been taken.
    events: Option<(u32, Vec<u8>)>,
}

/// Brings a hub up within a time.
type BringUp = dyn FnMut(Duration) -> io::Result<Rescued> + Send;

/// What came of an attempt to bring a hub up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescued {
    /// There is one now.
    Up,
    /// Somebody else is about to bring one up, or to take one down: look again in a moment.
    Soon,
}

/// What a client does when no hub is reachable.
struct Rescue(Box<BringUp>);

impl fmt::Debug for Rescue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rescue")
    }
}

impl Client {
    /// A client that connects with its first request.
    pub fn new(options: ClientOptions) -> Self {
        let deadline = Deadline::new(options.answer_timeout);
        Client {
            options,
            link: None,
            leaving: None,
            trust: None,
            last_request: 0,
            head: Vec::new(),
            collected: BatchFrame::default(),
            received: Vec::new(),
            waiting: Waiting::default(),
            deadline,
            app: String::new(),
            entered: String::new(),
            rescue: None,
            events: None,
        }
    }

    /// A client of the hub at the other end of a socket that is connected already.
    pub fn over(stream: UnixStream) -> Result<Self, ClientError> {
        let mut client = Client::new(ClientOptions::probing(Vec::new()));
        client.link = Some(Link::over(stream.into()));
        let hello = Client::hello();
        client.call(|client| client.try_send(&hello, &[]).map_err(ClientError::Broken))?;
        Ok(client)
    }

    /// Trusts the certificates of this file from the next connection on; see [`ClientOptions::ca_file`].
    pub fn trust(&mut self, ca_file: &str) {
        self.options.ca_file = ca_file.to_owned();
        self.trust = None;
    }

    /// When the certificate expires that the hub has shown; `None` without a connection over TLS.
    pub fn certificate_expiry(&self) -> Option<SystemTime> {
        self.link.as_ref()?.certificate_expiry(self.trust.as_ref()?)
    }

    /// How long each call may take from now on.
    pub fn answer_within(&mut self, timeout: Duration) {
        self.options.answer_timeout = timeout;
    }

    fn hello() -> Vec<u8> {
        let mut hello = Vec::new();
        Request::Hello { oldest: OLDEST_VERSION, newest: VERSION, pid: std::process::id() }.write(&mut hello);
        hello
    }

    /// What to do when nobody serves a socket. It gets what is left of the call's time. After `Ok` the call tries to connect
    /// again; an error is the call's.
    pub fn on_unreachable(&mut self, rescue: impl FnMut(Duration) -> io::Result<Rescued> + Send + 'static) {
        self.rescue = Some(Rescue(Box::new(rescue)));
    }

    /// Hands a publication to the hub. Success means that it is in the socket's buffer: the hub
    /// will read it, in order, even if it is told to stop.
    pub fn publish(&mut self, publish: &BusPublish<'_>) -> Result<(), ClientError> {
        self.call(|client| client.send_publish(0, publish))
    }

    /// Publishes and waits for the receipt.
    pub fn publish_with_receipt(&mut self, publish: &BusPublish<'_>) -> Result<Receipt, ClientError> {
        self.call(|client| {
            let request = client.next_request();
            client.send_publish(request, publish)?;
            client.await_receipt(request)
        })
    }

    /// Publishes in this order; the receipts, in the same. Up to 64 publications are under way before the first one is answered.
    /// Ends at the first failure; what was under way behind it may be out.
    pub fn publish_with_receipts(&mut self, publishes: &[BusPublish<'_>]) -> Result<Vec<Receipt>, ClientError> {
        let mut receipts = Vec::with_capacity(publishes.len());
        let mut rest = publishes;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |publish: &&BusPublish<'_>| {
                bytes += publish.payload.len();
                bytes <= MAX_UNANSWERED_BYTES
            };
            let (now, later) = rest.split_at(rest.iter().take(MAX_UNANSWERED).take_while(fits).count().max(1));
            rest = later;
            self.call(|client| {
                let requests: Vec<u32> = now.iter().map(|_| client.next_request()).collect();
                client.send_together(&requests, now)?;
                for request in requests {
                    receipts.push(client.await_receipt(request)?);
                }
                Ok(())
            })?;
        }
        Ok(receipts)
    }

    fn await_receipt(&mut self, request: u32) -> Result<Receipt, ClientError> {
        self.await_answer(request, |response| match response {
            Response::Receipt { receipt, .. } => Ok(Some(receipt)),
            _ => Err(ClientError::Protocol("expected a receipt".into())),
        })
    }

    /// Hands publications to the hub that it checks together.
    pub fn batch<'p, P: Borrow<BusPublish<'p>>>(&mut self, publishes: impl IntoIterator<Item = P>) -> Result<(), ClientError> {
        let mut frame = std::mem::take(&mut self.collected);
        let mut outcome = Ok(());
        for publish in publishes {
            if !frame.push(publish.borrow()) {
                outcome = self.call(|client| client.send(frame.take(), &[]));
                frame.push(publish.borrow());
            }
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() && !frame.is_empty() {
            outcome = self.call(|client| client.send(frame.take(), &[]));
        }
        frame.reset();
        self.collected = frame;
        outcome
    }

    /// Asks the hub.
    pub fn query<T: DeserializeOwned>(&mut self, query: &BusQuery) -> Result<T, ClientError> {
        let invalid = |error: serde_json::Error| ClientError::Protocol(error.to_string());
        let text = serde_json::to_string(query).map_err(invalid)?;
        let mut answer = Vec::new();
        self.call(|client| {
            let request = client.next_request();
            let mut frame = Vec::new();
            Request::Query { request, query: &text }.write(&mut frame);
            client.send(&frame, &[])?;
            client.await_answer(request, |response| match response {
                Response::Answer { more, part, .. } => {
                    answer.extend_from_slice(part);
                    Ok((!more).then_some(()))
                }
                _ => Err(ClientError::Protocol("expected an answer".into())),
            })
        })?;
        serde_json::from_slice(&answer).map_err(invalid)
    }

    /// Asks for something that is answered in parts from then on; gives the number of the request once the hub has begun.
    fn begin(&mut self, query: &BusQuery) -> Result<u32, ClientError> {
        let text = serde_json::to_string(query).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let request = self.next_request();
        let mut frame = Vec::new();
        Request::Query { request, query: &text }.write(&mut frame);
        self.call(|client| {
            client.send(&frame, &[])?;
            let outcome = client.await_answer(request, |response| match response {
                Response::Answer { more: true, .. } => Ok(Some(request)),
                _ => Err(ClientError::Protocol("expected the beginning of an answer".into())),
            });
            if let Err(ClientError::Timeout { .. }) = outcome {
                // It would begin without anybody to take what comes.
                client.retire();
            }
            outcome?;
            if let Some(link) = &mut client.link {
                link.expect_anything();
            }
            Ok(request)
        })
    }

    /// Watches what is published to the channels that match, until `each` returns false. It gets a
    /// line of JSON a publication, as `docs/protocol/bus.md` describes; `began` is called once the
    /// hub has begun. Waits for as long as nothing is published, and ends with an error when the
    /// hub does.
    pub fn tail(&mut self, pattern: &str, began: impl FnOnce(), mut each: impl FnMut(&str) -> bool) -> Result<(), ClientError> {
        let request = self.begin(&BusQuery::Tail { pattern: pattern.into() })?;
        began();
        let mut partial = Vec::new();
        loop {
            let part = self.await_part(request, true, |response| match response {
                Response::Answer { part, .. } => Ok(Some(part.to_vec())),
                _ => Err(ClientError::Protocol("expected a part of a tail".into())),
            })?;
            partial.extend_from_slice(&part);
            while let Some(end) = partial.iter().position(|byte| *byte == b'\n') {
                let rest = partial.split_off(end + 1);
                let line = std::mem::replace(&mut partial, rest);
                let line = std::str::from_utf8(&line[..end]).map_err(|error| ClientError::Protocol(error.to_string()))?;
                if !each(line) {
                    // The hub would go on sending.
                    self.forget();
                    return Ok(());
                }
            }
        }
    }

    /// Handles connections from now on: [`Client::next_event`] gives what happens to them, as
    /// `docs/protocol/bus.md` describes. The connection is this program's; when it ends, others get
    /// what it had, and what it decided is refused.
    pub fn handle(&mut self, hears: Vec<Kind>, decides: Vec<Kind>) -> Result<(), ClientError> {
        let request = self.begin(&BusQuery::Handle { hears, decides })?;
        self.events = Some((request, Vec::new()));
        Ok(())
    }

    /// The next event after [`Client::handle`], a line of JSON; `None`: there was none in time.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<String>, ClientError> {
        if self.events.is_none() {
            return Err(ClientError::Broken(io::ErrorKind::NotConnected.into()));
        }
        // Even without time, what is there already is taken.
        self.deadline = Deadline::new(timeout.max(Duration::from_micros(1)));
        loop {
            while let Some(frame) = self.take_frame()? {
                self.keep_events(&Response::read(&frame)?);
            }
            if let Some(line) = self.take_event()? {
                return Ok(Some(line));
            }
            match self.receive(false) {
                Ok(()) => {}
                Err(error) if is_timeout(&error) => return Ok(None),
                Err(error) => {
                    self.forget();
                    return Err(ClientError::Broken(error));
                }
            }
        }
    }

    /// An event that has been received already.
    pub fn received_event(&mut self) -> Result<Option<String>, ClientError> {
        while let Some(frame) = self.take_frame()? {
            self.keep_events(&Response::read(&frame)?);
        }
        self.take_event()
    }

    /// Asks the hub for something that it does not answer.
    pub fn tell(&mut self, query: &BusQuery) -> Result<(), ClientError> {
        let text = serde_json::to_string(query).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let mut frame = Vec::new();
        Request::Query { request: 0, query: &text }.write(&mut frame);
        self.call(|client| client.send(&frame, &[]))
    }

    /// What becomes readable when there is an event; it is the client's, and must not be read from.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.link.as_ref().map(Link::descriptor)
    }

    fn keep_events(&mut self, response: &Response<'_>) {
        if let (Some((events, lines)), Response::Answer { request, part, .. }) = (&mut self.events, response)
            && events == request
        {
            lines.extend_from_slice(part);
        }
    }

    fn take_event(&mut self) -> Result<Option<String>, ClientError> {
        let Some((_, lines)) = &mut self.events else { return Ok(None) };
        let Some(end) = lines.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = std::str::from_utf8(&lines[..end]).map(str::to_owned).map_err(|error| ClientError::Protocol(error.to_string()));
        lines.drain(..=end);
        line.map(Some)
    }

    /// What the calls from now on may wait for the hub, together; `None` (the default) is as much as
    /// each call's own deadline allows. For hosts whose requests have to end in time. Calls that wait
    /// less than 10 ms use nothing of it.
    pub fn allow_waiting(&mut self, allowance: Option<Duration>) {
        self.waiting.allow(allowance);
    }

    /// Whose channels and users the calls from now on mean; empty is the default app. Costs a question
    /// to the hub with the next call, if it is another one than before.
    pub fn use_app(&mut self, app: &str) {
        if self.app != app {
            self.app = app.to_owned();
        }
    }

    /// What calls have waited of what they are allowed ([`Client::allow_waiting`]).
    pub fn waited(&self) -> Duration {
        self.waiting.waited()
    }

    /// Connects if there is no connection, or the hub has ended it. Fails while calls that would wait fail at once, because the hub
    /// has just let one run into its deadline.
    pub fn reach(&mut self) -> Result<(), ClientError> {
        self.waiting.check_pause()?;
        if self.link.as_ref().is_some_and(|link| !link.has_ended()) {
            return Ok(());
        }
        self.forget_link();
        self.call(|client| client.connect().or_else(|error| client.connect_after_rescue(error)))
    }

    /// Whether somebody serves the socket. Connects if there is no connection.
    pub fn is_reachable(&mut self) -> bool {
        self.link.is_some() || self.call(Client::connect).is_ok()
    }

    /// Forgets the connection without a word, as a forked child must.
    pub fn forget(&mut self) {
        self.leaving = None;
        self.forget_link();
        self.waiting.resume();
    }

    /// Gives a connection up that takes nothing more. The hub reads it to its end before it is sent anything over another one.
    fn retire(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        link.leave(Duration::ZERO);
        self.leaving = Some(link);
        self.forget_link();
    }

    fn forget_link(&mut self) {
        self.link = None;
        self.received.clear();
        self.events = None;
        self.entered.clear();
    }

    /// Runs one call under its deadline.
    fn call<T>(&mut self, run: impl FnOnce(&mut Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        self.deadline = self.waiting.begin(self.options.answer_timeout)?;
        let outcome = run(self);
        self.waiting.end(&self.deadline);
        outcome
    }

    fn next_request(&mut self) -> u32 {
        self.last_request = self.last_request.checked_add(1).unwrap_or(1);
        self.last_request
    }

    fn send_publish(&mut self, request: u32, publish: &BusPublish<'_>) -> Result<(), ClientError> {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        write_publish_head(request, publish, &mut head);
        let body = match publish.payload {
            Payload::Text(text) | Payload::Json(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        };
        let outcome = self.send(&head, body);
        self.head = head;
        outcome
    }

    /// Sends a frame each in one write, over a new connection if the old one takes none of it: of frames that it has taken some
    /// may have been acted on.
    fn send_together(&mut self, requests: &[u32], publishes: &[BusPublish<'_>]) -> Result<(), ClientError> {
        self.waiting.check_pause()?;
        if self.link.is_some() {
            let mut sent = 0;
            match self.attempt_together(requests, publishes, &mut sent) {
                Err(ClientError::Broken(_)) if sent == 0 => self.forget(),
                outcome => return outcome,
            }
        }
        self.connect().or_else(|error| self.connect_after_rescue(error))?;
        self.attempt_together(requests, publishes, &mut 0)
    }

    fn attempt_together(&mut self, requests: &[u32], publishes: &[BusPublish<'_>], sent: &mut usize) -> Result<(), ClientError> {
        self.prepare()?;
        let Some(link) = &mut self.link else { return Err(ClientError::Broken(io::ErrorKind::NotConnected.into())) };
        let mut frames = Vec::new();
        for (request, publish) in requests.iter().zip(publishes) {
            let start = frames.len();
            write_publish_head(*request, publish, &mut frames);
            // One that is too large is alone, and nothing has been sealed before it.
            check_size(&frames[start..], publish.payload.as_bytes())?;
            frames.extend_from_slice(publish.payload.as_bytes());
            link.seal(&mut frames, start);
        }
        let last = requests.last().copied().unwrap_or_default();
        link.send_sealed(&frames, last, sent, &mut self.deadline).map_err(|error| {
            if is_timeout(&error) {
                return self.timed_out();
            }
            self.forget();
            ClientError::Broken(error)
        })
    }

    /// Sends a frame, over a new connection if the old one is gone. A frame that was cut is never
    /// acted on, so it may be sent again.
    fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), ClientError> {
        check_size(head, body)?;
        if let Err(paused) = self.waiting.check_pause() {
            return self.send_unwaiting(head, body, paused);
        }
        if self.link.is_some() {
            match self.attempt(head, body) {
                Err(ClientError::Broken(_)) => self.forget(),
                outcome => return outcome,
            }
        }
        self.connect().or_else(|error| self.connect_after_rescue(error))?;
        self.attempt(head, body)
    }

    /// While calls that would wait fail at once: what a connection takes without waiting stands there in order for a hub that is
    /// only late.
    #[cold]
    fn send_unwaiting(&mut self, head: &[u8], body: &[u8], paused: NotNow) -> Result<(), ClientError> {
        if self.link.is_none() || self.entered != self.app || request_of(head) != 0 {
            return Err(paused.into());
        }
        let whole = std::mem::replace(&mut self.deadline, Deadline::new(Duration::ZERO));
        match self.attempt(head, body) {
            Err(ClientError::Timeout { .. }) => Err(paused.into()),
            Err(ClientError::Broken(_)) => {
                // It was not late, it has gone.
                self.forget();
                self.deadline = whole;
                self.send(head, body)
            }
            outcome => outcome,
        }
    }

    /// Sends over the connection that there is, in the app that is meant.
    fn attempt(&mut self, head: &[u8], body: &[u8]) -> Result<(), ClientError> {
        self.prepare()?;
        self.try_send(head, body).map_err(|error| {
            if is_timeout(&error) {
                return self.timed_out();
            }
            self.forget();
            ClientError::Broken(error)
        })
    }

    /// Makes the connection that there is ready for the next frame.
    fn prepare(&mut self) -> Result<(), ClientError> {
        if self.link.as_ref().is_some_and(|link| link.is_remote() && link.owed().is_some()) {
            self.settle()?;
        }
        if self.entered != self.app {
            self.enter_app()?;
        }
        Ok(())
    }

    /// Tells the hub which app is meant. Nothing is sent behind it before the hub has agreed: it would go to another one.
    #[cold]
    fn enter_app(&mut self) -> Result<(), ClientError> {
        let query = BusQuery::UseApp { app: self.app.clone() };
        let text = serde_json::to_string(&query).map_err(|error| ClientError::Protocol(error.to_string()))?;
        let request = self.next_request();
        let mut frame = Vec::new();
        Request::Query { request, query: &text }.write(&mut frame);
        self.try_send(&frame, &[]).map_err(|error| if is_timeout(&error) { self.timed_out() } else { ClientError::Broken(error) })?;
        let outcome = self.await_answer(request, |response| match response {
            Response::Answer { .. } => Ok(Some(())),
            _ => Err(ClientError::Protocol("expected an answer".into())),
        });
        if let Err(ClientError::Timeout { .. }) = outcome {
            // In which app it is now is for nobody to say.
            self.retire();
        }
        outcome?;
        self.entered.clone_from(&self.app);
        Ok(())
    }

    /// The connection is kept: a late answer is recognized by its request, and what stands there stays in order.
    fn timed_out(&mut self) -> ClientError {
        if self.link.as_ref().is_some_and(Link::is_cut) {
            self.retire();
        }
        self.waiting.pause();
        ClientError::Timeout { waited: self.deadline.budget }
    }

    /// Goes on trying if the reason for `error` is that there is no hub, and one can be brought up.
    fn connect_after_rescue(&mut self, mut error: ClientError) -> Result<(), ClientError> {
        let Some(mut rescue) = self.rescue.take() else { return Err(error) };
        let outcome = loop {
            let ClientError::Connect { address, source } = &error else { break Err(error) };
            // Of a hub elsewhere nobody here can bring up another.
            if address.path().is_none() || !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                break Err(error);
            }
            let left = self.deadline.left();
            if left.is_zero() {
                self.waiting.pause();
                break Err(error);
            }
            let rescued = match (rescue.0)(left) {
                Ok(rescued) => rescued,
                Err(source) => break Err(ClientError::Connect { address: address.clone(), source }),
            };
            error = match (self.connect(), rescued) {
                (Err(error), Rescued::Soon) => error,
                (outcome, _) => break outcome,
            };
            thread::sleep(RESCUE_POLL);
        };
        self.rescue = Some(rescue);
        outcome
    }

    fn connect(&mut self) -> Result<(), ClientError> {
        if let Some(leaving) = &mut self.leaving {
            if !leaving.leave(self.deadline.left()) {
                return Err(self.timed_out());
            }
            self.leaving = None;
        }
        let mut failure: Option<(&BusAddress, io::Error)> = None;
        let mut opened = None;
        // For all candidates together.
        let mut connecting = Deadline::new(self.options.connect_timeout.min(self.deadline.left()));
        let options = &self.options;
        let access = Access { secret: options.secret.expose(), ca_file: &options.ca_file, resolve: options.resolve };
        for address in &self.options.addresses {
            match Link::connect(address, access, &mut self.trust, &mut connecting, &mut self.deadline) {
                Ok(link) => {
                    opened = Some((link, address.clone()));
                    break;
                }
                // A socket that is there says more than one that is not.
                Err(error) if failure.as_ref().is_none_or(|(_, known)| known.kind() == io::ErrorKind::NotFound) => {
                    failure = Some((address, error));
                }
                Err(_) => {}
            }
        }
        let Some((link, address)) = opened else {
            let (address, source) = match failure {
                Some((address, source)) => (address.clone(), source),
                None => (BusAddress::Unix(Default::default()), io::ErrorKind::NotFound.into()),
            };
            if is_timeout(&source) {
                self.waiting.pause();
            }
            return Err(ClientError::Connect { address, source });
        };
        let mut hello = Client::hello();
        if let Some(pid) = self.options.follow {
            let query = serde_json::to_string(&BusQuery::Follow { pid }).map_err(|error| ClientError::Protocol(error.to_string()))?;
            Request::Query { request: 0, query: &query }.write(&mut hello);
        }
        self.received.clear();
        let is_remote = link.is_remote();
        self.link = Some(link);
        let outcome = match self.try_send(&hello, &[]) {
            Ok(()) if is_remote => self.await_welcome(),
            Ok(()) => return Ok(()),
            Err(source) => Err(source),
        };
        outcome.map_err(|source| {
            self.link = None;
            if is_timeout(&source) {
                self.waiting.pause();
            }
            ClientError::Connect { address, source }
        })
    }

    /// Reads what a hub says first, so that it is not unread when this process ends.
    fn await_welcome(&mut self) -> io::Result<()> {
        let invalid = |error: &dyn fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        loop {
            let Some(link) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
            if let Some(frame) = link.take_frame(&mut self.received)? {
                return match Response::read(&frame).map_err(|error| invalid(&error))? {
                    Response::Welcome { .. } => Ok(()),
                    Response::Failure { message, .. } => Err(io::Error::new(io::ErrorKind::PermissionDenied, message.to_owned())),
                    _ => Err(invalid(&"it does not say welcome")),
                };
            }
            self.receive(false)?;
        }
    }

    /// Over TCP: reads the answers that nobody has waited for to the end.
    #[cold]
    fn settle(&mut self) -> Result<(), ClientError> {
        while let Some(request) = self.link.as_ref().and_then(Link::owed) {
            match self.await_answer(request, |response| Ok(ends(&response).then_some(()))) {
                Err(ClientError::Refused { .. }) => {}
                outcome => outcome?,
            }
        }
        Ok(())
    }

    fn try_send(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        link.send_all(head, body, &mut self.deadline)
    }

    /// Reads until `take` has what it wants of the answers to `request`.
    fn await_answer<T>(
        &mut self,
        request: u32,
        take: impl FnMut(Response<'_>) -> Result<Option<T>, ClientError>,
    ) -> Result<T, ClientError> {
        self.await_part(request, false, take)
    }

    /// The same by the call's deadline, or for as long as it takes.
    fn await_part<T>(
        &mut self,
        request: u32,
        for_ever: bool,
        mut take: impl FnMut(Response<'_>) -> Result<Option<T>, ClientError>,
    ) -> Result<T, ClientError> {
        loop {
            while let Some(frame) = self.take_frame()? {
                let response = Response::read(&frame)?;
                if let Some(link) = self.link.as_mut().filter(|_| ends(&response)) {
                    link.answered(response.request());
                }
                match response {
                    Response::Welcome { .. } => {}
                    Response::Failure { request: of, code, message } if of == request || of == 0 => {
                        return Err(ClientError::Refused { code, message: message.to_owned() });
                    }
                    response @ (Response::Receipt { request: of, .. } | Response::Answer { request: of, .. }) if of == request => {
                        if let Some(taken) = take(response)? {
                            return Ok(taken);
                        }
                    }
                    // An event, or an answer that a call before gave up waiting for.
                    other => self.keep_events(&other),
                }
            }
            match self.receive(for_ever) {
                Ok(()) => {}
                Err(error) if is_timeout(&error) => return Err(self.timed_out()),
                Err(error) => {
                    self.forget();
                    return Err(ClientError::Broken(error));
                }
            }
        }
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let Some(link) = &mut self.link else { return Ok(None) };
        let taken = link.take_frame(&mut self.received);
        taken.map_err(|error| {
            self.forget();
            ClientError::Protocol(error.to_string())
        })
    }

    fn receive(&mut self, for_ever: bool) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        let timeout = if for_ever { None } else { Some(self.deadline.left_or_timeout()?) };
        match link.receive(&mut self.received, timeout) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}

/// Whether nothing more comes in answer to its request.
fn ends(response: &Response<'_>) -> bool {
    match response {
        Response::Receipt { .. } | Response::Failure { .. } => true,
        Response::Answer { more, .. } => !more,
        _ => false,
    }
}

/// Of a frame, its length left out.
fn check_size(head: &[u8], body: &[u8]) -> Result<(), ClientError> {
    let bytes = head.len() + body.len() - 4;
    if bytes > MAX_FRAME_BYTES { Err(ClientError::TooLarge { bytes, limit: MAX_FRAME_BYTES }) } else { Ok(()) }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

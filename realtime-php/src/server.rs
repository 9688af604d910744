//! The classes `Realtime\Server` and `Realtime\Connection`: handlers for connections, run on the PHP
//! thread.
//!
//! A server has a connection to the hub's bus of its own, also where the hub is in this process:
//! events come over it and what handlers do goes back. Nothing of the hub ever waits for PHP.

use std::collections::{HashMap, VecDeque};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ext_php_rs::ffi::{ZEND_ACC_FINAL, ZEND_ACC_NO_DYNAMIC_PROPERTIES, ZEND_ACC_NOT_SERIALIZABLE, ZEND_ACC_PRIVATE, ZEND_ACC_PUBLIC};
use ext_php_rs::types::{ZendCallable, ZendHashTable, ZendObject, ZendStr, Zval};
use ext_php_rs::zend::ExecutorGlobals;
use realtime_core::Payload;
use realtime_core::bus::client::{Client, ClientError};
use realtime_core::bus::frame::{BusAct, BusQuery};
use realtime_core::hooks::Kind;
use realtime_core::message::{DEFAULT_EVENT, validate_channel};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::message::{self, Options};
use crate::objects::{PRIVATE_READONLY, READONLY, object};
use crate::readiness::Readiness;
use crate::signals::{self, NotedSignals};
use crate::signature::{
    ARRAY, BOOL, CALLABLE, Class, FunctionTable, INT, MIXED, NULL, Property, STRING, Signature, Type, VOID, optional, parameter, undefined,
};
use crate::zend::{self, Call, handler, parse};
use crate::{bus, host, json};

static SERVER: Class = Class::new();
static CONNECTION: Class = Class::new();

/// Slots of the declared properties.
const SERVER_ID: usize = 0;
const CONNECTION_ID: usize = 0;
const CONNECTION_USER: usize = 1;
const CONNECTION_SERVER: usize = 5;
const CONNECTION_SHARD: usize = 6;

/// Events after which `poll()` no longer reads new ones.
const EVENTS_OF_A_POLL: i64 = 1_000;
/// Between looks at the signals.
const RUN_SLICE: Duration = Duration::from_millis(100);
/// Between attempts to find a hub again.
const RETRY: Duration = Duration::from_millis(250);
const SEND_OPTIONS: [&str; 2] = ["json", "binary"];
const NAMES: [(&str, Kind); 5] = [
    ("connect", Kind::Connect),
    ("subscribe", Kind::Subscribe),
    ("message", Kind::Message),
    ("unsubscribe", Kind::Unsubscribe),
    ("disconnect", Kind::Disconnect),
];

/// What a `Server` object stands for. Its handlers and connections are here and not in properties,
/// so that no script can take them away in the middle of a call.
pub(crate) struct State {
    client: Option<Client>,
    /// [`host::forks`] when the client was made.
    forks: u64,
    handlers: HashMap<&'static str, Zval>,
    connections: HashMap<String, Zval>,
    /// Events that came with the answers to calls between polls.
    waiting: VecDeque<String>,
    /// What `stream()` shows, once it was called.
    readiness: Option<Readiness>,
    /// A handler runs: it may not poll.
    busy: bool,
}

impl State {
    /// Makes the stream show what there is to do.
    fn settle(&mut self) {
        let Some(readiness) = &mut self.readiness else { return };
        if let Some(client) = &mut self.client {
            while let Ok(Some(line)) = client.received_event() {
                self.waiting.push_back(line);
            }
        }
        let is_connected = self.client.as_ref().and_then(Client::descriptor).is_some();
        // Without a connection the next poll looks for one, or says why there is none.
        readiness.raise(!self.waiting.is_empty() || !is_connected);
    }

    /// Makes the stream show what the connection has.
    fn watch(&mut self) -> std::io::Result<()> {
        if let (Some(readiness), Some(descriptor)) = (&mut self.readiness, self.client.as_ref().and_then(Client::descriptor)) {
            readiness.watch(descriptor)?;
        }
        self.settle();
        Ok(())
    }
}

/// MINIT.
pub(crate) fn register_classes() -> Result<(), &'static str> {
    static TABLES: OnceLock<[FunctionTable; 2]> = OnceLock::new();
    const OPTIONS: crate::signature::Parameter = optional(c"options", ARRAY, c"[]");
    let [server, connection] = TABLES.get_or_init(|| {
        [
            FunctionTable::new(&[
                Signature { name: c"__construct", handler: handler!(construct), required: 0, parameters: &[], returns: None, flags: ZEND_ACC_PUBLIC },
                Signature { name: c"__destruct", handler: handler!(destruct), required: 0, parameters: &[], returns: None, flags: ZEND_ACC_PUBLIC },
                Signature::new(
                    c"on",
                    handler!(on),
                    2,
                    const { &[parameter(c"event", STRING), parameter(c"handler", CALLABLE)] },
                    Type::class("Realtime\\Server"),
                ),
                Signature::new(c"poll", handler!(poll), 0, const { &[optional(c"timeoutMs", INT, c"0")] }, INT),
                Signature::new(c"run", handler!(run), 0, &[], INT),
                Signature::new(c"stream", handler!(stream), 0, &[], MIXED),
                Signature::new(
                    c"send",
                    handler!(send_from_server),
                    2,
                    const {
                        &[
                            parameter(c"socketId", STRING),
                            parameter(c"message", MIXED),
                            optional(c"as", STRING, c"'message'"),
                            OPTIONS,
                        ]
                    },
                    VOID,
                ),
            ]),
            FunctionTable::new(&[
                Signature::private_constructor(handler!(nothing)),
                Signature::new(
                    c"send",
                    handler!(send),
                    1,
                    const { &[parameter(c"message", MIXED), optional(c"as", STRING, c"'message'"), OPTIONS] },
                    VOID,
                ),
                Signature::new(c"join", handler!(join), 1, const { &[parameter(c"channel", STRING)] }, BOOL),
                Signature::new(c"leave", handler!(leave), 1, const { &[parameter(c"channel", STRING)] }, BOOL),
                Signature::new(
                    c"close",
                    handler!(close),
                    0,
                    const { &[optional(c"code", INT, c"1000"), optional(c"reason", STRING, c"''")] },
                    VOID,
                ),
            ]),
        ]
    });
    let flags = ZEND_ACC_FINAL | ZEND_ACC_NOT_SERIALIZABLE | ZEND_ACC_NO_DYNAMIC_PROPERTIES;
    let property = |name, kind, flags| Property { name, kind, flags, default: undefined };
    SERVER.register(
        "Realtime\\Server",
        None,
        server,
        flags,
        &[Property { name: "id", kind: INT, flags: ZEND_ACC_PRIVATE, default: || json::zval(0_i64) }],
    )?;
    let properties = [
        property("id", STRING, READONLY),
        property("userId", STRING.or(NULL), READONLY),
        property("path", STRING, READONLY),
        property("query", ARRAY, READONLY),
        Property { name: "data", kind: MIXED, flags: ZEND_ACC_PUBLIC, default: Zval::null },
        property("server", INT, PRIVATE_READONLY),
        property("shard", INT, PRIVATE_READONLY),
    ];
    CONNECTION.register("Realtime\\Connection", None, connection, flags, &properties)?;
    Ok(())
}

/// RSHUTDOWN.
pub(crate) fn end_request() {
    // A fatal error in a handler does not come back to run().
    signals::restore();
    // Taken first: releasing them may run PHP code.
    let servers = GLOBALS.get().servers.take();
    drop(servers);
}

fn nothing(_: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    Ok(())
}

/// A whole number in a slot of the object whose method is called.
fn number(call: &Call<'_>, slot: usize) -> i64 {
    // SAFETY: only called for methods of the classes above, with slots that they declare.
    call.this().and_then(|this| unsafe { (*zend::property(this, slot)).long() }).unwrap_or(0)
}

fn server_id(call: &Call<'_>) -> u64 {
    number(call, SERVER_ID).cast_unsigned()
}

fn construct(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    parse!(call, c"")?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    if let Some(this) = call.this() {
        // SAFETY: the class declares it; a number needs no destruction.
        unsafe { (*zend::property(this, SERVER_ID)).set_long(id.cast_signed()) };
    }
    let state = State {
        client: None,
        forks: 0,
        handlers: HashMap::new(),
        connections: HashMap::new(),
        waiting: VecDeque::new(),
        readiness: None,
        busy: false,
    };
    GLOBALS.get().servers.borrow_mut().insert(id, state);
    Ok(())
}

fn destruct(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let state = GLOBALS.get().servers.borrow_mut().remove(&server_id(call));
    drop(state);
    Ok(())
}

/// Uses the state of a server; must not call into PHP.
fn with<R>(id: u64, run: impl FnOnce(&mut State) -> R) -> Result<R, Failure> {
    let mut servers = GLOBALS.get().servers.borrow_mut();
    servers.get_mut(&id).map(run).ok_or_else(|| Failure::unavailable("this Realtime\\Server has ended"))
}

/// Uses the connection to the hub.
fn ask<R>(id: u64, run: impl FnOnce(&mut Client) -> Result<R, ClientError>) -> Result<R, Failure> {
    with(id, |state| {
        let forks = state.forks;
        match state.client.as_mut().filter(|_| forks == host::forks()) {
            Some(client) => {
                let outcome = run(client).map_err(Failure::from);
                // The turn that a handler runs in goes on, and looks itself.
                if !state.busy {
                    state.settle();
                }
                outcome
            }
            None => Err(Failure::unavailable("this Realtime\\Server has no connection to a hub")),
        }
    })?
}

/// `Server::on(string $event, callable $handler): Server`
fn on(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let (mut event, mut handler) = (ptr::null_mut::<ZendStr>(), ptr::null_mut::<Zval>());
    parse!(call, c"Sz", event, handler)?;
    // SAFETY: parsed above; the call's frame holds them.
    let (event, handler) = unsafe { (event.as_ref(), handler.as_ref()) };
    let handler = handler.map(Zval::dereference).ok_or(Failure::Pending)?;
    ZendCallable::new(handler).map_err(|_| zend::argument_type_error(1, "a valid callback", handler))?;
    let name = event.and_then(zend::text_of).and_then(|name| NAMES.iter().find(|(known, _)| *known == name));
    let Some((name, _)) = name else {
        return Err(zend::argument_value_error(0, "must be one of connect, subscribe, message, unsubscribe, disconnect"));
    };
    let kept = handler.shallow_clone();
    let replaced = with(server_id(call), |state| match &state.client {
        Some(_) => Err(Failure::Error("handlers are set before the server runs".into())),
        None => Ok(state.handlers.insert(name, kept)),
    })?;
    // Releasing the one before may run PHP code.
    drop(replaced?);
    if let Some(this) = call.this() {
        result.set_object(this);
    }
    Ok(())
}

/// Connects to the hub, and says what is wanted of it.
fn attach(id: u64) -> Result<(), Failure> {
    let forks = host::forks();
    let known = with(id, |state| {
        if state.forks != forks {
            // In a forked child the old connection is the parent's, and so is what its stream shows.
            state.client = None;
            state.readiness = None;
            state.waiting.clear();
        }
        (state.client.is_some(), state.handlers.keys().copied().collect::<Vec<_>>())
    })?;
    let (false, named) = known else { return Ok(()) };
    let kinds = |wanted: &dyn Fn(&str) -> bool| NAMES.iter().filter(|(name, _)| wanted(name)).map(|(_, kind)| *kind).collect::<Vec<_>>();
    // Connections are made and forgotten by these two, whether they are handled or not.
    let hears = kinds(&|name| matches!(name, "connect" | "disconnect") || named.contains(&name));
    let decides = kinds(&|name| matches!(name, "connect" | "subscribe") && named.contains(&name));
    let mut client = match host::with_hub(|running| running.hub.open_bus()) {
        Some(stream) => Client::over(stream.map_err(|error| Failure::unavailable(format!("the hub of this process has ended: {error}")))?)?,
        None => bus::another_client()?,
    };
    client.handle(hears, decides)?;
    let watched = with(id, |state| {
        state.client = Some(client);
        state.forks = forks;
        state.watch()
    })?;
    watched.map_err(unwatchable)
}

fn unwatchable(error: std::io::Error) -> Failure {
    Failure::unavailable(format!("the connection to the hub cannot be watched: {error}"))
}

/// What the hub says of a connection.
#[derive(Deserialize)]
struct Event {
    kind: Kind,
    connection: String,
    #[serde(default)]
    shard: i64,
    ticket: Option<String>,
    user_id: Option<String>,
    channel: Option<String>,
    path: Option<String>,
    query: Option<String>,
    event: Option<String>,
    data: Option<Box<RawValue>>,
    text: Option<String>,
    bytes: Option<String>,
    id: Option<Box<RawValue>>,
    reason: Option<String>,
}

/// How a handler ended.
enum Outcome {
    /// There is none, or it returned null.
    Nothing,
    Returned(Zval),
    Threw,
}

/// `Server::poll(int $timeoutMs = 0): int`
fn poll(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let mut timeout = 0_i64;
    parse!(call, c"|l", timeout)?;
    let timeout = u64::try_from(timeout).map_err(|_| zend::argument_value_error(0, "must not be negative"))?;
    let id = server_id(call);
    if with(id, |state| state.busy)? {
        return Err(Failure::Error("a handler cannot poll its own server".into()));
    }
    attach(id)?;
    result.set_long(turn(id, Duration::from_millis(timeout))?);
    Ok(())
}

/// Handles what has come, and waits for the first event; gives how many there were.
fn turn(id: u64, timeout: Duration) -> Result<i64, Failure> {
    let outcome = handle_all(id, timeout);
    with(id, State::settle)?;
    outcome
}

fn handle_all(id: u64, timeout: Duration) -> Result<i64, Failure> {
    let mut handled = 0;
    loop {
        let line = match with(id, |state| state.waiting.pop_front())? {
            Some(line) => Ok(Some(line)),
            None => ask(id, |client| match handled {
                0 => client.next_event(timeout),
                EVENTS_OF_A_POLL.. => client.received_event(),
                _ => client.next_event(Duration::ZERO),
            }),
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(handled),
            Err(failure) => {
                // The next call looks for a hub again.
                let gone = with(id, |state| {
                    state.waiting.clear();
                    (state.client.take(), std::mem::take(&mut state.connections))
                })?;
                drop(gone);
                return Err(failure);
            }
        };
        handled += 1;
        with(id, |state| state.busy = true)?;
        let outcome = serde_json::from_str::<Event>(&line)
            .map_err(|error| Failure::unavailable(format!("the hub's event is not valid: {error}")))
            .and_then(|event| handle(id, &event));
        with(id, |state| state.busy = false)?;
        outcome?;
    }
}

fn handle(id: u64, event: &Event) -> Result<(), Failure> {
    let connection = connection(id, event)?;
    let text = |text: &Option<String>| json::zval(text.as_deref().unwrap_or_default());
    match event.kind {
        Kind::Connect | Kind::Subscribe => {
            let mut arguments = vec![connection];
            if event.kind == Kind::Subscribe {
                arguments.push(text(&event.channel));
            }
            let refuse = match call_handler(id, event.kind, arguments)? {
                Outcome::Threw => Some("the application could not decide".to_owned()),
                Outcome::Returned(value) if value.bool() == Some(false) => Some("the application refuses it".to_owned()),
                _ => None,
            };
            if event.kind == Kind::Connect && refuse.is_some() {
                forget(id, &event.connection)?;
            }
            if let Some(ticket) = event.ticket.clone() {
                ask(id, |client| client.tell(&BusQuery::Decide { ticket, refuse }))?;
            }
        }
        Kind::Message => {
            let data = match (&event.data, &event.text, &event.bytes) {
                (Some(json), ..) => zend::decode_json(json.get()),
                (_, Some(text), _) => json::zval(text.as_str()),
                (.., Some(hex)) => bytes(hex),
                _ => Zval::null(),
            };
            let outcome = call_handler(id, event.kind, vec![connection, text(&event.event), data])?;
            if let Some(request) = &event.id {
                answer(id, event, request.get(), outcome)?;
            }
        }
        Kind::Unsubscribe => drop(call_handler(id, event.kind, vec![connection, text(&event.channel)])?),
        Kind::Disconnect => {
            forget(id, &event.connection)?;
            call_handler(id, event.kind, vec![connection, text(&event.reason)])?;
        }
        _ => {}
    }
    Ok(())
}

fn forget(id: u64, connection: &str) -> Result<(), Failure> {
    let gone = with(id, |state| state.connections.remove(connection))?;
    drop(gone);
    Ok(())
}

/// What a client that asked is told.
fn answer(id: u64, event: &Event, request: &str, outcome: Outcome) -> Result<(), Failure> {
    let request = request.to_owned();
    let act = match outcome {
        Outcome::Nothing => return Ok(()),
        Outcome::Threw => BusAct::RefuseMessage { id: request, reason: "the application could not handle it".into() },
        Outcome::Returned(value) if value.bool() == Some(false) => {
            BusAct::RefuseMessage { id: request, reason: "the application refuses it".into() }
        }
        Outcome::Returned(value) => match message::encode(&value) {
            Ok(json) => BusAct::Answer { id: request, json: str::to_owned(&json) },
            Err(failure) => {
                if zend::is_exit_pending() {
                    return Err(Failure::Pending);
                }
                drop(ExecutorGlobals::take_exception());
                zend::log(&format!("realtime: what the handler of message returned is no answer: {failure:?}"));
                BusAct::RefuseMessage { id: request, reason: "the application could not handle it".into() }
            }
        },
    };
    let shard = usize::try_from(event.shard).ok();
    ask(id, |client| client.tell(&BusQuery::Act { connection: event.connection.clone(), shard, act }))
}

/// The object of a connection; made anew for one that another program had before.
fn connection(id: u64, event: &Event) -> Result<Zval, Failure> {
    let user = || event.user_id.as_deref().map_or_else(Zval::null, json::zval);
    if let Some(known) = with(id, |state| state.connections.get(&event.connection).map(Zval::shallow_clone))? {
        if let Some(object) = known.object() {
            // SAFETY: the class declares it; the old value is a string or null, and is released.
            unsafe { *zend::property(object, CONNECTION_USER) = user() };
        }
        return Ok(known);
    }
    let mut query = ZendHashTable::new();
    for pair in event.query.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        json::set(&mut query, &decoded(name), json::zval(decoded(value)));
    }
    let made = object(
        &CONNECTION,
        [
            json::zval(event.connection.as_str()),
            user(),
            json::zval(event.path.as_deref().unwrap_or_default()),
            json::array(query),
            Zval::null(),
            json::zval(id.cast_signed()),
            json::zval(event.shard),
        ],
    );
    let kept = made.shallow_clone();
    with(id, |state| drop(state.connections.insert(event.connection.clone(), kept)))?;
    Ok(made)
}

/// A part of a query, with `+` and `%xx` decoded; what is not UTF-8 then becomes U+FFFD.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn bytes(hex: &str) -> Zval {
    let pairs = hex.as_bytes().chunks(2).filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let mut value = Zval::new();
    value.set_zend_string(ZendStr::new(pairs.collect::<Vec<u8>>(), false));
    value
}

fn call_handler(id: u64, kind: Kind, arguments: Vec<Zval>) -> Result<Outcome, Failure> {
    let Some((name, _)) = NAMES.iter().find(|(_, known)| *known == kind) else { return Ok(Outcome::Nothing) };
    let Some(handler) = with(id, |state| state.handlers.get(name).map(Zval::shallow_clone))? else { return Ok(Outcome::Nothing) };
    let returned = match ZendCallable::new(&handler) {
        Ok(callable) => callable.try_call(arguments.iter().map(|argument| argument as _).collect()),
        Err(error) => Err(error),
    };
    if zend::is_exit_pending() {
        return Err(Failure::Pending);
    }
    if let Some(thrown) = ExecutorGlobals::take_exception() {
        let class = thrown.get_class_entry().name().unwrap_or("exception").to_owned();
        let text = thrown.get_property::<String>("message").unwrap_or_default();
        zend::log(&format!("realtime: the handler of {name} threw {class}: {text}"));
        return Ok(Outcome::Threw);
    }
    Ok(match returned {
        Ok(value) if value.is_null() => Outcome::Nothing,
        Ok(value) => Outcome::Returned(value),
        Err(_) => Outcome::Threw,
    })
}

/// `Server::run(): int`
fn run(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let sapi = zend::sapi_name();
    if !matches!(sapi, "cli" | "phpdbg" | "embed" | "micro") {
        return Err(Failure::config(format!("Realtime\\Server::run() is for command line processes, this is {sapi}")));
    }
    let id = server_id(call);
    if with(id, |state| state.busy)? {
        return Err(Failure::Error("a handler cannot run its own server".into()));
    }
    // The first time a hub has to be there; later it may restart.
    attach(id)?;
    let signals = NotedSignals::new();
    let mut lost = false;
    let mut retry_at = Instant::now();
    loop {
        if lost && signals.taken().is_none() {
            signals.sleep(RETRY);
        }
        if let Some(signal) = signals.taken() {
            host::announce(&format!("{}, the server ends", if signal == libc::SIGINT { "SIGINT" } else { "SIGTERM" }));
            break;
        }
        if lost && Instant::now() < retry_at {
            continue;
        }
        match attach(id).and_then(|()| turn(id, RUN_SLICE)) {
            Ok(_) if lost => {
                lost = false;
                host::announce("the hub is back");
            }
            Ok(_) => {}
            Err(failure) => match failure.outage() {
                // A hub of this process does not come back.
                Some(_) if host::current().is_none() && !host::shares_requests_among_processes() && embedded_ended(id)? => break,
                Some(reason) => {
                    if !std::mem::replace(&mut lost, true) {
                        host::announce(&format!("the hub is away: {reason}"));
                    }
                    retry_at = Instant::now() + RETRY;
                }
                None => return Err(failure),
            },
        }
    }
    let complete = match host::current() {
        Some(running) => host::stop(running.id, None),
        None => true,
    };
    result.set_long(i64::from(!complete));
    Ok(())
}

/// Whether there is no hub that could be found again.
fn embedded_ended(id: u64) -> Result<bool, Failure> {
    with(id, |state| state.client.is_none())?;
    Ok(bus::role().is_err() || bus::sockets().is_ok_and(|sockets| sockets.is_empty()))
}

/// `Server::stream(): mixed`
fn stream(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    parse!(call, c"")?;
    let id = server_id(call);
    attach(id)?;
    let descriptor = with(id, |state| match &state.readiness {
        Some(readiness) => Ok(readiness.descriptor()),
        None => {
            let descriptor = state.readiness.insert(Readiness::new()?).descriptor();
            state.watch().map(|()| descriptor)
        }
    })?;
    let descriptor = descriptor.map_err(unwatchable)?;
    // A copy of the descriptor: the script may close its stream when it likes.
    let name = json::zval("fopen");
    let open = ZendCallable::new(&name).map_err(|_| Failure::Error("fopen() is not there".into()))?;
    let opened = open.try_call(vec![&format!("php://fd/{descriptor}"), &"r"]);
    match opened {
        Ok(stream) if stream.bool() != Some(false) => *result = stream,
        _ if ExecutorGlobals::has_exception() => return Err(Failure::Pending),
        _ => return Err(Failure::config("this PHP cannot make a stream of a descriptor; poll() works without one")),
    }
    Ok(())
}

/// The connection whose method is called: its server, its socket id, and where it lives.
fn target(call: &Call<'_>) -> (u64, String, Option<usize>) {
    let text = |this: &ZendObject| {
        // SAFETY: only called for methods of `Connection`, which declares it.
        unsafe { (*zend::property(this, CONNECTION_ID)).string() }.unwrap_or_default()
    };
    let socket = call.this().map(|this| text(this)).unwrap_or_default();
    (number(call, CONNECTION_SERVER).cast_unsigned(), socket, usize::try_from(number(call, CONNECTION_SHARD)).ok())
}

fn tell(call: &Call<'_>, act: BusAct) -> Result<(), Failure> {
    let (server, connection, shard) = target(call);
    ask(server, |client| client.tell(&BusQuery::Act { connection, shard, act }))
}

/// A message on its way to one connection.
fn message_act(message: &Zval, name: Option<&ZendStr>, options: Option<&ZendHashTable>) -> Result<BusAct, Failure> {
    let event = match name {
        None => DEFAULT_EVENT.to_owned(),
        Some(name) => zend::text_of(name).ok_or_else(|| Failure::invalid_message("the event name is not valid UTF-8"))?.to_owned(),
    };
    let options = Options::parse(options, &SEND_OPTIONS)?;
    let converted = message::convert(message, &options)?;
    let payload = converted.payload();
    let limit = match host::with_hub(|running| running.publication_bytes) {
        Some(limit) => limit,
        None => bus::publication_bytes()?,
    };
    // Nobody answers: what is wrong with it must be said here.
    realtime_core::Publish::new("", &event, payload).check(limit)?;
    Ok(match payload {
        Payload::Text(text) => BusAct::SendText { event, text: text.to_owned() },
        Payload::Json(json) => BusAct::SendJson { event, json: json.to_owned() },
        Payload::Binary(bytes) => BusAct::SendBytes { event, hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
    })
}

/// `Connection::send(mixed $message, string $as = 'message', array $options = []): void`
fn send(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut message, mut name, mut options) = (ptr::null_mut::<Zval>(), ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"z|Sh", message, name, options)?;
    // SAFETY: parsed above; the call's frame holds them.
    let (message, name, options) = unsafe { (message.as_ref(), name.as_ref(), options.as_ref()) };
    tell(call, message_act(message.ok_or(Failure::Pending)?, name, options)?)
}

/// `Server::send(string $socketId, mixed $message, string $as = 'message', array $options = []): void`
fn send_from_server(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut socket, mut message, mut name, mut options) =
        (ptr::null_mut::<ZendStr>(), ptr::null_mut::<Zval>(), ptr::null_mut::<ZendStr>(), ptr::null_mut::<ZendHashTable>());
    parse!(call, c"Sz|Sh", socket, message, name, options)?;
    // SAFETY: as above.
    let (socket, message, name, options) = unsafe { (socket.as_ref(), message.as_ref(), name.as_ref(), options.as_ref()) };
    let act = message_act(message.ok_or(Failure::Pending)?, name, options)?;
    // Socket ids come from clients: one that is none names no connection.
    let connection = socket.and_then(zend::text_of).unwrap_or_default().to_owned();
    ask(server_id(call), |client| client.tell(&BusQuery::Act { connection, shard: None, act }))
}

fn channel_of(call: &Call<'_>) -> Result<String, Failure> {
    let mut channel = ptr::null_mut::<ZendStr>();
    parse!(call, c"S", channel)?;
    // SAFETY: as above.
    let channel = unsafe { channel.as_ref() }.and_then(zend::text_of);
    let channel = channel.ok_or_else(|| Failure::invalid_channel("the channel name is not valid UTF-8"))?;
    validate_channel(channel).map_err(message::invalid_channel)?;
    Ok(channel.to_owned())
}

/// `Connection::join(string $channel): bool`
fn join(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let act = BusAct::Join { channel: channel_of(call)? };
    let (server, connection, shard) = target(call);
    let answer: Value = ask(server, |client| client.query(&BusQuery::Act { connection, shard, act }))?;
    match answer {
        Value::Bool(joined) => result.set_bool(joined),
        Value::Object(refused) if refused.get("code").and_then(Value::as_str) == Some("channel_full") => result.set_bool(false),
        Value::Object(refused) => {
            let reason = refused.get("message").and_then(Value::as_str).unwrap_or_default();
            return Err(Failure::unavailable(format!("the connection cannot join: {reason}")));
        }
        _ => result.set_bool(false),
    }
    Ok(())
}

/// `Connection::leave(string $channel): bool`
fn leave(call: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    let act = BusAct::Leave { channel: channel_of(call)? };
    let (server, connection, shard) = target(call);
    let left: Value = ask(server, |client| client.query(&BusQuery::Act { connection, shard, act }))?;
    result.set_bool(left == Value::Bool(true));
    Ok(())
}

/// `Connection::close(int $code = 1000, string $reason = ''): void`
fn close(call: &Call<'_>, _: &mut Zval) -> Result<(), Failure> {
    let (mut code, mut reason) = (1000_i64, ptr::null_mut::<ZendStr>());
    parse!(call, c"|lS", code, reason)?;
    let code = u16::try_from(code).ok().filter(|code| realtime_core::close::is_application_code(*code));
    let code = code.ok_or_else(|| zend::argument_value_error(0, "must be 1000 or between 3000 and 4999"))?;
    // SAFETY: as above.
    let reason = unsafe { reason.as_ref() }.map_or(Some(""), zend::text_of).filter(|reason| reason.len() <= 123);
    let reason = reason.ok_or_else(|| zend::argument_value_error(1, "must be at most 123 bytes of UTF-8"))?.to_owned();
    tell(call, BusAct::Close { code, reason })
}

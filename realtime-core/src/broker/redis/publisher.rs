//! Publishing from a process on a host without a hub: straight to Redis, every hub delivers, and every hub is asked (`asking`).
//!
//! A call either succeeds, fails, or fails by its deadline; it never hangs. A connection that the server has ended is replaced
//! within the call, once, and what was asked over one that breaks is asked again only where nothing of it can have been carried
//! out, or where that makes no difference (it has an idempotency key, or only reads). The connection belongs to the process that
//! made it; a forked child makes its own.

mod asking;
mod known;
mod masters;

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use redis::{Cmd, ConnectionInfo, Pipeline, Value, cmd};

use super::calls::{self, Replicas};
use super::connection::{Broke, Connection, Servers};
use super::keys::Keys;
use super::rules::Rules;
use super::scripts::{Call, Script, accepted, nonsense, server_error};
use super::slots::{Slots, slot_of};
use crate::bus::address::resolve;
use crate::bus::frame::BusPublish;
use crate::config::{BrokerConfig, Limits, Secret};
use crate::deadline::{Deadline, NotNow, Waiting};
use crate::error::{BrokerError, PublishError, QueryError};
use crate::history::{History, MAX_LIMIT, Query};
use crate::letters::ANSWER_TIMEOUT;
use crate::message::{Channel, Payload, Publish, Receipt, User, channel_hash, validate_channel, validate_json};
use crate::wire::Resolve;
use known::Known;

pub use asking::Gathered;

/// Publications in one round trip, and their bytes.
const MAX_TOGETHER: usize = 256;
const MAX_TOGETHER_BYTES: usize = 1 << 20;
/// The scripts that a publisher runs.
const SCRIPTS: [Script; 2] = [Script::Publish, Script::Read];

/// How a publisher reaches its Redis, and how long it waits.
#[derive(Debug, Clone)]
pub struct PublisherOptions {
    /// See `broker.url`.
    pub url: Secret,
    /// See `broker.ca_file`.
    pub ca_file: String,
    /// See `broker.prefix`.
    pub prefix: String,
    /// How names of hosts are looked up. Default [`resolve`]; a host that must not have threads of
    /// others' signals wraps it.
    pub resolve: Resolve,
    /// For a connection. Default 500 ms.
    pub connect_timeout: Duration,
    /// For a whole call: connecting, sending, and the answers. Default 1 s. Each round trip of many publications has it anew, and
    /// what hubs wait for replicas (`broker.wait_timeout_ms`) besides.
    pub answer_timeout: Duration,
    /// For the answers of hubs that are asked something, within the call's deadline. Default 600 ms.
    pub hubs_timeout: Duration,
}

impl PublisherOptions {
    /// The defaults for a Redis.
    pub fn new(url: Secret) -> Self {
        PublisherOptions {
            url,
            ca_file: String::new(),
            prefix: BrokerConfig::default().prefix,
            resolve,
            connect_timeout: Duration::from_millis(500),
            answer_timeout: Duration::from_secs(1),
            hubs_timeout: ANSWER_TIMEOUT,
        }
    }
}

/// Why a publisher could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublisherError {
    /// The text is no address of a Redis.
    #[error("broker.url: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The server cannot be reached, or does not let this process in. Nothing was sent.
    #[error("no connection to redis at {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// What the system or the server said.
        source: io::Error,
    },
    /// The connection broke within the call.
    #[error("the connection to redis at {address} broke: {source}; what was published may or may not have been accepted")]
    Broken {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("no answer from redis at {address} within {} ms; what was published may or may not have been accepted", waited.as_millis())]
    Timeout {
        /// Where.
        address: String,
        /// The deadline.
        waited: Duration,
    },
    /// A call has just run into its deadline; this one was not tried.
    #[error("redis did not answer a moment ago; trying again in {} ms", left.as_millis())]
    Paused {
        /// Until the next attempt.
        left: Duration,
    },
    /// The calls before have used up what they were allowed to wait ([`Publisher::allow_waiting`]).
    #[error("calls have waited {} ms for redis already", allowance.as_millis())]
    WaitedEnough {
        /// What they were allowed together.
        allowance: Duration,
    },
    /// The server did not carry it out.
    #[error("redis at {address} {reason}")]
    Refused {
        /// Where.
        address: String,
        /// What it did instead, with its words.
        reason: String,
    },
    /// No hub has ever used this Redis with this prefix, so that nobody would hear what is published.
    #[error("no hub has been at redis {address} with broker.prefix `{prefix}`: start one, or correct the url or the prefix")]
    NoHub {
        /// Where.
        address: String,
        /// The prefix.
        prefix: String,
    },
    /// Hubs have used this Redis, and none is there to answer.
    #[error("no hub is at redis {address} with broker.prefix `{prefix}` just now: there is nobody to ask")]
    NoHubNow {
        /// Where.
        address: String,
        /// The prefix.
        prefix: String,
    },
    /// The hubs are there, by their own word, and none has answered.
    #[error("none of {hubs} hubs has answered within {} ms; what was asked for may or may not be done", waited.as_millis())]
    NoAnswer {
        /// How many were asked.
        hubs: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// The hubs have answered that they cannot answer this now.
    #[error("none of {hubs} hubs could answer")]
    Unable {
        /// How many were asked.
        hubs: usize,
    },
    /// What the hubs go by is not what this process knows.
    #[error("redis at {address} does not say what hubs go by: {reason}")]
    Rules {
        /// Where.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The channel's policy has `conflate_ms`, which a hub carries out.
    #[error("channel `{channel}` has conflate_ms, and only a hub can hold publications back: publish to it through one")]
    Conflated {
        /// The channel.
        channel: String,
    },
    /// The publication breaks a rule of the hubs.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The question breaks a rule of the hubs.
    #[error(transparent)]
    Query(#[from] QueryError),
}

impl PublisherError {
    /// Whether it is certain that nothing was sent, and another way may be tried. Of many publications: none of them.
    pub fn is_unsent(&self) -> bool {
        matches!(
            self,
            PublisherError::Connect { .. } | PublisherError::Paused { .. } | PublisherError::NoHub { .. } | PublisherError::NoHubNow { .. }
        )
    }

    /// The same failure after something may have been carried out.
    fn after_sending(self, address: String) -> Self {
        match self {
            PublisherError::Connect { source, .. } => PublisherError::Broken { address, source },
            error if error.is_unsent() => PublisherError::Broken { address, source: io::Error::other(error) },
            error => error,
        }
    }
}

impl From<NotNow> for PublisherError {
    fn from(reason: NotNow) -> Self {
        match reason {
            NotNow::Paused(left) => PublisherError::Paused { left },
            NotNow::WaitedEnough(allowance) => PublisherError::WaitedEnough { allowance },
        }
    }
}

/// See the module's documentation. Not shared: each thread that publishes has its own.
pub struct Publisher {
    options: PublisherOptions,
    servers: Servers,
    keys: Keys,
    connected: Option<Connected>,
    /// With which node of a cluster that is.
    node: Option<(Box<str>, ConnectionInfo)>,
    /// Connections with the other ones.
    elsewhere: HashMap<Box<str>, Connected>,
    /// Who has which slots of a cluster, and who had some before that was doubted.
    slots: Option<Slots>,
    known: Vec<ConnectionInfo>,
    /// What hubs go by.
    rules: Option<Known>,
    /// Of [`SCRIPTS`], in their order.
    digests: Vec<String>,
    waiting: Waiting,
    /// Nodes of a cluster that a call has just waited for in vain. `waiting` has this of a single server, and of all nodes together.
    late: HashMap<Box<str>, Waiting>,
    /// The node that could not be reached, or does not reach the others: the last one to be asked who has which slots.
    doubted: Option<Box<str>>,
    /// Which node is the first to be asked that.
    turn: usize,
    /// Whose channels and users calls mean; empty is the default app.
    app: String,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is known of servers holds what they want to know.
        f.debug_struct("Publisher").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// One to each question.
type Answers = Vec<Result<Value, BrokerError>>;

#[derive(Debug)]
struct Connected {
    connection: Connection,
    /// The process that it belongs to.
    owner: u32,
}

/// A command, and whether it may be carried out twice.
#[derive(Clone)]
struct Question {
    command: Cmd,
    repeatable: bool,
    publishes: bool,
    /// For what those before it have written.
    waits: bool,
    /// Which slot of a cluster it is about.
    slot: usize,
}

impl Question {
    fn reading(command: Cmd) -> Self {
        Question { command, repeatable: true, publishes: false, waits: false, slot: 0 }
    }
}

impl Publisher {
    /// A publisher that connects with its first call.
    pub fn new(options: PublisherOptions) -> Result<Self, PublisherError> {
        let servers = Servers::parse(&options.url, &options.ca_file, options.resolve).map_err(|reason| PublisherError::Url { reason })?;
        let keys = Keys::new(&options.prefix);
        Ok(Publisher {
            options,
            servers,
            keys,
            connected: None,
            node: None,
            elsewhere: HashMap::new(),
            slots: None,
            known: Vec::new(),
            rules: None,
            digests: Vec::new(),
            waiting: Waiting::default(),
            late: HashMap::new(),
            doubted: None,
            // Publishers that begin together do not all ask the same node.
            turn: getrandom::u32().unwrap_or_default() as usize,
            app: String::new(),
        })
    }

    /// Host and port of the server, or of a node of the cluster, the path of its socket, or the master's name.
    pub fn address(&self) -> String {
        self.servers.address()
    }

    /// Whose channels and users the calls from now on mean; empty is the default app.
    pub fn use_app(&mut self, app: &str) {
        app.clone_into(&mut self.app);
    }

    /// What the calls from now on may wait for Redis, together; `None` (the default) is as much as
    /// each call's own deadline allows. Calls that wait less than 10 ms use nothing of it.
    pub fn allow_waiting(&mut self, allowance: Option<Duration>) {
        self.waiting.allow(allowance);
    }

    /// Makes sure of the server, and that hubs use it.
    pub fn reach(&mut self) -> Result<(), PublisherError> {
        self.call(|publisher, deadline| publisher.rules(deadline).map(drop))
    }

    /// The largest body that the hubs take.
    pub fn publication_bytes(&mut self) -> Result<usize, PublisherError> {
        self.call(|publisher, deadline| Ok(publisher.rules(deadline)?.publication_bytes))
    }

    /// Publishes and waits for the receipt.
    pub fn publish(&mut self, publish: &BusPublish<'_>) -> Result<Receipt, PublisherError> {
        let mut receipt = None;
        self.publish_all([publish], |given| receipt = Some(given))?;
        receipt.ok_or_else(|| self.refused(nonsense()))
    }

    /// Publishes in this order, many in one round trip; `receipt` is called with each receipt, in the same order. Ends at the
    /// first failure; what was under way behind it may be out.
    pub fn publish_all<'p, P: Borrow<BusPublish<'p>>>(
        &mut self,
        publishes: impl IntoIterator<Item = P>,
        mut receipt: impl FnMut(Receipt),
    ) -> Result<(), PublisherError> {
        let mut publishes = publishes.into_iter().peekable();
        let mut is_first = true;
        while publishes.peek().is_some() {
            let outcome = self.call(|publisher, deadline| {
                let rules = publisher.rules(deadline)?;
                if let Some(replicas) = rules.replicas {
                    deadline.extend(replicas.timeout());
                }
                let (mut questions, mut bytes) = (Vec::new(), 0);
                while questions.len() < MAX_TOGETHER && bytes < MAX_TOGETHER_BYTES {
                    let Some(publish) = publishes.next() else { break };
                    bytes += publish.borrow().payload.len();
                    questions.push(publisher.question(&rules, publish.borrow())?);
                }
                for answer in publisher.ask(questions, rules.replicas.as_ref(), deadline)? {
                    let published = answer.and_then(calls::published).map_err(|error| publisher.refused(error))?;
                    receipt(Receipt { position: published.position, matched: published.matched });
                }
                Ok(())
            });
            outcome.map_err(|error| if is_first { error } else { error.after_sending(self.address()) })?;
            is_first = false;
        }
        Ok(())
    }

    /// What is kept of a channel whose policy has `history` or `last_value`.
    pub fn history(&mut self, channel: &str, query: &Query) -> Result<History, PublisherError> {
        validate_channel(channel).map_err(QueryError::from)?;
        self.call(|publisher, deadline| {
            let rules = publisher.rules(deadline)?;
            if rules.retention(channel).is_none() {
                return Err(QueryError::NoHistory { channel: channel.to_owned() }.into());
            }
            if !(1..=MAX_LIMIT).contains(&query.limit) {
                return Err(QueryError::Limit { limit: query.limit, max: MAX_LIMIT }.into());
            }
            let scoped = rules.scope(&publisher.app, channel).map_err(QueryError::from)?;
            // As much as a hub with the usual limits gives.
            let call = calls::read(&publisher.keys, rules.fence, &scoped, &query.range(Limits::default().outbox_bytes / 8));
            let question = publisher.about(&call);
            let answers = publisher.ask(vec![question], None, deadline)?;
            let page = answers.into_iter().next().ok_or_else(nonsense).flatten().and_then(|answer| {
                calls::page(&Channel::new(&scoped, channel_hash(&scoped)), answer, |error| {
                    tracing::warn!(%error, channel = %channel.escape_debug(), "redis holds something that is no publication");
                })
            });
            page.map(|page| query.answer(page)).map_err(|error| publisher.refused(error))
        })
    }

    /// Runs one call under its deadline.
    fn call<T>(&mut self, run: impl FnOnce(&mut Self, &mut Deadline) -> Result<T, PublisherError>) -> Result<T, PublisherError> {
        let mut deadline = self.waiting.begin(self.options.answer_timeout)?;
        let outcome = run(self, &mut deadline);
        self.waiting.end(&deadline);
        outcome
    }

    fn refused(&mut self, error: BrokerError) -> PublisherError {
        // It may be a replica by now, or a server that has forgotten us: another connection may find a better one.
        (self.connected, self.slots) = (None, None);
        let reason = match error {
            BrokerError::Unavailable { reason } => reason.strip_prefix("redis ").unwrap_or(&reason).to_owned(),
            error => error.to_string(),
        };
        PublisherError::Refused { address: self.address(), reason }
    }

    /// What hubs go by; outside of a cluster with a connection.
    fn rules(&mut self, deadline: &mut Deadline) -> Result<Arc<Rules>, PublisherError> {
        let is_cluster = self.servers.cluster().is_some();
        if !is_cluster {
            self.connect(deadline)?;
        }
        let standing = match &self.rules {
            Some(known) if known.is_fresh(Instant::now()) => return Ok(known.rules.clone()),
            // Another master than the one that has them may have the channel.
            Some(known) if is_cluster && known.may_stand_in(Instant::now()) => known.rules.clone(),
            _ => {
                let answer = self.ask_rules(deadline)?;
                return self.read_rules(answer);
            }
        };
        // What the call is about has the other half.
        match self.ask_rules(&mut Deadline::new(deadline.left() / 2)) {
            Ok(answer) => self.read_rules(answer),
            Err(error) => {
                tracing::debug!(%error, "what hubs go by cannot be asked; going on with what they said last");
                if let Some(known) = &mut self.rules {
                    known.put_off(Instant::now());
                }
                Ok(standing)
            }
        }
    }

    fn ask_rules(&mut self, deadline: &mut Deadline) -> Result<Value, PublisherError> {
        let question = Question { slot: slot_of(&self.keys.rules()), ..Question::reading(self.rules_command()) };
        let answer = self.ask(vec![question], None, deadline)?.pop().ok_or_else(nonsense).flatten();
        answer.map_err(|error| self.refused(error))
    }

    fn rules_command(&self) -> Cmd {
        let mut command = cmd("HGET");
        command.arg(self.keys.rules()).arg("d");
        command
    }

    fn read_rules(&mut self, answer: Value) -> Result<Arc<Rules>, PublisherError> {
        let address = self.address();
        let rules = match answer {
            Value::BulkString(text) => Rules::parse(&text),
            _ => return Err(PublisherError::NoHub { address, prefix: self.options.prefix.clone() }),
        };
        // Who announces in another way would not be heard.
        let rules = rules.and_then(|rules| match (rules.sharded, self.servers.cluster().is_some()) {
            (true, false) => Err("their broker.url is one of a cluster (redis+cluster://), and this process's is not".into()),
            (false, true) => Err("their broker.url is not one of a cluster, and this process's is".into()),
            _ => Ok(Arc::new(rules)),
        });
        let rules = rules.map_err(|reason| PublisherError::Rules { address, reason })?;
        self.rules = Some(Known::new(rules.clone(), Instant::now()));
        Ok(rules)
    }

    /// The connection, made anew where there is none that is good.
    fn connect(&mut self, deadline: &mut Deadline) -> Result<&mut Connected, PublisherError> {
        let owner = std::process::id();
        let is_good = |connected: &Connected| connected.owner == owner && !connected.connection.has_ended();
        let connected = match self.connected.take() {
            Some(connected) if is_good(&connected) => connected,
            // That of another process is closed here, which says nothing to the server.
            _ => self.open(owner, deadline)?,
        };
        Ok(self.connected.insert(connected))
    }

    fn open(&mut self, owner: u32, deadline: &mut Deadline) -> Result<Connected, PublisherError> {
        match &self.node {
            Some((name, _)) => self.late.get_mut(name).map_or(Ok(()), Waiting::check_pause)?,
            None => self.waiting.check_pause()?,
        }
        let mut further = self.loading();
        let is_node = self.node.is_some();
        if !is_node {
            further.add_command(self.rules_command());
        }
        let connecting = self.options.connect_timeout.min(deadline.left());
        let opened = self.servers.open(self.node.as_ref().map(|(_, server)| server), &further, connecting, deadline);
        let (connection, mut answers) = opened.map_err(|source| self.not_connected(source))?;
        if !is_node {
            let rules = answers.pop().unwrap_or_default();
            self.learn_digests(answers)?;
            let rules = accepted(rules).map_err(|error| self.refused(error))?;
            self.read_rules(rules)?;
        } else {
            self.learn_digests(answers)?;
        }
        Ok(Connected { connection, owner })
    }

    /// Loads the scripts; [`Publisher::learn_digests`] reads the answers.
    fn loading(&self) -> Pipeline {
        let mut loading = Pipeline::new();
        for script in SCRIPTS {
            loading.cmd("SCRIPT").arg("LOAD").arg(script.source(self.servers.cluster().is_some()));
        }
        loading
    }

    fn learn_digests(&mut self, answers: Vec<Value>) -> Result<(), PublisherError> {
        let digests: Result<Vec<String>, _> = answers
            .into_iter()
            .map(|digest| accepted(digest).and_then(|digest| redis::from_redis_value(digest).map_err(|_| nonsense())))
            .collect();
        self.digests = digests.map_err(|error| self.refused(error))?;
        Ok(())
    }

    /// Whom this call has waited for is left alone for a while.
    fn pause(&mut self) {
        match &self.node {
            Some((name, _)) => self.late.entry(name.clone()).or_default().pause(),
            None => self.waiting.pause(),
        }
    }

    fn not_connected(&mut self, source: io::Error) -> PublisherError {
        let is_late = is_timeout(&source);
        // What the system says of it is about a socket.
        let source = if is_late { io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time") } else { source };
        if is_late {
            self.pause();
        }
        PublisherError::Connect { address: self.address(), source }
    }

    /// What the hub would be told, after everything that it would refuse.
    fn question(&self, rules: &Rules, publish: &BusPublish<'_>) -> Result<Question, PublisherError> {
        if publish.to_user {
            User::new(publish.target, None).map_err(PublishError::from)?;
        } else {
            validate_channel(publish.target).map_err(PublishError::from)?;
        }
        if let Payload::Json(text) = publish.payload {
            validate_json(text).map_err(|reason| PublishError::InvalidJson { reason })?;
        }
        let user_channel = publish.to_user.then(|| User::channel_name(publish.target));
        let channel = user_channel.as_deref().unwrap_or(publish.target);
        if rules.conflates(channel) {
            return Err(PublisherError::Conflated { channel: channel.to_owned() });
        }
        let scoped = rules.scope(&self.app, channel).map_err(PublishError::from)?;
        let mut message = Publish::new(&scoped, publish.event, publish.payload);
        message.except = &publish.except;
        message.id = publish.id;
        message.history = publish.keeping.history;
        message.ttl_ms = publish.keeping.ttl_ms;
        message.retention = rules.retention_of(channel, publish.event);
        message.check(rules.publication_bytes)?;
        let call = calls::publish(&self.keys, rules.fence, &message);
        Ok(Question { repeatable: publish.id.is_some(), publishes: true, ..self.about(&call) })
    }

    fn about(&self, call: &Call) -> Question {
        let slot = match (self.servers.cluster(), call.keys.first()) {
            (Some(_), Some(key)) => slot_of(key),
            _ => 0,
        };
        Question { slot, ..Question::reading(self.command(call)) }
    }

    fn command(&self, call: &Call) -> Cmd {
        let digest = SCRIPTS.iter().zip(&self.digests).find(|(script, _)| **script == call.script).map_or("", |(_, digest)| digest);
        let mut command = cmd("EVALSHA");
        command.arg(digest).arg(call.keys.len()).arg(&call.keys).arg(&call.arguments);
        command
    }

    /// The answers to all questions, in their order; so many replicas have what they have published.
    fn ask(
        &mut self,
        mut questions: Vec<Question>,
        replicas: Option<&Replicas>,
        deadline: &mut Deadline,
    ) -> Result<Answers, PublisherError> {
        if self.servers.cluster().is_some() {
            return self.ask_masters(&questions, replicas, deadline);
        }
        questions.extend(replicas.map(waiting_for));
        Ok(settled(self.ask_one(questions, deadline)?, replicas))
    }

    /// The same of one server, as it gives them.
    fn ask_one(&mut self, questions: Vec<Question>, deadline: &mut Deadline) -> Result<Vec<Value>, PublisherError> {
        let mut answers = self.exchange(&questions, deadline)?;
        // A server that was told to forget scripts has done nothing of these.
        let unknown = |answer: &Value| server_error(answer).is_some_and(|error| error.code() == "NOSCRIPT");
        if answers.iter().any(unknown) {
            let mut again: Vec<Question> = self.loading().cmd_iter().cloned().map(Question::reading).collect();
            // Who has waited has not waited for these.
            let is_asked_again: Vec<bool> =
                questions.iter().zip(&answers).map(|(question, answer)| question.waits || unknown(answer)).collect();
            let has_done_some = questions.iter().zip(&is_asked_again).any(|(question, again)| question.publishes && !again);
            again.extend(questions.into_iter().zip(&is_asked_again).filter(|(_, again)| **again).map(|(question, _)| question));
            let known = self.exchange(&again, deadline);
            let known = known.map_err(|error| if has_done_some { error.after_sending(self.address()) } else { error })?;
            let mut known = known.into_iter().skip(SCRIPTS.len());
            let unknown = answers.iter_mut().zip(is_asked_again).filter(|(_, again)| *again);
            unknown.for_each(|(answer, _)| *answer = known.next().unwrap_or_default());
        }
        Ok(answers)
    }

    fn exchange(&mut self, questions: &[Question], deadline: &mut Deadline) -> Result<Vec<Value>, PublisherError> {
        let mut answers = Vec::with_capacity(questions.len());
        let (mut is_repeat, mut may_have_happened) = (false, false);
        loop {
            let rest = &questions[answers.len()..];
            let mut pipeline = Pipeline::with_capacity(rest.len());
            for question in rest {
                pipeline.add_command(question.command.clone());
            }
            let asked = match self.connect(deadline) {
                Ok(connected) => connected.connection.ask(&pipeline, deadline),
                Err(error) => return Err(if may_have_happened { error.after_sending(self.address()) } else { error }),
            };
            let (some, broke) = match asked {
                Ok(rest) => {
                    answers.extend(rest);
                    return Ok(answers);
                }
                Err(outcome) => outcome,
            };
            answers.extend(some);
            self.connected = None;
            // A wait covers what its own connection has written: all is asked again, or nothing.
            if questions.iter().any(|question| question.waits) {
                answers.clear();
            }
            let (certain, source) = match broke {
                Broke::Unsent(source) => (true, source),
                Broke::Uncertain(source) => (false, source),
            };
            let address = self.address();
            if is_timeout(&source) {
                self.pause();
                return Err(PublisherError::Timeout { address, waited: deadline.budget });
            }
            let may_repeat = certain || questions[answers.len()..].iter().all(|question| question.repeatable);
            if is_repeat || !may_repeat || source.kind() == io::ErrorKind::InvalidData {
                return Err(PublisherError::Broken { address, source });
            }
            is_repeat = true;
            may_have_happened |= !certain && questions.iter().any(|question| question.publishes);
        }
    }
}

/// Behind publications, on the same connection.
fn waiting_for(replicas: &Replicas) -> Question {
    Question { waits: true, ..Question::reading(replicas.wait()) }
}

/// What the server did not refuse, and, where that is waited for, enough replicas have.
fn settled(mut answers: Vec<Value>, replicas: Option<&Replicas>) -> Answers {
    let confirmed = replicas.map_or(Ok(()), |replicas| replicas.confirmed(answers.pop().unwrap_or_default()));
    answers.into_iter().map(|answer| accepted(answer).and_then(|answer| confirmed.clone().map(|()| answer))).collect()
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

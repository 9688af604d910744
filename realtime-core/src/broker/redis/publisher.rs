//! Publishing from a process on a host without a hub: straight to Redis, every hub delivers.
//!
//! A call either succeeds, fails, or fails by its deadline; it never hangs. A connection that the server has ended is replaced
//! within the call, once, and what was asked over one that breaks is asked again only where nothing of it can have been carried
//! out, or where that makes no difference (it has an idempotency key, or only reads). The connection belongs to the process that
//! made it; a forked child makes its own.

use std::borrow::Borrow;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Pipeline, Value, cmd};

use super::calls;
use super::connection::{Broke, Connection, Servers};
use super::keys::Keys;
use super::rules::Rules;
use super::scripts::{Call, Script, accepted, server_error};
use crate::bus::address::resolve;
use crate::bus::frame::BusPublish;
use crate::config::{BrokerConfig, Limits, Secret};
use crate::deadline::{Deadline, NotNow, Waiting};
use crate::error::{BrokerError, PublishError, QueryError};
use crate::history::{History, MAX_LIMIT, Query};
use crate::message::{Channel, Payload, Publish, Receipt, User, channel_hash, validate_channel, validate_json};
use crate::wire::Resolve;

/// Publications in one round trip, and their bytes.
const MAX_TOGETHER: usize = 256;
const MAX_TOGETHER_BYTES: usize = 1 << 20;
/// How long the hubs' rules are believed without asking.
const RULES_FRESH: Duration = Duration::from_secs(5);
/// By the clock of Redis, which is the hubs' too.
const COUNT_HUBS: &str = "local time = redis.call('TIME') \
    return redis.call('ZCOUNT', KEYS[1], '(' .. time[1] * 1000 + math.floor(time[2] / 1000), '+inf')";
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
        matches!(self, PublisherError::Connect { .. } | PublisherError::Paused { .. } | PublisherError::NoHub { .. })
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
#[derive(Debug)]
pub struct Publisher {
    options: PublisherOptions,
    servers: Servers,
    keys: Keys,
    connected: Option<Connected>,
    waiting: Waiting,
    /// Whose channels and users calls mean; empty is the default app.
    app: String,
}

#[derive(Debug)]
struct Connected {
    connection: Connection,
    /// The process that it belongs to.
    owner: u32,
    /// Of [`SCRIPTS`], in their order.
    digests: Vec<String>,
    rules: Arc<Rules>,
    /// When they were read.
    rules_at: Instant,
}

/// A command, and whether it may be carried out twice.
struct Question {
    command: Cmd,
    repeatable: bool,
    publishes: bool,
    /// For what those before it have written.
    waits: bool,
}

impl Question {
    fn reading(command: Cmd) -> Self {
        Question { command, repeatable: true, publishes: false, waits: false }
    }
}

impl Publisher {
    /// A publisher that connects with its first call.
    pub fn new(options: PublisherOptions) -> Result<Self, PublisherError> {
        let servers = Servers::parse(&options.url, &options.ca_file, options.resolve).map_err(|reason| PublisherError::Url { reason })?;
        let keys = Keys::new(&options.prefix);
        Ok(Publisher { options, servers, keys, connected: None, waiting: Waiting::default(), app: String::new() })
    }

    /// Host and port of the server, the path of its socket, or the master's name.
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

    /// How many hubs have said within the last seconds that they are there.
    pub fn hubs(&mut self) -> Result<usize, PublisherError> {
        self.call(|publisher, deadline| {
            publisher.rules(deadline)?;
            let mut command = cmd("EVAL");
            command.arg(COUNT_HUBS).arg(1).arg(publisher.keys.hubs());
            let answer = publisher.ask(vec![Question::reading(command)], deadline)?.pop().unwrap_or_default();
            let count = accepted(answer).and_then(|count| redis::from_redis_value(count).map_err(|_| super::scripts::nonsense()));
            count.map_err(|error| publisher.refused(error))
        })
    }

    /// The largest body that the hubs take.
    pub fn publication_bytes(&mut self) -> Result<usize, PublisherError> {
        self.call(|publisher, deadline| Ok(publisher.rules(deadline)?.publication_bytes))
    }

    /// Publishes and waits for the receipt.
    pub fn publish(&mut self, publish: &BusPublish<'_>) -> Result<Receipt, PublisherError> {
        let mut receipt = None;
        self.publish_all([publish], |given| receipt = Some(given))?;
        receipt.ok_or_else(|| self.refused(super::scripts::nonsense()))
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
                questions.extend(rules.replicas.map(|replicas| Question { waits: true, ..Question::reading(replicas.wait()) }));
                let mut answers = publisher.ask(questions, deadline)?;
                let confirmed = rules.replicas.map_or(Ok(()), |replicas| replicas.confirmed(answers.pop().unwrap_or_default()));
                for answer in answers {
                    let published = accepted(answer).and_then(calls::published);
                    let published = published.and_then(|published| confirmed.clone().map(|()| published));
                    let published = published.map_err(|error| publisher.refused(error))?;
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
            let command = publisher.command(&call);
            let answers = publisher.ask(vec![Question::reading(command)], deadline)?;
            let page = answers.into_iter().next().ok_or_else(super::scripts::nonsense).and_then(accepted).and_then(|answer| {
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
        self.connected = None;
        let reason = match error {
            BrokerError::Unavailable { reason } => reason.strip_prefix("redis ").unwrap_or(&reason).to_owned(),
            error => error.to_string(),
        };
        PublisherError::Refused { address: self.address(), reason }
    }

    /// What hubs go by, with a connection.
    fn rules(&mut self, deadline: &mut Deadline) -> Result<Arc<Rules>, PublisherError> {
        let connected = self.connect(deadline)?;
        if connected.rules_at.elapsed() < RULES_FRESH {
            return Ok(connected.rules.clone());
        }
        let command = self.rules_command();
        let answer = self.ask(vec![Question::reading(command)], deadline)?.pop().unwrap_or_default();
        let rules = self.read_rules(answer)?;
        if let Some(connected) = &mut self.connected {
            (connected.rules, connected.rules_at) = (rules.clone(), Instant::now());
        }
        Ok(rules)
    }

    fn rules_command(&self) -> Cmd {
        let mut command = cmd("HGET");
        command.arg(self.keys.rules()).arg("d");
        command
    }

    fn read_rules(&mut self, answer: Value) -> Result<Arc<Rules>, PublisherError> {
        let address = self.address();
        match accepted(answer).map_err(|error| self.refused(error))? {
            Value::BulkString(text) => Rules::parse(&text).map(Arc::new).map_err(|reason| PublisherError::Rules { address, reason }),
            _ => Err(PublisherError::NoHub { address, prefix: self.options.prefix.clone() }),
        }
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
        self.waiting.check_pause()?;
        let mut further = Pipeline::new();
        for script in SCRIPTS {
            further.cmd("SCRIPT").arg("LOAD").arg(script.source(false));
        }
        further.add_command(self.rules_command());
        let connecting = self.options.connect_timeout.min(deadline.left());
        let opened = self.servers.open(&further, connecting, deadline);
        let (connection, mut answers) = opened.map_err(|source| {
            let is_late = is_timeout(&source);
            // What the system says of it is about a socket.
            let source = if is_late { io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time") } else { source };
            if is_late {
                self.waiting.pause();
            }
            PublisherError::Connect { address: self.address(), source }
        })?;
        let rules = answers.pop().unwrap_or_default();
        let digests: Result<Vec<String>, _> = answers
            .into_iter()
            .map(|digest| accepted(digest).and_then(|digest| redis::from_redis_value(digest).map_err(|_| super::scripts::nonsense())))
            .collect();
        let digests = digests.map_err(|error| self.refused(error))?;
        Ok(Connected { connection, owner, digests, rules: self.read_rules(rules)?, rules_at: Instant::now() })
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
        Ok(Question { repeatable: publish.id.is_some(), publishes: true, ..Question::reading(self.command(&call)) })
    }

    fn command(&self, call: &Call) -> Cmd {
        let digests = self.connected.as_ref().map_or(&[][..], |connected| &connected.digests);
        let digest = SCRIPTS.iter().zip(digests).find(|(script, _)| **script == call.script).map_or("", |(_, digest)| digest);
        let mut command = cmd("EVALSHA");
        command.arg(digest).arg(call.keys.len()).arg(&call.keys).arg(&call.arguments);
        command
    }

    /// The answers to all questions, in their order.
    fn ask(&mut self, questions: Vec<Question>, deadline: &mut Deadline) -> Result<Vec<Value>, PublisherError> {
        let mut answers = self.exchange(&questions, deadline)?;
        // A server that was told to forget scripts has done nothing of these.
        let unknown = |answer: &Value| server_error(answer).is_some_and(|error| error.code() == "NOSCRIPT");
        if answers.iter().any(unknown) {
            let load = |script: &Script| {
                let mut command = cmd("SCRIPT");
                command.arg("LOAD").arg(script.source(false));
                Question::reading(command)
            };
            let mut again: Vec<Question> = SCRIPTS.iter().map(load).collect();
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
                self.waiting.pause();
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

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

//! What a publisher asks of the hubs: it finds those that are there, says the question where they hear it, and hears their
//! answers on a topic of its own, over a connection that lives as long as the question.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use redis::{Pipeline, Value, cmd};
use serde_json::Value as Json;

use super::{Publisher, PublisherError, Question, is_timeout};
use crate::broker::redis::connection::Connection;
use crate::broker::redis::scripts::{accepted, nonsense};
use crate::broker::redis::slots::slot_of;
use crate::close::check_disconnect;
use crate::deadline::Deadline;
use crate::error::QueryError;
use crate::letters::{self, Answered, Content, Letter, Wanted, merged, sum_of, users_of};
use crate::message::{ChannelUser, Epoch, validate_channel};

/// Which hubs have said that they are there, by the clock of Redis, which is the hubs' too.
const LIST_HUBS: &str = "local time = redis.call('TIME') \
    return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. time[1] * 1000 + math.floor(time[2] / 1000), '+inf', 'LIMIT', 0, 1000)";
/// Hubs that are asked where the answer of one is enough.
const FEW: usize = 3;
/// Beside a letter's own bytes, those of the message that it comes in.
const AROUND_A_LETTER: usize = 64 << 10;

/// What hubs have answered together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathered<T> {
    /// Of those that answered.
    pub answer: T,
    /// Hubs whose answers should be in it.
    pub hubs: usize,
    /// Those of them that did not answer in time, or could not: what they have is missing.
    pub missing: usize,
}

impl<T> Gathered<T> {
    /// The same with another answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Gathered<U> {
        Gathered { answer: change(self.answer), hubs: self.hubs, missing: self.missing }
    }
}

/// What is known of a channel's users.
enum Found {
    /// The channel shows them: what a hub answered.
    Shown(Gathered<Json>),
    Gathered(Gathered<Vec<ChannelUser>>),
}

/// Whose answers are needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    All,
    Any,
}

impl Publisher {
    /// The users who are subscribed to a channel, ordered by id.
    pub fn channel_users(&mut self, channel: &str) -> Result<Gathered<Vec<ChannelUser>>, PublisherError> {
        Ok(match self.find(channel, Wanted::All)? {
            Found::Shown(said) => said.map(|users| users_of([users])),
            Found::Gathered(users) => users,
        })
    }

    /// How many users are subscribed to a channel.
    pub fn count_users(&mut self, channel: &str) -> Result<Gathered<usize>, PublisherError> {
        Ok(match self.find(channel, Wanted::Number)? {
            Found::Shown(said) => said.map(|number| sum_of(&[(0, number)])),
            Found::Gathered(users) => users.map(|users| users.len()),
        })
    }

    /// One of the users who are subscribed to a channel.
    pub fn channel_user(&mut self, channel: &str, id: &str) -> Result<Gathered<Option<ChannelUser>>, PublisherError> {
        let users = match self.find(channel, Wanted::One(id.to_owned()))? {
            Found::Shown(said) => said.map(|users| users_of([users])),
            Found::Gathered(users) => users,
        };
        Ok(users.map(|users| users.into_iter().find(|found| found.user.id() == id)))
    }

    /// Closes all connections of a user with a code of the application's choice; says how many.
    pub fn disconnect_user(&mut self, user: &str, code: u16, reason: &str) -> Result<Gathered<usize>, PublisherError> {
        check_disconnect(user, code, reason)?;
        let (user, reason) = (user.to_owned(), reason.to_owned());
        self.change(|app| letters::Question::DisconnectUser { app, user, code, reason })
    }

    /// The same, and keeps the user out for so long whatever credential comes. A hub that starts later, or did not hear it, knows
    /// nothing of the ban.
    pub fn ban_user(&mut self, user: &str, duration: Duration, code: u16, reason: &str) -> Result<Gathered<usize>, PublisherError> {
        check_disconnect(user, code, reason)?;
        let (user, reason) = (user.to_owned(), reason.to_owned());
        let ban_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.change(|app| letters::Question::BanUser { app, user, ban_ms, code, reason })
    }

    /// How many hubs have said within the last seconds that they are there.
    pub fn hubs(&mut self) -> Result<usize, PublisherError> {
        self.call(|publisher, deadline| {
            publisher.rules(deadline)?;
            Ok(publisher.hubs_now(deadline)?.len())
        })
    }

    fn change(&mut self, question: impl FnOnce(String) -> letters::Question) -> Result<Gathered<usize>, PublisherError> {
        self.call(|publisher, deadline| {
            let app = publisher.rules(deadline)?.app(&publisher.app).map_err(QueryError::from)?.to_owned();
            let answered = publisher.ask_hubs(question(app), Of::All, deadline)?;
            Ok(answered.map(|answers| sum_of(&answers)))
        })
    }

    fn find(&mut self, channel: &str, wanted: Wanted) -> Result<Found, PublisherError> {
        validate_channel(channel).map_err(QueryError::from)?;
        let channel = channel.to_owned();
        self.call(|publisher, deadline| {
            let rules = publisher.rules(deadline)?;
            let app = rules.app(&publisher.app).map_err(QueryError::from)?.to_owned();
            if rules.shows(&channel) {
                let answered = publisher.ask_hubs(letters::Question::Shown { app, channel, wanted }, Of::Any, deadline)?;
                return Ok(Found::Shown(answered.map(|mut answers| answers.pop().map_or(Json::Null, |(_, answer)| answer))));
            }
            let answered = publisher.ask_hubs(letters::Question::ChannelUsers { app, channel }, Of::All, deadline)?;
            Ok(Found::Gathered(answered.map(|answers| merged(users_of(answers.into_iter().map(|(_, answer)| answer))))))
        })
    }

    fn hubs_now(&mut self, deadline: &mut Deadline) -> Result<Vec<u64>, PublisherError> {
        let key = self.keys.hubs();
        let mut command = cmd("EVAL");
        command.arg(LIST_HUBS).arg(1).arg(&key);
        let question = Question { slot: slot_of(&key), ..Question::reading(command) };
        let answer = self.ask(vec![question], None, deadline)?.pop().ok_or_else(nonsense).flatten();
        let ids: Result<Vec<String>, _> = answer.and_then(|ids| redis::from_redis_value(ids).map_err(|_| nonsense()));
        // What is no id has been written by somebody else.
        let ids = ids.map_err(|error| self.refused(error))?;
        Ok(ids.iter().filter_map(|id| id.parse::<Epoch>().ok().map(|id| id.0)).collect())
    }

    fn ask_hubs(
        &mut self,
        question: letters::Question,
        of: Of,
        deadline: &mut Deadline,
    ) -> Result<Gathered<Vec<(u64, Json)>>, PublisherError> {
        let changes = matches!(question, letters::Question::DisconnectUser { .. } | letters::Question::BanUser { .. });
        let mut hubs = self.hubs_now(deadline)?;
        if hubs.is_empty() {
            return Err(PublisherError::NoHubNow { address: self.address(), prefix: self.options.prefix.clone() });
        }
        // Nobody who has not been told knows where the answers are heard.
        let (from, number) = (Epoch(random()?), random()?);
        let topics = match of {
            Of::All => vec![self.keys.control()],
            Of::Any => {
                let first = number as usize % hubs.len();
                hubs.rotate_left(first);
                hubs.truncate(FEW);
                hubs.iter().map(|hub| self.keys.control_of(*hub)).collect()
            }
        };
        let mut ear = self.listen(&self.keys.control_of(from.0), deadline)?;
        let letter = Letter { from, number, content: Content::Ask(question) }.written();
        let letter = letter.map_err(|reason| PublisherError::Refused { address: self.address(), reason })?;
        let slot = slot_of(&self.keys.hubs());
        let say = |topic| {
            let mut command = cmd("PUBLISH");
            command.arg(topic).arg(&letter);
            // Who hears it twice has answered once.
            Question { slot, publishes: changes, ..Question::reading(command) }
        };
        for said in self.ask(topics.into_iter().map(say).collect(), None, deadline)? {
            said.map_err(|error| self.refused(error))?;
        }
        let asked = hubs.len();
        let waited = self.options.hubs_timeout.min(deadline.left());
        let (answered, failure) = hear(&mut ear, hubs.into_iter().collect(), number, of, &mut Deadline::new(waited));
        let Answered { answers, missing } = answered;
        if answers.is_empty() {
            return Err(match failure {
                Some(source) => PublisherError::Broken { address: self.address(), source },
                None if missing.is_empty() => PublisherError::Unable { hubs: asked },
                None => PublisherError::NoAnswer { hubs: asked, waited },
            });
        }
        let missing = if of == Of::Any { 0 } else { asked - answers.len() };
        if missing > 0 {
            tracing::warn!(hubs = missing, "hubs have not answered in time");
        }
        Ok(Gathered { answer: answers, hubs: asked, missing })
    }

    /// A connection that hears a topic, with the server that is asked.
    fn listen(&mut self, topic: &str, deadline: &mut Deadline) -> Result<Connection, PublisherError> {
        let mut subscribing = Pipeline::new();
        subscribing.cmd("SUBSCRIBE").arg(topic);
        let connecting = self.options.connect_timeout.min(deadline.left());
        let opened = self.servers.open(self.node.as_ref().map(|(_, server)| server), &subscribing, connecting, deadline);
        let (connection, mut answers) = opened.map_err(|source| self.not_connected(source))?;
        let subscribed = accepted(answers.pop().unwrap_or_default()).and_then(|answer| match answer {
            Value::Array(parts) if parts.first().is_some_and(|kind| *kind == Value::BulkString(b"subscribe".to_vec())) => Ok(()),
            _ => Err(nonsense()),
        });
        subscribed.map_err(|error| self.refused(error))?;
        Ok(connection)
    }
}

fn random() -> Result<u64, PublisherError> {
    let failed = |error: getrandom::Error| PublisherError::Refused { address: String::new(), reason: error.to_string() };
    getrandom::u64().map_err(failed)
}

/// Hears until all have answered, or one where that is enough, or the deadline. What breaks the connection ends it too.
fn hear(ear: &mut Connection, mut waits_for: HashSet<u64>, number: u64, of: Of, deadline: &mut Deadline) -> (Answered, Option<io::Error>) {
    let mut answers = Vec::new();
    let mut failure = None;
    while !waits_for.is_empty() && (of == Of::All || answers.is_empty()) {
        let said = match ear.hear(letters::MAX_BYTES + AROUND_A_LETTER, deadline) {
            Ok(said) => said,
            Err(error) if is_timeout(&error) => break,
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        // Anything else is not for us, or made up.
        if let Some(Letter { from: Epoch(from), number: of_question, content: Content::Answer(answer) }) = letter_in(&said)
            && of_question == number
            && waits_for.remove(&from)
            && let Some(answer) = answer
        {
            answers.push((from, answer));
        }
    }
    (Answered { answers, missing: waits_for.into_iter().collect() }, failure)
}

fn letter_in(said: &Value) -> Option<Letter> {
    let Value::Array(parts) = said else { return None };
    match &parts[..] {
        [Value::BulkString(kind), _, Value::BulkString(text)] if kind == b"message" => Letter::read(text),
        _ => None,
    }
}

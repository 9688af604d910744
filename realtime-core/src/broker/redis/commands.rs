//! Carries out what is asked of Redis, on one connection: of a single server, or of one node of a cluster.
//!
//! What a connection that ends has not answered fails, because it may have happened; what only reads is asked again on the next
//! connection, once. What comes while that is being made waits a moment.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Pipeline, Value};
use tokio::sync::mpsc::UnboundedReceiver;

use super::Command;
use super::calls::Replicas;
use super::cluster::Node;
use super::link::{ANSWER_TIMEOUT, GRACE, Link, Lost, Pause, Unanswered, answer_to, in_time, uncertainty};
use super::scripts::{Script, accepted, server_error};
use crate::error::BrokerError;
use crate::patience::Patience;

/// Commands in one round trip.
const BATCH: usize = 256;
/// Commands that wait, from which on one that is added takes its time.
pub(super) const LONG_QUEUE: usize = 8 * BATCH;

/// To a batch: to each command, and whether enough replicas have what it published.
type Answers = (Vec<Value>, Result<(), BrokerError>);

impl Link {
    /// Carries out what comes, on one server; `node`: which of a cluster.
    pub(super) async fn serve_commands(&self, queue: &mut UnboundedReceiver<Command>, node: Option<&Node>) {
        let what = node.map_or_else(|| "redis".to_owned(), |node| format!("redis {}", node.server.addr()));
        let mut pause = Pause::of(node.map_or(&self.shared.connected[0], |node| &node.connected));
        let mut error = BrokerError::Unavailable { reason: "redis: no connection yet".into() };
        let mut again = Vec::new();
        loop {
            let Some(connected) = self.connect_while_waiting(queue, node, &error).await else { break };
            let reason = match connected {
                Ok((connection, scripts)) => {
                    pause.succeeded(&what);
                    match self.carry_out_all(connection, scripts, queue, &mut again, node).await {
                        Some(reason) => reason,
                        None => break,
                    }
                }
                Err(reason) => reason,
            };
            if let Some(node) = node {
                node.trouble();
            }
            error = BrokerError::Unavailable { reason: format!("{what}: {reason}") };
            // The next attempt is a moment away: until that has failed everything waits for it.
            let may_wait = pause.is_connected();
            let until = tokio::time::Instant::now() + pause.failed(&what, &reason);
            if !may_wait {
                again.drain(..).for_each(|command| self.fail(command, &error));
            }
            let mut ends = false;
            while !ends {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    command = queue.recv(), if !may_wait => match command {
                        Some(command) => self.fail(command, &error),
                        None => ends = true,
                    },
                }
            }
            if ends {
                break;
            }
        }
        again.into_iter().for_each(|command| self.fail(command, &error));
    }

    /// A connection. What is asked for meanwhile waits for it a moment, and then fails; `None`: nothing will come.
    async fn connect_while_waiting(
        &self,
        queue: &mut UnboundedReceiver<Command>,
        node: Option<&Node>,
        error: &BrokerError,
    ) -> Option<Result<(MultiplexedConnection, Scripts), Lost>> {
        let mut connecting = std::pin::pin!(self.connect(node));
        if let Some(connected) = Patience::new(self.shared.patient(GRACE)).until(&mut connecting).await {
            return Some(connected);
        }
        loop {
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                command = queue.recv() => self.fail(command?, error),
            }
        }
    }

    async fn connect(&self, node: Option<&Node>) -> Result<(MultiplexedConnection, Scripts), Lost> {
        let mut connection = match node {
            Some(node) => self.servers.connect(&node.server).await?,
            None => self.servers.commands().await?,
        };
        let scripts = self.load_scripts(&mut connection).await?;
        Ok((connection, scripts))
    }

    async fn load_scripts(&self, connection: &mut MultiplexedConnection) -> Result<Scripts, Lost> {
        let sharded = self.servers.cluster().is_some();
        let mut pipeline = Pipeline::new();
        for script in Script::ALL {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.source(sharded));
        }
        let digests = in_time(self.shared.patient(ANSWER_TIMEOUT), pipeline.query_async(connection)).await?;
        Ok(Scripts(digests))
    }

    /// Carries out what comes until the connection is lost; `None`: nothing will come.
    async fn carry_out_all(
        &self,
        mut connection: MultiplexedConnection,
        mut scripts: Scripts,
        queue: &mut UnboundedReceiver<Command>,
        again: &mut Vec<Command>,
        node: Option<&Node>,
    ) -> Option<Lost> {
        let mut batch = Vec::new();
        loop {
            batch.clear();
            batch.append(again);
            if batch.is_empty() && queue.recv_many(&mut batch, BATCH).await == 0 {
                return None;
            }
            let (mut answers, mut confirmed) = match self.send(&mut connection, &scripts, &batch).await {
                Ok(answered) => answered,
                Err(Unanswered { reason, is_late }) => {
                    let error = uncertainty(&reason);
                    for mut command in batch.drain(..) {
                        match !is_late && command.ask_again() {
                            true => again.push(command),
                            false => self.fail(command, &error),
                        }
                    }
                    return Some(reason);
                }
            };
            let mut broken: Option<Lost> = None;
            // What was sent again and not answered.
            let mut uncertain = None;
            // A server that was started anew, or told to forget scripts, has done nothing of those.
            if answers.iter().any(is_unknown_script) {
                match self.load_scripts(&mut connection).await {
                    Ok(loaded) => scripts = loaded,
                    Err(reason) => broken = Some(reason),
                }
                for (at, (command, answer)) in batch.iter().zip(&mut answers).enumerate() {
                    // What a connection that is lost did not carry out stays refused; what it did stays done.
                    if is_unknown_script(answer) && broken.is_none() {
                        match self.send(&mut connection, &scripts, std::slice::from_ref(command)).await {
                            Ok((mut again, with)) => {
                                *answer = again.pop().unwrap_or_default();
                                confirmed = confirmed.and(with);
                            }
                            Err(Unanswered { reason, .. }) => {
                                uncertain = Some(at);
                                broken = Some(reason);
                            }
                        }
                    }
                }
            }
            // What was announced with the answers goes out first: subscribers have waited longer than who published.
            tokio::task::yield_now().await;
            let lost = broken.or_else(|| answers.iter().find_map(wrong_server));
            for (at, (command, answer)) in batch.drain(..).zip(answers).enumerate() {
                if let (true, Some(reason)) = (uncertain == Some(at), &lost) {
                    self.fail(command, &uncertainty(reason));
                    continue;
                }
                let command = match node {
                    Some(node) => node.keep(command, &answer),
                    None => Some(command),
                };
                let Some(command) = command else { continue };
                let answer = accepted(answer).and_then(|answer| match command.is_publication() {
                    true => confirmed.clone().map(|()| answer),
                    false => Ok(answer),
                });
                self.settle(command, answer);
            }
            if lost.is_some() {
                return lost;
            }
        }
    }

    /// What the server says to each of a batch, and whether enough replicas have the publications in it.
    async fn send(&self, connection: &mut MultiplexedConnection, scripts: &Scripts, batch: &[Command]) -> Result<Answers, Unanswered> {
        let mut pipeline = Pipeline::with_capacity(batch.len() + 1);
        for command in batch {
            match command {
                Command::Run(call, _, way) => {
                    if way.asking {
                        pipeline.cmd("ASKING");
                    }
                    pipeline.cmd("EVALSHA").arg(scripts.digest(call.script)).arg(call.keys.len()).arg(&call.keys);
                    pipeline.arg(&call.arguments);
                }
                Command::Tell { topic, payload } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg(payload);
                }
                Command::Probe { topic } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg("");
                }
                Command::Farewell { topic } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg("1");
                }
                Command::Whisper { topic, payload } => {
                    pipeline.cmd("SPUBLISH").arg(topic).arg(payload);
                }
                Command::Passing(_) | Command::Moved { .. } | Command::Troubled => {
                    pipeline.cmd("PING");
                }
            }
        }
        let mut limit = self.shared.patient(ANSWER_TIMEOUT);
        let replicas = Replicas::of(&self.shared.config).filter(|_| batch.iter().any(Command::is_publication));
        if let Some(replicas) = &replicas {
            pipeline.add_command(replicas.wait());
            limit += replicas.timeout();
        }
        let mut answers = answer_to(limit, connection.req_packed_commands(&pipeline, 0, pipeline.len())).await?;
        let confirmed = replicas.map_or(Ok(()), |replicas| replicas.confirmed(answers.pop().unwrap_or_default()));
        if answers.len() > batch.len() {
            let mut all = answers.into_iter();
            // What follows ASKING is the answer.
            answers = batch.iter().map(|command| all.nth(usize::from(command.is_asking())).unwrap_or_default()).collect();
        }
        Ok((answers, confirmed))
    }

    pub(super) fn fail(&self, command: Command, error: &BrokerError) {
        self.settle(command, Err(error.clone()));
    }

    fn settle(&self, command: Command, answer: Result<Value, BrokerError>) {
        match command {
            Command::Run(_, owed, _) => owed.give(answer),
            Command::Passing(passing) => drop(passing),
            Command::Tell { .. } | Command::Probe { .. } | Command::Farewell { .. } | Command::Whisper { .. } => {}
            Command::Moved { .. } | Command::Troubled => {}
        }
    }
}

/// The scripts' digests, each at the place of its number.
struct Scripts(Vec<String>);

impl Scripts {
    fn digest(&self, script: Script) -> &str {
        self.0.get(script as usize).map_or("", String::as_str)
    }
}

fn is_unknown_script(answer: &Value) -> bool {
    server_error(answer).is_some_and(|error| error.code() == "NOSCRIPT")
}

/// Why another server has to be asked: this one does not count any more.
fn wrong_server(answer: &Value) -> Option<Lost> {
    let error = server_error(answer)?;
    ["READONLY", "MASTERDOWN", "NOAUTH"]
        .contains(&error.code())
        .then(|| format!("{} {}", error.code(), error.details().unwrap_or_default()))
}

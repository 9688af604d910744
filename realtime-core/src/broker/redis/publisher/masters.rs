//! Where a publisher's questions go in a cluster: each to the master that has its slot, those of one master together.
//!
//! What a master sends elsewhere it has not done, and is asked there, in the order in which it was asked before: all of a slot's
//! comes back, or nothing. A master that cannot be reached, or says that the cluster is down, has the slots asked for anew, once in
//! a call. One that was waited for in vain is left alone for a while, and the others are not.

use std::io;

use redis::{ConnectionAddr, ConnectionInfo, Value, cmd};

use super::{Answers, Connected, Publisher, PublisherError, Question, is_timeout, settled, waiting_for};
use crate::broker::redis::calls::Replicas;
use crate::broker::redis::scripts::{accepted, server_error};
use crate::broker::redis::slots::Slots;
use crate::deadline::Deadline;
use crate::error::BrokerError;

/// Servers that one question may be sent on to.
const MAX_HOPS: usize = 5;

type Named = (Box<str>, ConnectionInfo);

/// Questions that one server is asked together.
struct Group {
    server: Named,
    /// Its slot is on its way there.
    asking: bool,
    which: Vec<usize>,
}

impl Publisher {
    /// The answers to all questions, in their order.
    pub(super) fn ask_masters(
        &mut self,
        questions: &[Question],
        replicas: Option<&Replicas>,
        deadline: &mut Deadline,
    ) -> Result<Answers, PublisherError> {
        let mut answers: Answers = questions.iter().map(|_| Err(unavailable("it sends on and on"))).collect();
        let mut rest: Vec<(usize, Option<Named>)> = (0..questions.len()).map(|at| (at, None)).collect();
        let (mut hops, mut is_doubted, mut has_published) = (0, false, false);
        while !rest.is_empty() && hops <= MAX_HOPS {
            hops += 1;
            let groups = self.group(questions, std::mem::take(&mut rest), &mut answers, deadline);
            let groups = groups.map_err(|error| if has_published { error.after_sending(self.address()) } else { error })?;
            for group in groups {
                let mut asked: Vec<Question> = group.which.iter().map(|at| questions[*at].clone()).collect();
                let publishes = asked.iter().any(|question| question.publishes);
                if group.asking {
                    asked.insert(0, Question::reading(cmd("ASKING")));
                }
                let replicas = replicas.filter(|_| publishes);
                if let Some(replicas) = replicas {
                    asked.push(waiting_for(replicas));
                    if has_published {
                        deadline.extend(replicas.timeout());
                    }
                }
                self.switch(&group.server);
                let mut given = match self.ask_one(asked, deadline) {
                    Ok(given) => given,
                    Err(PublisherError::Connect { source, .. }) if !is_doubted && !is_timeout(&source) => {
                        is_doubted = true;
                        self.doubt(group.server.0);
                        rest.extend(group.which.into_iter().map(|at| (at, None)));
                        continue;
                    }
                    Err(error) => {
                        // Who is left alone was doubted when it was late.
                        if !matches!(error, PublisherError::Paused { .. }) {
                            self.doubt(group.server.0);
                        }
                        return Err(if has_published { error.after_sending(self.address()) } else { error });
                    }
                };
                has_published |= publishes;
                if group.asking {
                    given.remove(0);
                }
                let mut elsewhere: Vec<_> = given.iter().map(|answer| self.sent_on(answer)).collect();
                let slots: Vec<usize> = group.which.iter().map(|at| questions[*at].slot).collect();
                let down = if is_doubted { Vec::new() } else { refused_as_down(&slots, &given) };
                if !down.is_empty() {
                    is_doubted = true;
                    self.doubt(group.server.0);
                    down.into_iter().for_each(|at| elsewhere[at] = Some(None));
                }
                for ((at, answer), elsewhere) in group.which.into_iter().zip(settled(given, replicas)).zip(elsewhere) {
                    match elsewhere {
                        Some(target) => rest.push((at, target)),
                        None => answers[at] = answer,
                    }
                }
            }
            rest.sort_by_key(|(at, _)| *at);
        }
        Ok(answers)
    }

    /// Who is asked what, in the order of the questions.
    fn group(
        &mut self,
        questions: &[Question],
        rest: Vec<(usize, Option<Named>)>,
        answers: &mut Answers,
        deadline: &mut Deadline,
    ) -> Result<Vec<Group>, PublisherError> {
        // Before one that was late is tried again it may have been replaced.
        let is_over = self.late.values_mut().any(|waiting| waiting.check_pause().is_ok());
        if self.slots.is_none() || is_over {
            self.learn_slots(deadline)?;
            self.late.retain(|_, waiting| waiting.check_pause().is_err());
        }
        let slots = self.slots.as_ref();
        let mut groups: Vec<Group> = Vec::new();
        for (at, target) in rest {
            if let Some(server) = target {
                groups.push(Group { server, asking: true, which: vec![at] });
                continue;
            }
            let owner = slots.and_then(|slots| slots.masters().get_key_value(slots.owner_of(questions[at].slot)?));
            match (owner, groups.iter_mut().find(|group| !group.asking && owner.is_some_and(|(name, _)| group.server.0 == *name))) {
                (Some(_), Some(group)) => group.which.push(at),
                (Some((name, server)), None) => {
                    groups.push(Group { server: (name.clone(), server.clone()), asking: false, which: vec![at] });
                }
                (None, _) => answers[at] = Err(unavailable("no node of the cluster has this channel's slot")),
            }
        }
        Ok(groups)
    }

    /// Where an answer sends the question; inside, a server that is asked for this one only.
    fn sent_on(&mut self, answer: &Value) -> Option<Option<Named>> {
        let error = server_error(answer)?;
        let cluster = self.servers.cluster()?;
        let (slot, address) = error.details()?.split_once(' ')?;
        let (host, port) = address.trim().rsplit_once(':')?;
        match error.code() {
            "MOVED" => match &mut self.slots {
                Some(slots) => slots.moved(cluster, slot.parse().ok()?, host, port).map(|_| None),
                // They are asked for anew.
                None => Some(None),
            },
            "ASK" => cluster.node(host, port).map(|server| Some((server.addr().to_string().into(), server))),
            _ => None,
        }
    }

    /// The slots are to be asked for anew, of another node than this.
    fn doubt(&mut self, name: Box<str>) {
        (self.slots, self.doubted) = (None, Some(name));
    }

    /// Goes on with the connection to a node, if there is one.
    fn switch(&mut self, to: &Named) {
        if self.node.as_ref().is_some_and(|(name, _)| *name == to.0) {
            return;
        }
        self.put_aside();
        self.connected = self.elsewhere.remove(&to.0);
        self.node = Some(to.clone());
    }

    fn put_aside(&mut self) {
        if let (Some((name, _)), Some(connected)) = (self.node.take(), self.connected.take()) {
            self.elsewhere.insert(name, connected);
        }
    }

    /// Asks one node after the other who has which slots, each time another one first.
    fn learn_slots(&mut self, deadline: &mut Deadline) -> Result<(), PublisherError> {
        let Some(cluster) = self.servers.cluster().cloned() else { return Ok(()) };
        // What fails from here on is about all nodes: only then are all left alone.
        self.put_aside();
        self.waiting.check_pause()?;
        let mut nodes: Vec<ConnectionInfo> = if self.known.is_empty() { &cluster.nodes } else { &self.known }.clone();
        self.turn = self.turn.wrapping_add(1);
        let first = self.turn % nodes.len().max(1);
        nodes.rotate_left(first);
        if !self.known.is_empty() {
            nodes.extend(cluster.nodes.iter().cloned());
        }
        nodes.sort_by_key(|node| {
            let name = node.addr().to_string();
            self.late.contains_key(&*name) || self.doubted.as_deref() == Some(&name)
        });
        let mut further = self.loading();
        further.cmd("CLUSTER").arg("SLOTS");
        let mut failure = io::ErrorKind::NotFound.into();
        for (at, node) in nodes.iter().enumerate() {
            // One that does not answer leaves time for the others.
            let share = self.options.connect_timeout.min(deadline.left() / (nodes.len() - at + 1) as u32);
            let host = match node.addr() {
                ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
                _ => "",
            };
            match self.servers.open(Some(node), &further, share, &mut Deadline::new(share)) {
                Ok((connection, mut answers)) => {
                    let said = accepted(answers.pop().unwrap_or_default());
                    let slots = match said {
                        Ok(said) => Slots::parse(&cluster, host, said).ok_or_else(|| "it knows no slots".to_owned()),
                        Err(error) => Err(error.to_string()),
                    };
                    match slots {
                        Ok(slots) => {
                            self.learn_digests(answers)?;
                            self.known = slots.masters().values().cloned().collect();
                            self.elsewhere.retain(|name, _| slots.masters().contains_key(name));
                            let name: Box<str> = node.addr().to_string().into();
                            if slots.masters().contains_key(&name) {
                                self.elsewhere.insert(name, Connected { connection, owner: std::process::id() });
                            }
                            (self.node, self.connected, self.slots) = (None, None, Some(slots));
                            return Ok(());
                        }
                        Err(reason) => failure = io::Error::other(format!("{}: {reason}", node.addr())),
                    }
                }
                // That one is late besides does not make all of them late.
                Err(error) if !is_timeout(&error) || is_timeout(&failure) || failure.kind() == io::ErrorKind::NotFound => {
                    failure = io::Error::new(error.kind(), format!("{}: {error}", node.addr()));
                }
                Err(_) => {}
            }
        }
        Err(self.not_connected(failure))
    }
}

/// Which of a server's answers say that it does not reach the cluster. None of a slot of which it has done something behind that:
/// what is asked again would come after it.
fn refused_as_down(slots: &[usize], answers: &[Value]) -> Vec<usize> {
    let is_down = |answer: &Value| server_error(answer).is_some_and(|error| error.code() == "CLUSTERDOWN");
    let is_done_behind = |at: usize| slots.iter().zip(answers).skip(at).any(|(slot, answer)| *slot == slots[at] && !is_down(answer));
    (0..slots.len()).filter(|at| answers.get(*at).is_some_and(is_down) && !is_done_behind(*at)).collect()
}

fn unavailable(reason: &str) -> BrokerError {
    BrokerError::Unavailable { reason: format!("redis refused: {reason}") }
}

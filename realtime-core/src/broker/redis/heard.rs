//! What is heard of channels, wherever it comes from: in its order to those who are here, and what was missed is looked for.

use std::sync::Arc;

use redis::Value;

use super::calls;
use super::envelope;
use super::link::Link;
use super::{LINGER, Listener, Range, State, Subscribed, Subscription};
use crate::error::BrokerError;
use crate::history::Page;
use crate::message::{Channel, Epoch, Position, Publication, Publish};

/// Ticks in which every channel's position is compared once.
const CHECK_TICKS: usize = 20;
/// Announcements that wait for a check. More are dropped, and found missing later.
const MAX_EARLY: usize = 4_096;
/// Publications that a check reads at once.
const CHECK_LIMIT: usize = 512;

/// Who hears a topic.
#[derive(Clone)]
pub(super) enum Topic {
    Channel(Box<str>),
    Listener(Arc<dyn Listener>),
}

/// What has to be handed on, without the lock.
enum Out {
    Announced(Position, Vec<u8>),
    Kept(Arc<Publication>),
    Interrupted(Position),
}

impl Link {
    /// Channels are heard, for the first time or again: asks where they stand, or what was missed.
    pub(super) fn look(&self, names: &[Box<str>]) {
        let mut questions = Vec::new();
        let mut channels = self.shared.channels.lock();
        for name in names {
            let Some(subscribed) = channels.get_mut(name) else { continue };
            let since = match &mut subscribed.state {
                State::Asked { early, .. } => {
                    early.clear();
                    None
                }
                State::Live(position) => {
                    let position = *position;
                    subscribed.state = State::Checking { position, early: Vec::new(), asked: true };
                    Some(position)
                }
                State::Checking { position, early, asked } => {
                    early.clear();
                    *asked = true;
                    Some(*position)
                }
            };
            questions.push((name.clone(), subscribed.channel.clone(), since));
        }
        drop(channels);
        questions.into_iter().for_each(|(name, channel, since)| self.ask(name, channel, since));
    }

    /// Hands on what follows; looks for what is missing before what does not.
    pub(super) fn announce(&self, name: &str, announced: Vec<(Position, Vec<u8>)>) {
        let mut out = Vec::new();
        let mut question = None;
        if let Some(subscribed) = self.shared.channels.lock().get_mut(name) {
            for (position, envelope) in announced {
                match &mut subscribed.state {
                    State::Asked { early, .. } | State::Checking { early, .. } => {
                        if early.len() >= MAX_EARLY {
                            early.clear();
                        }
                        early.push((position, envelope));
                    }
                    State::Live(last) if last.epoch == position.epoch && position.offset <= last.offset => {}
                    State::Live(last) if last.epoch == position.epoch && position.offset == last.offset + 1 => {
                        *last = position;
                        out.push(Out::Announced(position, envelope));
                    }
                    State::Live(last) => {
                        let last = *last;
                        subscribed.state = State::Checking { position: last, early: vec![(position, envelope)], asked: true };
                        question = Some((subscribed.channel.clone(), last));
                    }
                }
            }
        }
        self.hand_on(name, out);
        if let Some((channel, since)) = question {
            self.ask(name.into(), channel, Some(since));
        }
    }

    fn hand_on(&self, name: &str, out: Vec<Out>) {
        let deliver = &self.deliver;
        for out in out {
            match out {
                Out::Announced(position, bytes) => match envelope::decode(&bytes) {
                    Ok(opened) => drop(deliver.deliver(&opened.publish(name), position)),
                    Err(error) => self.shared.count_malformed(name, &error),
                },
                Out::Kept(kept) => {
                    let publish = Publish::new(name, kept.event.as_str(), kept.body.as_payload());
                    let publish = Publish { except: &kept.except, user_id: kept.user_id.as_ref(), ..publish };
                    deliver.deliver(&publish, kept.position);
                }
                Out::Interrupted(position) => deliver.interrupted(name, position),
            }
        }
    }

    /// Gives the channel back if its subscription has come to nothing.
    pub(super) fn on_confirmed(&self, name: Box<str>, result: Result<Position, BrokerError>) -> Option<Box<str>> {
        let mut channels = self.shared.channels.lock();
        let Some(Subscribed { state: state @ State::Asked { .. }, .. }) = channels.get_mut(&name) else { return None };
        let position = match &result {
            Ok(position) => *position,
            Err(_) => Position { epoch: Epoch(0), offset: 0 },
        };
        let State::Asked { waiting, early } = std::mem::replace(state, State::Live(position)) else { return None };
        if result.is_err() {
            channels.remove(&name);
        }
        drop(channels);
        waiting.into_iter().for_each(|resolver| resolver.resolve(result.clone()));
        self.announce(&name, early);
        result.is_err().then_some(name)
    }

    pub(super) fn on_checked(&self, name: &str, result: Result<Page, BrokerError>) {
        let Ok(page) = result else { return self.note_unchecked(name) };
        let mut channels = self.shared.channels.lock();
        let Some(Subscribed { state, channel, suspect, .. }) = channels.get_mut(name) else { return };
        let State::Checking { position, early, .. } = state else { return };
        let mut out = Vec::new();
        let mut question = None;
        let mut waiting = std::mem::take(early);
        let seen = std::mem::take(suspect);
        if page.continues(*position) {
            let reached = match page.publications.last() {
                Some(last) if page.more => last.position,
                _ => page.top,
            };
            out.extend(page.publications.into_iter().map(Out::Kept));
            if page.more {
                question = Some((channel.clone(), reached));
                *state = State::Checking { position: reached, early: std::mem::take(&mut waiting), asked: true };
            } else {
                *state = State::Live(reached);
            }
        } else if page.top.epoch == position.epoch
            && (seen.is_none_or(|seen| seen <= position.offset)
                || waiting.first().is_some_and(|(first, _)| first.epoch == position.epoch && first.offset == position.offset + 1))
        {
            // What is not kept may still be on its way.
            *suspect = Some(page.top.offset);
            *state = State::Live(*position);
        } else {
            // What has been announced since goes on from where it begins, for those who can live with a gap.
            let base = match waiting.first() {
                Some((first, _)) if first.epoch == page.top.epoch => Position { offset: first.offset.saturating_sub(1), ..*first },
                _ => page.top,
            };
            out.push(Out::Interrupted(base));
            *state = State::Live(base);
        }
        drop(channels);
        self.hand_on(name, out);
        if let Some((channel, since)) = question {
            self.ask(name.into(), channel, Some(since));
        }
        self.announce(name, waiting);
    }

    /// Compares the positions of some of the channels; gives those that nobody needs any more.
    pub(super) fn survey(&self, ticks: usize) -> Vec<Box<str>> {
        let (mut questions, mut unused) = (Vec::new(), Vec::new());
        self.shared.channels.lock().retain(|name, subscribed| {
            if subscribed.unused_since.is_some_and(|since| since.elapsed() > LINGER) && !matches!(subscribed.state, State::Asked { .. }) {
                unused.push(name.clone());
                return false;
            }
            let is_due = subscribed.suspect.is_some() || subscribed.channel.hash() as usize % CHECK_TICKS == ticks % CHECK_TICKS;
            let since = match &mut subscribed.state {
                State::Live(position) if is_due => {
                    let position = *position;
                    subscribed.state = State::Checking { position, early: Vec::new(), asked: true };
                    Some(position)
                }
                State::Checking { position, asked: asked @ false, .. } => {
                    *asked = true;
                    Some(*position)
                }
                _ => None,
            };
            if let Some(since) = since {
                questions.push((name.clone(), subscribed.channel.clone(), since));
            }
            true
        });
        questions.into_iter().for_each(|(name, channel, since)| self.ask(name, channel, Some(since)));
        unused
    }

    pub(super) fn refuse_asked(&self, error: &BrokerError) {
        let mut refused = Vec::new();
        self.shared.channels.lock().retain(|_, subscribed| match &mut subscribed.state {
            State::Asked { waiting, .. } => {
                refused.append(waiting);
                false
            }
            _ => true,
        });
        refused.into_iter().for_each(|resolver| resolver.resolve(Err(error.clone())));
    }

    /// A topic that cannot be heard just now. True: nobody waits for it, or whoever did has been refused.
    pub(super) fn fail_heard(&self, topic: &str, heard: &Topic, error: &BrokerError) -> bool {
        let name = match heard {
            Topic::Channel(name) => name,
            Topic::Listener(listener) => {
                listener.lose(topic);
                return false;
            }
        };
        let mut channels = self.shared.channels.lock();
        let waiting = match channels.get_mut(name) {
            Some(Subscribed { state: State::Asked { waiting, .. }, .. }) => std::mem::take(waiting),
            Some(_) => return false,
            None => return true,
        };
        channels.remove(name);
        drop(channels);
        waiting.into_iter().for_each(|resolver| resolver.resolve(Err(error.clone())));
        true
    }

    pub(super) fn note_unchecked(&self, name: &str) {
        if let Some(Subscribed { state: State::Checking { asked, .. }, .. }) = self.shared.channels.lock().get_mut(name) {
            *asked = false;
        }
    }

    /// Asks for where a channel stands, or for what followed a position; the answer comes back on
    /// the queue of subscriptions.
    fn ask(&self, name: Box<str>, channel: Channel, since: Option<Position>) {
        let range = match since {
            Some(position) => Range { after: position.offset, limit: CHECK_LIMIT, bytes: 1 << 20, ..Range::default() },
            None => Range { after: u64::MAX, ..Range::default() },
        };
        let call = calls::read(&self.shared.keys, self.shared.config.fence, channel.scoped(), &range);
        let (answers, shared) = (self.senders.subscriptions.clone(), self.shared.clone());
        let done = move |answer: Result<Value, BrokerError>| {
            let result = answer.and_then(|answer| shared.page(&channel, answer));
            let answer = match since {
                Some(_) => Subscription::Checked(name, result),
                None => Subscription::Confirmed(name, result.map(|page| page.top)),
            };
            drop(answers.send(answer));
        };
        if self.shared.run(&self.senders, call, Box::new(done)).is_err() {
            tracing::debug!("the link of commands has ended");
        }
    }
}

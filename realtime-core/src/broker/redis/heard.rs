//! What is heard of channels, wherever it comes from: in its order to those who are here, and what was missed is looked for.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

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
/// Announcements of a channel that wait for a check, and their bytes. More are dropped, and found missing later.
const MAX_EARLY: usize = 4_096;
const MAX_EARLY_BYTES: usize = 16 << 20;
/// Publications that a check reads at once.
const CHECK_LIMIT: usize = 512;

/// Who hears a topic.
#[derive(Clone)]
pub(super) enum Topic {
    Channel(Box<str>),
    Listener(Arc<dyn Listener>),
}

/// Announcements that wait for a check, in their order.
#[derive(Default)]
pub(super) struct Early {
    announced: Vec<(Position, Vec<u8>)>,
    bytes: usize,
}

impl Early {
    fn push(&mut self, position: Position, envelope: Vec<u8>) {
        if self.announced.len() >= MAX_EARLY || self.bytes + envelope.len() > MAX_EARLY_BYTES {
            self.clear();
        }
        self.bytes += envelope.len();
        self.announced.push((position, envelope));
    }

    fn clear(&mut self) {
        *self = Early::default();
    }

    fn first(&self) -> Option<Position> {
        self.announced.first().map(|(position, _)| *position)
    }
}

/// Where a channel stands, or what followed a position: what has to be asked, without the lock.
struct Question {
    channel: Channel,
    since: Option<Position>,
    number: u64,
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
                    subscribed.state = State::Checking { position, early: Early::default(), asked: true };
                    Some(position)
                }
                State::Checking { position, early, asked } => {
                    early.clear();
                    *asked = true;
                    Some(*position)
                }
            };
            questions.push((name.clone(), self.question(subscribed, since)));
        }
        drop(channels);
        questions.into_iter().for_each(|(name, question)| self.ask(name, question));
    }

    /// Hands on what follows; looks for what is missing before what does not.
    pub(super) fn announce(&self, name: &str, announced: Vec<(Position, Vec<u8>)>) {
        let mut out = Vec::new();
        let mut question = None;
        if let Some(subscribed) = self.shared.channels.lock().get_mut(name) {
            for (position, envelope) in announced {
                match &mut subscribed.state {
                    State::Asked { early, .. } | State::Checking { early, .. } => {
                        early.push(position, envelope);
                    }
                    State::Live(last) if last.epoch == position.epoch && position.offset <= last.offset => {}
                    State::Live(last) if last.epoch == position.epoch && position.offset == last.offset + 1 => {
                        *last = position;
                        out.push(Out::Announced(position, envelope));
                    }
                    State::Live(last) => {
                        let (last, mut early) = (*last, Early::default());
                        early.push(position, envelope);
                        subscribed.state = State::Checking { position: last, early, asked: true };
                        question = Some(self.question(subscribed, Some(last)));
                    }
                }
            }
        }
        self.hand_on(name, out);
        if let Some(question) = question {
            self.ask(name.into(), question);
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
    pub(super) fn on_confirmed(&self, name: Box<str>, number: u64, result: Result<Position, BrokerError>) -> Option<Box<str>> {
        let mut channels = self.shared.channels.lock();
        let subscribed = channels.get_mut(&name).filter(|subscribed| subscribed.question == number)?;
        let Subscribed { state: state @ State::Asked { .. }, .. } = subscribed else { return None };
        let position = match &result {
            Ok(position) => *position,
            Err(_) => Position { epoch: Epoch(0), offset: 0 },
        };
        let State::Asked { waiting, early, .. } = std::mem::replace(state, State::Live(position)) else { return None };
        if result.is_err() {
            channels.remove(&name);
        }
        drop(channels);
        waiting.into_iter().for_each(|resolver| resolver.resolve(result.clone()));
        self.announce(&name, early.announced);
        result.is_err().then_some(name)
    }

    pub(super) fn on_checked(&self, name: &str, number: u64, result: Result<Page, BrokerError>) {
        let mut channels = self.shared.channels.lock();
        let Some(subscribed) = channels.get_mut(name).filter(|subscribed| subscribed.question == number) else { return };
        let Subscribed { state: State::Checking { position, early, asked }, suspect, .. } = subscribed else { return };
        let Ok(page) = result else { return *asked = false };
        let position = *position;
        let mut out = Vec::new();
        let mut question = None;
        let mut waiting = std::mem::take(early);
        let seen = std::mem::take(suspect);
        if page.continues(position) {
            let reached = match page.publications.last() {
                Some(last) if page.more => last.position,
                _ => page.top,
            };
            out.extend(page.publications.into_iter().map(Out::Kept));
            if page.more {
                question = Some(self.question(subscribed, Some(reached)));
                subscribed.state = State::Checking { position: reached, early: std::mem::take(&mut waiting), asked: true };
            } else {
                subscribed.state = State::Live(reached);
            }
        } else if page.top.epoch == position.epoch
            && (seen.is_none_or(|seen| seen <= position.offset)
                || waiting.first().is_some_and(|first| first.epoch == position.epoch && first.offset == position.offset + 1))
        {
            // What is not kept may still be on its way.
            subscribed.suspect = Some(page.top.offset);
            subscribed.state = State::Live(position);
        } else {
            // What has been announced since goes on from where it begins, for those who can live with a gap.
            let base = match waiting.first() {
                Some(first) if first.epoch == page.top.epoch => Position { offset: first.offset.saturating_sub(1), ..first },
                _ => page.top,
            };
            out.push(Out::Interrupted(base));
            subscribed.state = State::Live(base);
        }
        drop(channels);
        self.hand_on(name, out);
        if let Some(question) = question {
            self.ask(name.into(), question);
        }
        self.announce(name, waiting.announced);
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
                    subscribed.state = State::Checking { position, early: Early::default(), asked: true };
                    Some(position)
                }
                State::Checking { position, asked: asked @ false, .. } => {
                    *asked = true;
                    Some(*position)
                }
                _ => None,
            };
            if let Some(since) = since {
                questions.push((name.clone(), self.question(subscribed, Some(since))));
            }
            true
        });
        questions.into_iter().for_each(|(name, question)| self.ask(name, question));
        unused
    }

    /// A line has ended. Subscriptions that it has not confirmed are refused, unless they may wait for the next one.
    pub(super) fn refuse_asked(&self, error: &BrokerError, may_wait: bool) {
        let mut refused = Vec::new();
        self.shared.channels.lock().retain(|_, subscribed| match &mut subscribed.state {
            State::Asked { waiting, again, .. } => {
                let stays = may_wait && !std::mem::replace(again, true);
                if !stays {
                    refused.append(waiting);
                }
                stays
            }
            _ => true,
        });
        refused.into_iter().for_each(|resolver| resolver.resolve(Err(error.clone())));
    }

    /// A topic that cannot be heard just now; who subscribes may wait for the next line. True: nobody waits for it, or whoever did
    /// has been refused.
    pub(super) fn fail_heard(&self, topic: &str, heard: &Topic, error: &BrokerError, may_wait: bool) -> bool {
        let name = match heard {
            Topic::Channel(name) => name,
            Topic::Listener(listener) => {
                listener.lose(topic);
                return false;
            }
        };
        let mut channels = self.shared.channels.lock();
        let waiting = match channels.get_mut(name) {
            Some(Subscribed { state: State::Asked { waiting, again, .. }, .. }) => {
                if may_wait && !std::mem::replace(again, true) {
                    return false;
                }
                std::mem::take(waiting)
            }
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

    fn question(&self, subscribed: &mut Subscribed, since: Option<Position>) -> Question {
        let number = self.shared.questions.fetch_add(1, Relaxed) + 1;
        subscribed.question = number;
        Question { channel: subscribed.channel.clone(), since, number }
    }

    /// The answer comes back on the queue of subscriptions.
    fn ask(&self, name: Box<str>, question: Question) {
        let Question { channel, since, number } = question;
        let range = match since {
            Some(position) => Range { after: position.offset, limit: CHECK_LIMIT, bytes: 1 << 20, ..Range::default() },
            None => Range { after: u64::MAX, ..Range::default() },
        };
        let call = calls::read(&self.shared.keys, self.shared.config.fence, channel.scoped(), &range);
        let (answers, shared) = (self.senders.subscriptions.clone(), self.shared.clone());
        let done = move |answer: Result<Value, BrokerError>| {
            let result = answer.and_then(|answer| shared.page(&channel, answer));
            let answer = match since {
                Some(_) => Subscription::Checked(name, number, result),
                None => Subscription::Confirmed(name, number, result.map(|page| page.top)),
            };
            drop(answers.send(answer));
        };
        if self.shared.run(&self.senders, call, Box::new(done)).is_err() {
            tracing::debug!("the link of commands has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_check_is_bounded_in_number_and_in_bytes() {
        let position = |offset| Position { epoch: Epoch(1), offset };
        let held = |count: usize, bytes: usize| {
            let mut early = Early::default();
            (0..count).for_each(|at| early.push(position(at as u64), vec![0; bytes]));
            (early.announced.len(), early.first().map_or(0, |first| first.offset))
        };
        for (count, expected) in [(MAX_EARLY - 1, MAX_EARLY - 1), (MAX_EARLY, MAX_EARLY), (MAX_EARLY + 1, 1)] {
            assert_eq!(held(count, 0), (expected, (count - expected) as u64), "{count}");
        }
        let quarter = MAX_EARLY_BYTES / 4;
        assert_eq!((held(4, quarter - 1).0, held(4, quarter).0, held(4, quarter + 1)), (4, 4, (1, 3)));
        // One that is larger than all of them may be is handed on all the same.
        assert_eq!(held(2, MAX_EARLY_BYTES + 1), (1, 1));
    }
}

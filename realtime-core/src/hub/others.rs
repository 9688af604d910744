//! What hubs that share a broker ask of each other, and what each answers for itself.

use serde_json::Value;

use super::Node;
use crate::apps::AppId;
use crate::error::QueryError;
use crate::letters::{Answered, Question, ToldChannel, sum_of};
use crate::message::ChannelInfo;

#[cfg(feature = "redis")]
pub(crate) use crate::cluster::Asking;

/// Without a broker of many hubs nobody is asked.
#[cfg(not(feature = "redis"))]
pub(crate) struct Asking<'a>(std::marker::PhantomData<&'a ()>);

#[cfg(not(feature = "redis"))]
impl Asking<'_> {
    pub(crate) fn wait(self) -> Answered {
        Answered::default()
    }
}

/// The answers, or none where there is nobody else.
pub(super) fn wait(asking: Option<Asking<'_>>) -> Answered {
    asking.map(Asking::wait).unwrap_or_default()
}

impl Node {
    /// Asks the other hubs; `None`: there are none to ask.
    pub(super) fn ask_others(&self, question: impl FnOnce() -> Question) -> Result<Option<Asking<'_>>, QueryError> {
        #[cfg(feature = "redis")]
        if let Some(cluster) = &self.cluster {
            return cluster.ask(question()).map(Some);
        }
        drop(question);
        Ok(None)
    }

    pub(super) fn app_name(&self, app: AppId) -> String {
        self.apps.of(app).name().to_owned()
    }

    /// Subscriptions to a channel, on all hubs.
    pub(crate) fn subscribers(&self, app: AppId, channel: &str) -> Result<usize, QueryError> {
        let asking = self.ask_others(|| Question::Subscribers { app: self.app_name(app), channel: channel.to_owned() })?;
        let here = self.subscribers_here(app, channel);
        Ok(here.saturating_add(sum_of(&wait(asking).answers)))
    }

    /// The channels with subscribers on all hubs, ordered by name.
    pub(crate) fn channels(&self, app: AppId) -> Result<Vec<ChannelInfo>, QueryError> {
        let asking = self.ask_others(|| Question::Channels { app: self.app_name(app) })?;
        let mut channels = self.channels_here(app);
        let told = wait(asking).answers.into_iter().filter_map(|(_, answer)| serde_json::from_value::<Vec<ToldChannel>>(answer).ok());
        let told: Vec<ToldChannel> = told.flatten().collect();
        if !told.is_empty() {
            let mut by_name: std::collections::BTreeMap<String, usize> =
                channels.into_iter().map(|channel| (channel.name, channel.subscribers)).collect();
            for ToldChannel { name, subscribers } in told {
                let sum = by_name.entry(name).or_default();
                *sum = sum.saturating_add(subscribers);
            }
            channels = by_name.into_iter().map(|(name, subscribers)| ChannelInfo { name, subscribers }).collect();
        }
        Ok(channels)
    }

    /// All hubs and what they have; this one first.
    pub(crate) fn cluster_status(&self) -> Result<Value, QueryError> {
        let asking = self.ask_others(|| Question::Status)?;
        let mut hubs = vec![self.status_here()];
        let answered = wait(asking);
        let mut others = answered.answers;
        others.sort_by_key(|(id, _)| *id);
        hubs.extend(others.into_iter().filter_map(|(id, mut status)| {
            status.as_object_mut()?.insert("id".into(), format!("{id:016x}").into());
            Some(status)
        }));
        let missing: Vec<String> = answered.missing.iter().map(|id| format!("{id:016x}")).collect();
        Ok(serde_json::json!({"hubs": hubs, "missing": missing}))
    }

    fn status_here(&self) -> Value {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let stats = self.stats();
        serde_json::json!({
            "id": self.hub_id(),
            "host": host.trim(),
            "pid": std::process::id(),
            "listen": self.local_addr.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_ms": stats.uptime_ms,
            "connections": stats.connections,
            "channels": stats.channels,
        })
    }

    fn hub_id(&self) -> String {
        #[cfg(feature = "redis")]
        if let Some(cluster) = &self.cluster {
            return format!("{:016x}", cluster.id());
        }
        String::new()
    }

    /// Answers another hub for this one. `None`: it cannot, or there is no such app here.
    #[cfg(feature = "redis")]
    pub(crate) fn answer_hub(&self, question: Question) -> Option<Value> {
        use crate::letters::{Wanted, told};
        let of = |app: &str| self.apps.by_name(app).ok();
        let ban = |ban_ms: u64| std::time::Duration::from_millis(ban_ms);
        Some(match question {
            Question::ChannelUsers { app, channel } => told(&self.channel_users_here(of(&app)?, &channel).ok()?)?,
            Question::Shown { app, channel, wanted } if self.shows(&channel) => match wanted {
                Wanted::All => told(&self.channel_users(of(&app)?, &channel).ok()?)?,
                Wanted::Number => self.count_users(of(&app)?, &channel).ok()?.into(),
                Wanted::One(id) => told(self.channel_user(of(&app)?, &channel, &id).ok()?.as_slice())?,
            },
            // For this one there are others to ask.
            Question::Shown { .. } => return None,
            Question::Subscribers { app, channel } => self.subscribers_here(of(&app)?, &channel).into(),
            Question::Channels { app } => {
                let told = |ChannelInfo { name, subscribers }: ChannelInfo| ToldChannel { name, subscribers };
                serde_json::to_value(self.channels_here(of(&app)?).into_iter().map(told).collect::<Vec<_>>()).ok()?
            }
            Question::DisconnectUser { app, user, code, reason } => self.disconnect_here(of(&app)?, &user, code, &reason).ok()?.into(),
            Question::BanUser { app, user, ban_ms, code, reason } => {
                self.ban_here(of(&app)?, &user, ban(ban_ms), code, &reason).ok()?.into()
            }
            Question::Status => self.status_here(),
        })
    }
}

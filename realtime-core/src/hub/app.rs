//! One app of a hub, as hosts see it.

use std::time::Duration;

use super::handle::Hub;
use crate::apps::AppId;
use crate::error::{PublishError, QueryError};
use crate::history::{self, History};
use crate::message::{ChannelInfo, ChannelUser, Payload, Publish, Receipt, SocketId, User, validate_channel};

/// One app of a hub: the same operations on its channels and users. Those of [`Hub`] itself mean the
/// default app.
#[derive(Clone, Copy)]
pub struct App<'a> {
    pub(super) hub: &'a Hub,
    pub(super) id: AppId,
}

impl App<'_> {
    /// See [`Hub::publish`]; the app is this one, whatever `publish` names.
    pub fn publish(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        validate_channel(publish.channel)?;
        self.publish_checked(publish)
    }

    /// See [`Hub::publish_to_user`].
    pub fn publish_to_user(&self, user_id: &str, event: &str, payload: Payload<'_>, except: &[SocketId]) -> Result<Receipt, PublishError> {
        User::new(user_id, None)?;
        let channel = User::channel_name(user_id);
        self.publish_checked(&Publish { except, ..Publish::new(&channel, event, payload) })
    }

    fn publish_checked(&self, publish: &Publish<'_>) -> Result<Receipt, PublishError> {
        let app = (self.id != AppId::DEFAULT).then(|| self.hub.0.node.apps.of(self.id).name());
        self.hub.publish_checked(&Publish { app, ..*publish })
    }

    /// See [`Hub::channel_users`].
    pub fn channel_users(&self, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        self.hub.0.node.channel_users(self.id, channel)
    }

    /// See [`Hub::count_users`].
    pub fn count_users(&self, channel: &str) -> Result<usize, QueryError> {
        self.hub.0.node.count_users(self.id, channel)
    }

    /// See [`Hub::channel_user`].
    pub fn channel_user(&self, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        self.hub.0.node.channel_user(self.id, channel, id)
    }

    /// See [`Hub::history`].
    pub fn history(&self, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        self.hub.0.node.read_history(self.id, channel, query)
    }

    /// See [`Hub::disconnect_user`].
    pub fn disconnect_user(&self, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.hub.0.node.disconnect_user(self.id, user_id, code, reason)
    }

    /// See [`Hub::ban_user`].
    pub fn ban_user(&self, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        self.hub.0.node.ban_user(self.id, user_id, duration, code, reason)
    }

    /// See [`Hub::set_user`]; a connection of another app is not found.
    pub fn set_user(&self, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        self.hub.0.node.set_user(self.id, socket, user)
    }

    /// See [`Hub::channels`].
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.hub.0.node.channels_here(self.id)
    }
}

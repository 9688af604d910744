//! Apps: names of channels and users that do not meet, each with a key and a secret of its own.
//!
//! Two sites on one hub never hear each other. Inside, a channel of another app than the default
//! one has the app's name before its own; who subscribes or publishes never sees that.

use std::borrow::Cow;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::config::{AppConfig, nearest};
use crate::message::APP_SEPARATOR;

/// The app that is meant where none is named.
pub const DEFAULT_APP: &str = "default";

/// The apps of a hub. The default one is always there.
#[derive(Debug)]
pub struct Apps(Vec<App>);

/// One of them.
#[derive(Debug)]
pub struct App {
    name: String,
    config: AppConfig,
    /// Open connections.
    connections: AtomicUsize,
}

/// Which app; only good for the hub that gave it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct AppId(u16);

impl AppId {
    /// The default app.
    pub const DEFAULT: AppId = AppId(0);
}

/// No app has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no app `{name}`{}", suggestion.as_ref().map(|s| format!(", did you mean `{s}`?")).unwrap_or_default())]
pub struct UnknownApp {
    /// The name.
    pub name: String,
    /// The nearest one that exists.
    pub suggestion: Option<String>,
}

impl UnknownApp {
    /// A name that is none of these.
    pub(crate) fn among<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        UnknownApp { name: name.into(), suggestion: nearest(name, known).map(str::to_owned) }
    }
}

impl App {
    fn new(name: &str, config: AppConfig) -> Self {
        App { name: name.to_owned(), config, connections: AtomicUsize::new(0) }
    }

    /// What hosts call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has been configured for it.
    pub fn config(&self) -> &AppConfig {
        &self.config
    }

    /// Open connections on this hub.
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Counts a connection, unless the app has as many as it may have.
    pub(crate) fn admit(&self) -> bool {
        let limit = match self.config.max_connections {
            0 => usize::MAX,
            limit => limit,
        };
        self.connections.fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1)).is_ok()
    }

    /// One of them is gone.
    pub(crate) fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }
}

impl Apps {
    /// Of a validated configuration.
    pub(crate) fn new(configured: &[AppConfig]) -> Self {
        let mut apps = vec![App::new(DEFAULT_APP, AppConfig::default())];
        for config in configured {
            let app = App::new(config.name(), config.clone());
            if app.name == DEFAULT_APP {
                apps[0] = app;
            } else {
                apps.push(app);
            }
        }
        Apps(apps)
    }

    /// The app with an id that this hub gave.
    pub fn of(&self, id: AppId) -> &App {
        &self.0[usize::from(id.0)]
    }

    /// By the name that hosts use; empty is the default one.
    pub fn by_name(&self, name: &str) -> Result<AppId, UnknownApp> {
        if name.is_empty() {
            return Ok(AppId::DEFAULT);
        }
        self.find(|app| app.name == name).ok_or_else(|| UnknownApp::among(name, self.0.iter().map(|app| app.name.as_str())))
    }

    /// The one that a system user is bound to.
    pub(crate) fn by_uid(&self, uid: u32) -> Option<AppId> {
        self.find(|app| app.config.uids.contains(&uid))
    }

    /// By the key that clients name.
    pub fn by_key(&self, key: &str) -> Option<AppId> {
        self.find(|app| !key.is_empty() && app.config.key == key)
    }

    /// By the id that signed HTTP requests name.
    pub fn by_id(&self, id: &str) -> Option<AppId> {
        self.find(|app| !id.is_empty() && app.config.id == id)
    }

    fn find(&self, is_it: impl Fn(&App) -> bool) -> Option<AppId> {
        self.0.iter().position(is_it).and_then(|at| u16::try_from(at).ok()).map(AppId)
    }

    /// A channel's name as the hub and its broker know it.
    pub(crate) fn scope<'a>(&self, app: AppId, channel: &'a str) -> Cow<'a, str> {
        match app {
            AppId::DEFAULT => Cow::Borrowed(channel),
            app => Cow::Owned(format!("{}{APP_SEPARATOR}{channel}", self.of(app).name)),
        }
    }

    /// The same for an app by name: an app costs an allocation a publication, the default one none.
    pub(crate) fn scope_named<'a>(&self, app: Option<&str>, channel: &'a str) -> Result<Cow<'a, str>, UnknownApp> {
        match app {
            None => Ok(Cow::Borrowed(channel)),
            Some(name) => Ok(self.scope(self.by_name(name)?, channel)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Channel, channel_hash};

    fn app(name: &str, id: &str, key: &str) -> AppConfig {
        AppConfig { name: name.into(), id: id.into(), key: key.into(), ..AppConfig::default() }
    }

    #[test]
    fn apps_are_found_by_name_key_and_id_and_the_default_one_is_always_there() {
        let apps = Apps::new(&[app("", "7", "k7"), app("default", "1", "k1")]);
        assert_eq!((apps.by_name(""), apps.by_name("default")), (Ok(AppId::DEFAULT), Ok(AppId::DEFAULT)));
        assert_eq!((apps.by_key("k1"), apps.by_id("1")), (Some(AppId::DEFAULT), Some(AppId::DEFAULT)));
        let seven = apps.by_name("7").expect("an app without a name has its id for one");
        assert_eq!((apps.by_key("k7"), apps.by_id("7")), (Some(seven), Some(seven)));
        assert_eq!((apps.by_key(""), apps.by_id(""), apps.by_key("k"), Apps::new(&[]).by_key("")), (None, None, None, None));
        assert_eq!(apps.by_name("defualt").expect_err("unknown").to_string(), "there is no app `defualt`, did you mean `default`?");
    }

    #[test]
    fn a_scoped_channel_shows_its_own_name() {
        let apps = Apps::new(&[app("shop", "1", "k")]);
        let shop = apps.by_name("shop").expect("exists");
        for (id, name, expected) in [(AppId::DEFAULT, "orders", ""), (shop, "orders", "shop"), (shop, "#user:7", "shop")] {
            let scoped = apps.scope(id, name);
            let channel = Channel::new(&scoped, channel_hash(&scoped));
            assert_eq!((channel.name(), channel.app(), channel.scoped()), (name, expected, &*scoped));
            assert_eq!(channel.is_internal(), name.starts_with('#'));
        }
        assert_ne!(apps.scope(shop, "orders"), apps.scope(AppId::DEFAULT, "orders"));
    }
}

//! The PHP extension `realtime`: `broadcast()` as a function call into a hub that runs in this
//! process, or as one frame to the hub that another process of this host holds.
//!
//! | module | what it is |
//! | --- | --- |
//! | `zend` | the few Zend calls that `ext-php-rs` does not bind, and the boundary that no panic passes |
//! | `signature` | function and method tables with full reflection (unions, defaults, parameter names) |
//! | `failure` | the exception classes and the one error type of the crate |
//! | `settings` | INI, environment snapshot, and the layers of `Config` |
//! | `engine` | hosts that end the engine and start it again; the hub that starts with a server |
//! | `host` | the hub of this process: owner, start, stop, fork |
//! | `bus` | the connection to the hub of another process |
//! | `remote` | the connection to the Redis that hubs on other hosts share |
//! | `spawn` | the hub that a php-fpm worker starts as a process of its own |
//! | `logs` | where a hub in this process writes its log |
//! | `message` | PHP values to channels, payloads and options |
//! | `publishing` | one publication's way: to a hub, to a fake, or nowhere |
//! | `batch` | publications that are sent together |
//! | `functions` | what PHP calls |
//! | `laravel` | `broadcast($event)` as Laravel's helper of that name does it |
//! | `server` | handlers for connections: the classes `Server` and `Connection` |
//! | `readiness` | what `Server::stream()` shows |
//! | `signals` | TERM and INT while handlers run |
//! | `events`, `presence` | what happened, for workers; who is on a channel |
//! | `objects`, `testing` | the classes `Hub`, `Receipt` and `Testing\Fake` |
//! | `serve` | block until a signal asks to stop |
//! | `info` | the section of `phpinfo()` |
//!
//! Phases: MINIT registers names, snapshots the environment, and under php-fpm has workers note who
//! forks them; no thread, socket or runtime exists before a script calls `Realtime\start()` or
//! `Realtime\serve()`, and no connection to another process' hub before the first call that needs it.
//! The one exception is FrankenPHP, whose process is the server: there the hub starts with it (see
//! `engine`).

#![expect(unsafe_code, reason = "the Zend API is C")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ext_php_rs::zend::ModuleEntry;

mod batch;
mod bus;
mod engine;
mod events;
mod failure;
mod functions;
mod globals;
mod host;
mod info;
mod json;
mod laravel;
mod logs;
mod message;
mod objects;
mod presence;
mod publishing;
mod readiness;
mod remote;
mod serve;
mod server;
mod settings;
mod signals;
mod signature;
mod spawn;
mod testing;
mod zend;

const SUCCESS: i32 = 0;
const FAILURE: i32 = -1;

mod module {
    #![allow(unreachable_pub, reason = "in debug builds the macro adds a public function")]

    use ext_php_rs::prelude::*;

    /// Describes the module to PHP.
    #[php_module]
    pub fn get_module(module: ModuleBuilder) -> ModuleBuilder {
        // FrankenPHP's workers stay in one request of PHP's: RSHUTDOWN does not come between theirs.
        let module = match crate::engine::is_frankenphp() {
            true => module.sapi_activate_function(|_| crate::globals::end_request()),
            false => module,
        };
        module
            .name("realtime")
            .globals(&crate::globals::GLOBALS)
            .startup_function(crate::module_startup)
            .shutdown_function(crate::module_shutdown)
            .request_shutdown_function(crate::request_shutdown)
            .info_function(crate::module_info)
    }
}

/// MINIT. Runs as root before php-fpm reads its pools, for `php -v` and for `php-fpm -t`: names,
/// snapshots and what a fork is to do. In FrankenPHP it runs again in the same process.
extern "C" fn module_startup(_type: i32, module_number: i32) -> i32 {
    phase(|| {
        settings::register(module_number);
        settings::snapshot_environment();
        spawn::remember_library();
        if zend::sapi_name() == "fpm-fcgi" {
            // Workers have to know their master: who asks later may be an orphan already.
            host::register_fork_handler();
        }
        failure::register_classes()?;
        objects::register_classes()?;
        testing::register_class()?;
        presence::register_class()?;
        events::register_class()?;
        server::register_classes()?;
        functions::register(settings::global_functions())?;
        engine::started();
        Ok(())
    })
}

/// MSHUTDOWN. Only the process that started the hub has one to stop. A php-fpm child that gets
/// SIGTERM never comes here, so nothing depends on it.
extern "C" fn module_shutdown(_type: i32, module_number: i32) -> i32 {
    phase(|| {
        engine::ended();
        functions::unregister(settings::global_functions());
        settings::unregister(module_number);
        Ok(())
    })
}

/// RSHUTDOWN. What a script lowered (`off()`, `fake()`) ends with its request.
extern "C" fn request_shutdown(_type: i32, _module_number: i32) -> i32 {
    phase(|| {
        globals::end_request();
        Ok(())
    })
}

extern "C" fn module_info(module: *mut ModuleEntry) {
    // Nothing to report a panic to here; the page goes on without the section.
    let _ = catch_unwind(AssertUnwindSafe(|| info::print(module)));
}

fn phase(run: impl FnOnce() -> Result<(), &'static str>) -> i32 {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => SUCCESS,
        Ok(Err(reason)) => {
            zend::log(&format!("realtime: {reason}"));
            FAILURE
        }
        Err(_) => FAILURE,
    }
}

//! Locks and counters by which threads meet on the way of a publication: parking_lot's and the standard library's.
//!
//! Where these sources are compiled with `--cfg interleavings` (the crate `realtime-interleavings`, for tests alone) a
//! scheduler stands behind them that decides who runs next.

#[cfg(interleavings)]
pub(crate) use explored::{Condvar, Mutex};
#[cfg(not(interleavings))]
pub(crate) use parking_lot::{Condvar, Mutex};
#[cfg(interleavings)]
pub(crate) use shuttle::sync::atomic;
#[cfg(not(interleavings))]
pub(crate) use std::sync::atomic;

#[cfg(interleavings)]
mod explored {
    use std::ops::{Deref, DerefMut};
    use std::sync::PoisonError;
    use std::time::Duration;

    /// The scheduler's mutex with parking_lot's manners.
    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// `None` only while it waits.
    pub(crate) struct MutexGuard<'m, T>(Option<shuttle::sync::MutexGuard<'m, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("held")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("held")
        }
    }

    /// The scheduler's condition variable. Time stands still: a wait ends when its condition does.
    #[derive(Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    pub(crate) struct Waited;

    impl Waited {
        pub(crate) fn timed_out(&self) -> bool {
            false
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Condvar::default()
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait_while_for<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            mut condition: impl FnMut(&mut T) -> bool,
            _: Duration,
        ) -> Waited {
            while condition(guard) {
                let held = guard.0.take().expect("held");
                guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
            }
            Waited
        }
    }
}

//! Where the storage does its blocking work: on threads, or, under a simulated clock, in line.
//!
//! A simulation must not depend on which thread is faster, and its clock stands still while work is done in line.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use openraft::AnyError;

/// Waits as long as the disk takes for one sync.
pub type Pace = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Where blocking work is done.
#[derive(Clone)]
pub enum Blocking {
    /// On threads beside the runtime.
    Threads,
    /// On the task that asks; a sync takes as long as the simulated disk says.
    InLine(Pace),
}

impl Blocking {
    /// Does `work`; an error says that it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AnyError> {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work)
                .await
                .map_err(|panic| AnyError::new(&panic)),
            Self::InLine(_) => Ok(work()),
        }
    }
}

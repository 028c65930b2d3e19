//! The worker's ear on the control socket: segments, the stop, and the agent's death.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Signal, getpgrp, getpid};

use crate::arena::MAX_SEGMENTS;
use crate::control::{AgentMessage, ControlError, ControlSocket, Datagram};
use crate::doorbell::Doorbell;
use crate::segment::{Segment, SegmentError};

/// How long a descriptor may be ahead of the segment it names. The segment was sent first, so it is a matter of when
/// the watcher runs; a machine that is busy for longer than this loses the worker.
const SEGMENT_WAIT: Duration = Duration::from_secs(10);

/// What becomes of a worker whose agent is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAgentLoss {
    /// SIGKILL, to its process group where it leads one, so that children of user code go with it. Nothing less ends a
    /// process whose main thread is inside native code.
    Kill,
    /// The channel says so from then on; for processes that are more than a worker.
    Tell,
}

/// What the watcher and the main thread share.
pub(super) struct Shared {
    pub(super) control: ControlSocket,
    /// Rung by the agent, and by the watcher.
    pub(super) bell: Doorbell,
    segments: Mutex<Vec<Arc<Segment>>>,
    segment_added: Condvar,
    stopping: AtomicBool,
    lost: AtomicBool,
    closing: AtomicBool,
}

impl Shared {
    pub(super) fn new(control: ControlSocket, bell: Doorbell) -> Self {
        Self {
            control,
            bell,
            segments: Mutex::default(),
            segment_added: Condvar::new(),
            stopping: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    /// Whether no more batches will come.
    pub(super) fn is_stopping(&self) -> bool {
        // SYNC stop: pairs with the Release in `stop`
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether the agent is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Segment `index`, waited for where the watcher has not mapped it yet.
    pub(super) fn segment(&self, index: u32) -> Option<Arc<Segment>> {
        let index = index as usize;
        let mut segments = self.segments.lock();
        if index >= segments.len() && index < MAX_SEGMENTS {
            let until = Instant::now() + SEGMENT_WAIT;
            let missing = |segments: &mut Vec<_>| index >= segments.len() && !self.is_lost();
            self.segment_added.wait_while_until(&mut segments, missing, until);
        }
        segments.get(index).cloned()
    }

    /// Ends the watcher without ending the process.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.control.shut_down();
    }

    fn stop(&self) {
        // SYNC stop: pairs with the Acquire in `is_stopping`
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.stop();
        let _segments = self.segments.lock(); // so that no waiter is between its check and its sleep
        self.segment_added.notify_all();
    }

    fn handle(&self, datagram: Datagram) -> Result<(), WatchError> {
        match datagram.message()? {
            AgentMessage::Stop => self.stop(),
            AgentMessage::Segment { index, bytes } => self.add_segment(index, bytes, datagram.fds)?,
            AgentMessage::Hello { .. } => return Err(WatchError::Order),
        }
        Ok(())
    }

    fn add_segment(&self, index: u32, bytes: u64, mut fds: Vec<OwnedFd>) -> Result<(), WatchError> {
        let (Some(fd), Ok(bytes)) = (fds.pop(), usize::try_from(bytes)) else {
            return Err(WatchError::Order);
        };
        let segment = Segment::map(fd, bytes)?;
        let mut segments = self.segments.lock();
        if index as usize != segments.len() || segments.len() >= MAX_SEGMENTS {
            return Err(WatchError::Order);
        }
        segments.push(Arc::new(segment));
        self.segment_added.notify_all();
        Ok(())
    }
}

/// Why the watcher gave up.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("agent sent a message out of order")]
    Order,
}

/// Starts the watcher.
pub(super) fn spawn(shared: Arc<Shared>, on_loss: OnAgentLoss) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("mosec-watcher".to_owned())
        .spawn(move || {
            let error = watch(&shared);
            if shared.closing.load(Ordering::Acquire) {
                return;
            }
            if !matches!(error, WatchError::Control(ControlError::Closed)) {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "the control socket failed");
            }
            match on_loss {
                OnAgentLoss::Kill => kill_self(),
                OnAgentLoss::Tell => shared.lose(),
            }
        })
}

fn watch(shared: &Shared) -> WatchError {
    loop {
        let handled = shared
            .control
            .recv()
            .map_err(WatchError::from)
            .and_then(|datagram| shared.handle(datagram));
        if let Err(error) = handled {
            return error;
        }
    }
}

fn kill_self() {
    // The agent makes each worker the leader of a group. One that was started otherwise must not take its parent along.
    if getpgrp() == getpid() {
        let _ = rustix::process::kill_current_process_group(Signal::KILL);
    }
    let _ = rustix::process::kill_process(getpid(), Signal::KILL);
}

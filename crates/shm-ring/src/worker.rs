//! Hot path. The worker's half of the channel.
//!
//! One thread takes batches and answers them. A second one, the watcher, sits on the control socket: it maps segments as
//! the arena grows, and ends the process when the agent is gone, so no worker outlives its agent, however that died.

mod loan;
mod over;
mod reply;
mod running;
mod table;
mod watcher;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mosec_types::Generation;
use mosec_types::worker::trim_error;
use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::PROTOCOL_VERSION;
use crate::agent::RING_SLOTS;
use crate::control::{AgentMessage, ControlError, ControlSocket, HelloVersion, WorkerMessage};
use crate::descriptor::{Body, Descriptor, ItemEntry, Region};
use crate::doorbell::{Doorbell, Rung};
use crate::layout::{SharedRing, channel_bytes};
use crate::ring::{Bell, Consumer, CorruptRing, Producer};
use crate::segment::{OutOfBounds, Segment, SegmentError};

use loan::Loans;
pub use loan::View;
pub use over::Over;
pub use reply::{Answer, Payload, Progress, Reply, RespondError};
use running::Running;
use table::Table;
pub use table::Watch;
pub use watcher::OnAgentLoss;
use watcher::Shared;

/// Longest specification: far beyond any real one.
const MAX_SPEC_BYTES: u64 = 64 << 20;

/// Why a process could not become a worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    #[error("standard input is no control socket: workers are started by a node agent")]
    NotAWorker,
    #[error(
        "agent speaks version {agent} of the worker protocol, this worker {worker}: install the same release of both"
    )]
    Version { agent: u32, worker: u32 },
    #[error("agent's hello could not be read")]
    Control(#[from] ControlError),
    #[error("agent's hello is incomplete: {0}")]
    Hello(&'static str),
    #[error("channel could not be mapped")]
    Segment(#[from] SegmentError),
    #[error("channel is smaller than its rings")]
    Bounds(#[from] OutOfBounds),
    #[error("worker could not be set up")]
    Os(#[from] io::Error),
}

/// Why the channel is of no more use to the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    #[error(transparent)]
    Corrupt(#[from] CorruptRing),
    #[error("agent sent a descriptor that was not understood")]
    NotUnderstood,
    #[error("agent sent a descriptor of generation {found}, this channel's is {own}")]
    Stale { found: u32, own: u32 },
    #[error("agent named segment {0} and did not send it")]
    UnknownSegment(u32),
    #[error("agent sent a batch outside of its memory")]
    Bounds(#[from] OutOfBounds),
    #[error("agent is gone")]
    AgentLost,
    #[error("waiting failed")]
    Os(#[source] io::Error),
}

/// A batch to run.
#[derive(Debug)]
pub struct Batch {
    pub id: u64,
    pub items: Vec<BatchItem>,
    table: Table,
}

impl Batch {
    /// Whether nobody waits for an item's answer any more, as far as the agent has said. Only until it is answered.
    pub fn is_cancelled(&self, item: usize) -> bool {
        item < self.items.len() && self.table.is_cancelled(item)
    }
}

/// One item of a batch. Its bytes stay in place until the batch has been answered.
#[derive(Debug)]
pub struct BatchItem {
    pub flags: u32,
    /// When it came; the agent may move it, see [`Watch::deadline_micros`].
    pub deadline_micros: u64,
    pub request: u64,
    segment: Arc<Segment>,
    offset: usize,
    len: usize,
}

impl BatchItem {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the payload into `target`, which has its length.
    pub fn copy_to(&self, target: &mut [u8]) -> Result<(), OutOfBounds> {
        if target.len() != self.len {
            return Err(OutOfBounds {
                offset: 0,
                len: target.len(),
                bytes: self.len,
            });
        }
        // SAFETY: this half only writes reply extents, which are never inputs of the same batch.
        unsafe { self.segment.read(self.offset, target) }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes)
            .expect("an item was checked to lie in its segment");
        bytes
    }
}

/// What [`WorkerChannel::next`] found.
#[derive(Debug)]
pub enum Next {
    Batch(Batch),
    Timeout,
    /// A signal handler has run.
    Interrupted,
    /// The agent wants no more of this worker, and everything it has sent has been taken.
    Stop,
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// There may be something.
    Ready,
    Timeout,
    Interrupted,
}

/// The worker's half of a channel.
pub struct WorkerChannel {
    shared: Arc<Shared>,
    response_bell: Doorbell,
    generation: u32,
    state: Mutex<State>,
    watcher: Option<JoinHandle<()>>,
    /// Whose channel it is.
    process: Pid,
}

struct State {
    requests: Consumer<SharedRing>,
    responses: Producer<SharedRing>,
    /// Batches taken from the ring while waiting for a grant.
    queue: VecDeque<Batch>,
    running: HashMap<u64, Running>,
    loans: Arc<Loans>,
}

impl WorkerChannel {
    /// Becomes a worker: takes the control socket that the agent has put on standard input, which reads nothing from
    /// then on, so that no child of this process inherits it. Also returns the specification.
    pub fn attach_stdin() -> Result<(Self, String), AttachError> {
        let fd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).map_err(io::Error::from)?;
        let socket = ControlSocket::from_fd(fd).ok_or(AttachError::NotAWorker)?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        Self::attach_socket(socket, OnAgentLoss::Kill)
    }

    /// As [`WorkerChannel::attach_stdin`], with a control socket at hand.
    pub fn attach(fd: OwnedFd, on_loss: OnAgentLoss) -> Result<(Self, String), AttachError> {
        Self::attach_socket(
            ControlSocket::from_fd(fd).ok_or(AttachError::NotAWorker)?,
            on_loss,
        )
    }

    fn attach_socket(control: ControlSocket, on_loss: OnAgentLoss) -> Result<(Self, String), AttachError> {
        let datagram = control.recv()?;
        let HelloVersion { version } = datagram.message()?;
        if version != PROTOCOL_VERSION {
            let error = AttachError::Version {
                agent: version,
                worker: PROTOCOL_VERSION,
            };
            let _ = control.send(
                &WorkerMessage::Failed {
                    traceback: error.to_string(),
                },
                &[],
            );
            return Err(error);
        }
        let AgentMessage::Hello {
            generation,
            slots,
            spec_bytes,
            ..
        } = datagram.message()?
        else {
            return Err(AttachError::Hello("the first message is another"));
        };
        if !RING_SLOTS.contains(&slots) || !slots.is_power_of_two() {
            return Err(AttachError::Hello("the ring's size is impossible"));
        }
        let [rings, request_bell, response_bell, spec] = <[OwnedFd; 4]>::try_from(datagram.fds)
            .map_err(|_| AttachError::Hello("file descriptors are missing"))?;
        let spec = read_spec(spec, spec_bytes)?;
        let segment = Arc::new(Segment::map(rings, channel_bytes(slots))?);
        let (requests, responses) = SharedRing::pair(&segment, slots)?;
        let state = State {
            requests: Consumer::new(requests, slots),
            responses: Producer::new(responses, slots),
            queue: VecDeque::new(),
            running: HashMap::new(),
            loans: Arc::default(),
        };
        let shared = Arc::new(Shared::new(control, Doorbell::from_fd(request_bell)));
        let watcher = Some(watcher::spawn(Arc::clone(&shared), on_loss)?);
        let response_bell = Doorbell::from_fd(response_bell);
        Ok((
            Self {
                shared,
                response_bell,
                generation,
                state: Mutex::new(state),
                watcher,
                process: getpid(),
            },
            spec,
        ))
    }

    pub fn generation(&self) -> Generation {
        Generation(self.generation)
    }

    /// Says that the worker takes batches now.
    pub fn ready(&self) -> Result<(), ControlError> {
        self.shared.control.send(&WorkerMessage::Ready, &[])
    }

    /// Says why the worker cannot start. Of a long text only the end is sent.
    pub fn failed(&self, traceback: &str) -> Result<(), ControlError> {
        let traceback = trim_error(traceback);
        match self.shared.control.send(
            &WorkerMessage::Failed {
                traceback: traceback.clone(),
            },
            &[],
        ) {
            // Control characters take six bytes each in JSON.
            Err(ControlError::TooLong(_)) => {
                let traceback = traceback
                    .chars()
                    .filter(|c| !c.is_control() || *c == '\n')
                    .collect();
                self.shared
                    .control
                    .send(&WorkerMessage::Failed { traceback }, &[])
            }
            sent => sent,
        }
    }

    /// The next batch, if one has come.
    pub fn try_next(&self) -> Result<Option<Batch>, WorkerError> {
        let mut state = self.state.lock();
        self.release(&mut state)?;
        if let Some(batch) = state.queue.pop_front() {
            return Ok(Some(batch));
        }
        while let Some(descriptor) = self.pop(&mut state)? {
            if let Some(batch) = self.take(&mut state, &descriptor)? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// Waits for the next batch, for `timeout` at most where one is given.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next, WorkerError> {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            // First the flag: what the agent sent before its stop is in the ring by then.
            let stopping = self.shared.is_stopping();
            if let Some(batch) = self.try_next()? {
                return Ok(Next::Batch(batch));
            }
            if stopping {
                return Ok(Next::Stop);
            }
            match self.wait(until.map(|until| until.saturating_duration_since(Instant::now())))? {
                Wake::Ready => {}
                Wake::Timeout => return Ok(Next::Timeout),
                Wake::Interrupted => return Ok(Next::Interrupted),
            }
        }
    }

    /// Follows one item of a batch that has been taken; `None` where there is none, or the batch has been answered.
    pub fn watch(&self, batch: u64, item: u32) -> Option<Watch> {
        self.state.lock().running.get_mut(&batch)?.watch(item as usize)
    }

    /// A payload of a batch that has been taken, in place: its memory is not given to others while the view lives, though
    /// the batch may have been answered. `None` where the batch has been answered, or where so much of what has been
    /// answered is in use that the payload had better be copied.
    pub fn view(&self, batch: &Batch, item: usize) -> Option<View> {
        let state = &mut *self.state.lock();
        let running = state.running.get_mut(&batch.id)?;
        let item = batch.items.get(item)?;
        let bytes = batch.items.iter().map(BatchItem::len).sum();
        let loan = running.lend_out(|| state.loans.begin(batch.id, bytes, &self.shared))?;
        Some(View::new(loan, &item.segment, item.offset, item.len))
    }

    /// Tells the agent of payloads that are not in use any more, as far as the ring has room.
    fn release(&self, state: &mut State) -> Result<(), WorkerError> {
        while let Some(batch) = state.loans.ended() {
            if state.responses.free(1)? == 0 {
                state.loans.put_back(batch);
                break;
            }
            self.push(state, batch, Body::Release)?;
        }
        Ok(())
    }

    /// Whether an event or an answer to this item would go nowhere: the agent has said so, or it has been answered.
    pub fn is_over(&self, batch: u64, item: u32) -> bool {
        let state = self.state.lock();
        let running = state.running.get(&batch);
        running.is_none_or(|running| running.is_over(item as usize))
    }

    /// Sleeps until the agent has sent something, or has made room that [`WorkerChannel::step`] waits for.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Wake, WorkerError> {
        if !self.state.lock().requests.sleep_for_work() {
            return Ok(Wake::Ready);
        }
        let rung = self.shared.bell.wait(timeout);
        self.state.lock().requests.awake();
        match rung {
            Ok(Rung::Bell) => Ok(Wake::Ready),
            Ok(Rung::Timeout) => Ok(Wake::Timeout),
            Ok(Rung::Signal) => Ok(Wake::Interrupted),
            Err(errno) => Err(WorkerError::Os(errno.into())),
        }
    }

    fn pop(&self, state: &mut State) -> Result<Option<Descriptor>, WorkerError> {
        let Some((words, bell)) = state.requests.pop()? else {
            return Ok(None);
        };
        self.ring(bell);
        let descriptor = Descriptor::decode(&words).ok_or(WorkerError::NotUnderstood)?;
        if descriptor.generation != self.generation {
            return Err(WorkerError::Stale {
                found: descriptor.generation,
                own: self.generation,
            });
        }
        Ok(Some(descriptor))
    }

    /// Takes note of one descriptor; a batch comes back.
    fn take(&self, state: &mut State, descriptor: &Descriptor) -> Result<Option<Batch>, WorkerError> {
        let id = descriptor.batch;
        match descriptor.body {
            Body::Batch { items, table, reply } => {
                let batch = self.read_batch(id, items, table)?;
                let running = Running::new(
                    batch.items.len(),
                    batch.table.clone(),
                    self.segment(reply)?,
                    reply,
                );
                state.running.insert(id, running);
                return Ok(Some(batch));
            }
            Body::Grant { reply } => {
                let segment = self.segment(reply)?;
                let running = state.running.get_mut(&id).ok_or(WorkerError::NotUnderstood)?;
                running.granted(segment, reply);
            }
            Body::Refuse { bytes } => {
                let running = state.running.get_mut(&id).ok_or(WorkerError::NotUnderstood)?;
                running.refused(bytes);
            }
            Body::Answers { .. } | Body::Alloc { .. } | Body::Fail { .. } | Body::Hold | Body::Release => {
                return Err(WorkerError::NotUnderstood);
            }
        }
        Ok(None)
    }

    fn read_batch(&self, id: u64, items: u32, region: Region) -> Result<Batch, WorkerError> {
        let segment = self.segment(region)?;
        let table = Table::new(Arc::clone(&segment), region.offset as usize, items as usize)?;
        let items = (0..items as usize).map(|item| {
            let ItemEntry {
                payload,
                flags,
                deadline_micros,
                request,
                headers: _, // read by who asks, see `Watch::headers`
            } = table.row(item)?;
            // Most payloads lie beside their table.
            let segment = if payload.segment == region.segment {
                Arc::clone(&segment)
            } else {
                self.segment(payload)?
            };
            let (offset, len) = (payload.offset as usize, payload.len as usize);
            segment.at(offset, len)?;
            Ok(BatchItem {
                flags,
                deadline_micros,
                request,
                segment,
                offset,
                len,
            })
        });
        let items = items.collect::<Result<_, WorkerError>>()?;
        Ok(Batch { id, items, table })
    }

    /// The segment a region lies in, checked to hold it.
    fn segment(&self, region: Region) -> Result<Arc<Segment>, WorkerError> {
        let segment = self
            .shared
            .segment(region.segment)
            .ok_or(WorkerError::UnknownSegment(region.segment))?;
        segment.at(region.offset as usize, region.len as usize)?;
        Ok(segment)
    }

    fn ring(&self, bell: Bell) {
        if bell == Bell::Ring {
            self.response_bell.ring();
        }
    }
}

impl Drop for WorkerChannel {
    fn drop(&mut self) {
        if getpid() != self.process {
            // A child that user code has forked: the channel is its parent's, and so is the watcher, which it never had.
            return std::mem::forget(self.watcher.take());
        }
        self.shared.close();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl std::fmt::Debug for WorkerChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerChannel")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl From<Errno> for WorkerError {
    fn from(errno: Errno) -> Self {
        Self::Os(errno.into())
    }
}

fn read_spec(fd: OwnedFd, bytes: u64) -> Result<String, AttachError> {
    if bytes > MAX_SPEC_BYTES {
        return Err(AttachError::Hello("the specification is too long"));
    }
    let mut spec = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    File::from(fd).read_exact_at(&mut spec, 0)?;
    String::from_utf8(spec).map_err(|_| AttachError::Hello("the specification is not UTF-8"))
}

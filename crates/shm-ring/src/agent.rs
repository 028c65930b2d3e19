//! Hot path. The agent's half of one worker's channel.
//!
//! Life: [`AgentChannel::create`], give the file descriptor to the child as its standard input, [`AgentChannel::hello`],
//! wait for [`WorkerEvent::Ready`], then requests and responses. To receive: poll, and while [`AgentChannel::arm`] says
//! so, sleep until the bell can be read. Once the process is known to be dead, [`AgentChannel::reclaim`] returns what it
//! held. Several tasks may use one channel; no method waits.

mod inflight;
mod request;

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use mosec_types::Generation;
use parking_lot::Mutex;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use crate::arena::Arena;
use crate::control::{AgentMessage, ControlError, ControlSocket, WorkerMessage};
use crate::descriptor::{Body, Descriptor};
use crate::doorbell::Doorbell;
use crate::layout::{SharedRing, channel_bytes};
use crate::ring::{Bell, Consumer, CorruptRing, Producer};
use crate::segment::{Segment, SegmentError};
use crate::{ArenaFull, PROTOCOL_VERSION};

use inflight::{Held, InFlight};
pub use inflight::{Misbehaviour, Response, ResponseItem};
pub use request::{ItemPayload, Prepared, Request, RequestItem};

/// Sizes of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelConfig {
    /// Slots of each ring; rounded up to a power of two. Far more than the batches outstanding at one replica, so that
    /// a worker that streams may run ahead.
    pub ring_slots: u32,
}

/// Bounds of [`ChannelConfig::ring_slots`]: a batch and a grant must fit, and a segment must stay small.
pub(crate) const RING_SLOTS: std::ops::RangeInclusive<u32> = 4..=4096;

impl Default for ChannelConfig {
    fn default() -> Self {
        Self { ring_slots: 64 }
    }
}

/// Why a channel could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    #[error("the channel's rings could not be made")]
    Segment(#[from] SegmentError),
    #[error("the channel's descriptors could not be made")]
    Descriptors(#[source] io::Error),
}

/// Why a request could not be handed over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    #[error("the request ring is full")]
    RingFull,
    #[error(transparent)]
    ArenaFull(#[from] ArenaFull),
    #[error("a batch needs at least one item")]
    Empty,
    #[error("batch {0} is in flight already")]
    Duplicate(u64),
    #[error("the channel's memory has been reclaimed")]
    Reclaimed,
    #[error("the worker could not be told of a segment")]
    Control(#[from] ControlError),
    #[error(transparent)]
    Corrupt(#[from] CorruptRing),
}

/// Why the channel is of no more use: end the worker.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    #[error(transparent)]
    Corrupt(#[from] CorruptRing),
    #[error("the worker broke the protocol")]
    Misbehaved(#[from] Misbehaviour),
    #[error("the worker could not be told of a segment")]
    Control(#[from] ControlError),
}

/// What a worker says besides its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// It has warmed up and takes batches.
    Ready,
    /// It could not start and is about to leave.
    Failed { traceback: String },
    /// Its process, and every child that kept its socket, is gone.
    Eof,
}

/// The agent's half of a channel.
pub struct AgentChannel {
    arena: Arena,
    generation: u32,
    ring_slots: u32,
    rings: Arc<Segment>,
    request_bell: Doorbell,
    response_bell: Doorbell,
    control: ControlSocket,
    state: Mutex<State>,
}

struct State {
    requests: Producer<SharedRing>,
    responses: Consumer<SharedRing>,
    batches: HashMap<u64, InFlight>,
    /// Batches that are done, whose payloads the worker still uses. It bounds them; see `WorkerChannel::view`.
    held: HashMap<u64, Held>,
    /// Segments of the arena the worker knows of; none before the hello.
    announced: Option<usize>,
    armed: bool,
    reclaimed: bool,
}

impl AgentChannel {
    /// Makes a channel, and the worker's end of its control socket.
    ///
    /// Pass the end to `Command::stdin`: the child gets it whatever else is forked meanwhile. Drop the `Command` after
    /// the spawn, as it keeps a copy that would hide the worker's death.
    pub fn create(
        arena: &Arena,
        generation: Generation,
        config: &ChannelConfig,
    ) -> Result<(Self, OwnedFd), CreateError> {
        let descriptors = |errno: Errno| CreateError::Descriptors(errno.into());
        let ring_slots = config
            .ring_slots
            .clamp(*RING_SLOTS.start(), *RING_SLOTS.end())
            .next_power_of_two();
        let rings = Arc::new(Segment::create(&arena.config().shm, channel_bytes(ring_slots))?);
        let (requests, responses) =
            SharedRing::pair(&rings, ring_slots).expect("the segment was made for both rings");
        let (control, worker_end) = ControlSocket::pair().map_err(descriptors)?;
        let state = State {
            requests: Producer::new(requests, ring_slots),
            responses: Consumer::new(responses, ring_slots),
            batches: HashMap::new(),
            held: HashMap::new(),
            announced: None,
            armed: false,
            reclaimed: false,
        };
        let channel = Self {
            arena: arena.clone(),
            generation: generation.0,
            ring_slots,
            rings,
            request_bell: Doorbell::new().map_err(descriptors)?,
            response_bell: Doorbell::new().map_err(descriptors)?,
            control,
            state: Mutex::new(state),
        };
        Ok((channel, worker_end))
    }

    /// Tells the worker where its rings are and what it is to run. Once, before the first request.
    pub fn hello(&self, spec_json: &str) -> Result<(), ControlError> {
        let spec = spec_file(spec_json).map_err(ControlError::Socket)?;
        let hello = AgentMessage::Hello {
            version: PROTOCOL_VERSION,
            generation: self.generation,
            slots: self.ring_slots,
            spec_bytes: spec_json.len() as u64,
        };
        let spec = std::os::fd::AsFd::as_fd(&spec);
        let mut state = self.state.lock();
        self.control.send(
            &hello,
            &[
                self.rings.fd(),
                self.request_bell.fd(),
                self.response_bell.fd(),
                spec,
            ],
        )?;
        state.announced = Some(0);
        // What there is already is mapped during the warm-up, and not by the first request.
        let segments = self.arena.stats().segments;
        self.announce(&mut state, segments)
    }

    /// Hands a batch over at once: [`AgentChannel::prepare`] and [`AgentChannel::submit`].
    pub fn request(&self, request: &Request<'_>) -> Result<(), RequestError> {
        self.submit(request.batch, self.prepare(request.items, request.reply_hint)?)
    }

    /// Writes a batch into the arena: one copy of each payload that is not there yet. `reply_hint`: see [`Request`].
    ///
    /// As long as the copies take, and under no lock.
    pub fn prepare(&self, items: &[RequestItem<'_>], reply_hint: usize) -> Result<Prepared, RequestError> {
        if items.is_empty() {
            return Err(RequestError::Empty);
        }
        // Nothing is copied in vain for a full ring.
        self.state.lock().check_room()?;
        Ok(request::prepare(&self.arena, items, reply_hint)?)
    }

    /// Hands a prepared batch over, under a number that is not in flight.
    ///
    /// Everything it lends stays with the worker until the batch is done or the channel is reclaimed, and payloads that it
    /// goes on using until it says so.
    pub fn submit(&self, batch: u64, prepared: Prepared) -> Result<(), RequestError> {
        let mut state = self.state.lock();
        state.check_room()?;
        if state.batches.contains_key(&batch) {
            return Err(RequestError::Duplicate(batch));
        }
        self.announce(&mut state, prepared.highest_segment + 1)?;
        let pushed = state.requests.push(&self.descriptor(batch, prepared.body()))?;
        let bell = pushed.ok_or(RequestError::RingFull)?;
        state.batches.insert(batch, InFlight::new(prepared));
        drop(state);
        ring(&self.request_bell, bell);
        Ok(())
    }

    /// Tells the worker of items that nobody waits for any more, each by its batch and position.
    ///
    /// It is told by a word that it looks at when it pleases. Items of batches that are done are left alone.
    pub fn cancel(&self, items: impl IntoIterator<Item = (u64, u32)>) {
        let state = self.state.lock();
        for (batch, item) in items {
            if let Some(in_flight) = state.batches.get(&batch) {
                in_flight.cancel(item);
            }
        }
    }

    /// Tells the worker that an item has until `deadline_micros`, if its batch is not done.
    pub fn move_deadline(&self, batch: u64, item: u32, deadline_micros: u64) {
        if let Some(in_flight) = self.state.lock().batches.get(&batch) {
            in_flight.move_deadline(item, deadline_micros);
        }
    }

    /// Adds what the worker has answered since the last call to `out`, and grants the room it has asked for.
    ///
    /// After an error the worker must be ended; responses from before it are in `out`.
    pub fn poll_responses(&self, out: &mut Vec<Response>) -> Result<(), ChannelError> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.armed) {
            state.responses.awake();
            self.response_bell.clear();
        }
        // Bounded, as a worker may answer as fast as it is heard.
        for _ in 0..self.ring_slots {
            let Some((words, bell)) = state.responses.pop()? else {
                break;
            };
            ring(&self.request_bell, bell);
            let descriptor = Descriptor::decode(&words).ok_or(Misbehaviour::UnknownKind)?;
            if descriptor.generation != self.generation {
                return Err(Misbehaviour::Stale(descriptor.generation).into());
            }
            self.take_response(&mut state, &descriptor, out)?;
        }
        Ok(())
    }

    /// Says that the caller will sleep. True: until the bell can be read; false: there are responses to poll.
    pub fn arm(&self) -> bool {
        let mut state = self.state.lock();
        state.armed = state.responses.sleep_for_work();
        state.armed
    }

    /// Readable when an armed channel has responses.
    pub fn bell_fd(&self) -> BorrowedFd<'_> {
        self.response_bell.fd()
    }

    /// Readable when [`AgentChannel::control_recv`] has an event.
    pub fn control_fd(&self) -> BorrowedFd<'_> {
        self.control.fd()
    }

    /// The worker's next event, if there is one. After `Eof` there is nothing else.
    pub fn control_recv(&self) -> Result<Option<WorkerEvent>, ControlError> {
        match self.control.recv() {
            Ok(datagram) => Ok(Some(match datagram.message()? {
                WorkerMessage::Ready => WorkerEvent::Ready,
                WorkerMessage::Failed { traceback } => WorkerEvent::Failed { traceback },
            })),
            Err(ControlError::Stuck) => Ok(None),
            Err(ControlError::Closed) => Ok(Some(WorkerEvent::Eof)),
            Err(error) => Err(error),
        }
    }

    /// Asks the worker to finish what it has been given and leave.
    pub fn stop(&self) -> Result<(), ControlError> {
        self.control.send(&AgentMessage::Stop, &[])
    }

    /// Batches that are not done.
    pub fn in_flight(&self) -> usize {
        self.state.lock().batches.len()
    }

    /// Takes back all that the worker held; returns the batches that were not done, in order.
    ///
    /// Only once its process is known to be dead: a living one could still write into memory that others get next.
    pub fn reclaim(&self) -> Vec<u64> {
        let mut state = self.state.lock();
        state.reclaimed = true;
        state.held.clear();
        let mut lost: Vec<_> = state.batches.drain().map(|(batch, _)| batch).collect();
        lost.sort_unstable();
        lost
    }

    fn take_response(
        &self,
        state: &mut State,
        descriptor: &Descriptor,
        out: &mut Vec<Response>,
    ) -> Result<(), ChannelError> {
        let batch = descriptor.batch;
        if descriptor.body == Body::Release {
            return Ok(state.release(batch)?);
        }
        let in_flight = state
            .batches
            .get_mut(&batch)
            .ok_or(Misbehaviour::UnknownBatch(batch))?;
        let (items, worker_nanos) = match descriptor.body {
            Body::Answers { count, region, nanos } => (in_flight.answers(count, region)?, nanos),
            Body::Fail { item, code, nanos } => (vec![in_flight.failure(item, code)?], nanos),
            Body::Alloc { bytes } => return self.grant(state, batch, bytes),
            Body::Hold => {
                in_flight.hold(true);
                return Ok(());
            }
            Body::Batch { .. } | Body::Grant { .. } | Body::Refuse { .. } | Body::Release => {
                return Err(Misbehaviour::UnknownKind.into());
            }
        };
        let done = in_flight.is_done();
        if done {
            let held = state.batches.remove(&batch).and_then(InFlight::into_held);
            state.held.extend(held.map(|held| (batch, held)));
        }
        out.push(Response {
            batch,
            items,
            worker_nanos,
            done,
        });
        Ok(())
    }

    /// Lends a batch a larger reply extent, or tells the worker that there is no room.
    fn grant(&self, state: &mut State, batch: u64, bytes: u64) -> Result<(), ChannelError> {
        let body = match self.arena.alloc(usize::try_from(bytes).unwrap_or(usize::MAX)) {
            Err(_) => Body::Refuse { bytes },
            Ok(extent) => {
                self.announce(state, extent.segment() + 1)?;
                let reply = extent.region(extent.capacity());
                if let Some(in_flight) = state.batches.get_mut(&batch) {
                    in_flight.lend(extent);
                }
                Body::Grant { reply }
            }
        };
        // A worker waits for its grant, so one slot is kept for it; one that asks on does not follow the protocol.
        let pushed = state.requests.push(&self.descriptor(batch, body))?;
        ring(&self.request_bell, pushed.ok_or(Misbehaviour::AskedOn)?);
        Ok(())
    }

    /// Sees to it that the worker has been sent the first `segments` segments of the arena.
    fn announce(&self, state: &mut State, segments: usize) -> Result<(), ControlError> {
        let announced = state.announced.as_mut().ok_or(ControlError::NoHello)?;
        while *announced < segments {
            let Some(segment) = self.arena.segment(*announced) else {
                break;
            };
            let index = u32::try_from(*announced).expect("an arena has few segments");
            let message = AgentMessage::Segment {
                index,
                bytes: segment.len() as u64,
            };
            self.control.send(&message, &[segment.fd()])?;
            *announced += 1;
        }
        Ok(())
    }

    fn descriptor(&self, batch: u64, body: Body) -> crate::descriptor::Words {
        Descriptor {
            generation: self.generation,
            batch,
            body,
        }
        .encode()
    }
}

impl State {
    /// Takes back the payloads of a batch that the worker held, answered by now or not.
    fn release(&mut self, batch: u64) -> Result<(), Misbehaviour> {
        match self.batches.get_mut(&batch) {
            Some(in_flight) => in_flight.hold(false),
            None => drop(self.held.remove(&batch).ok_or(Misbehaviour::NotHeld(batch))?),
        }
        Ok(())
    }

    fn check_room(&mut self) -> Result<(), RequestError> {
        if self.reclaimed {
            return Err(RequestError::Reclaimed);
        }
        if self.announced.is_none() {
            return Err(ControlError::NoHello.into());
        }
        // Two: this batch, and a grant that a worker may be waiting for.
        if self.requests.free(2)? < 2 {
            return Err(RequestError::RingFull);
        }
        Ok(())
    }
}

impl Drop for AgentChannel {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.batches.is_empty() {
            // The worker may be alive and writing: better to lose the memory than to give it to another request.
            tracing::error!(
                batches = state.batches.len(),
                "a channel was dropped before it was reclaimed"
            );
            state.batches.drain().for_each(std::mem::forget);
        }
        state.held.drain().for_each(std::mem::forget); // as above; a reclaimed channel has none
    }
}

impl std::fmt::Debug for AgentChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentChannel")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn ring(bell: &Doorbell, needed: Bell) {
    if needed == Bell::Ring {
        bell.ring();
    }
}

/// A specification in a file of its own, as it may be longer than a datagram.
fn spec_file(spec_json: &str) -> io::Result<std::fs::File> {
    let file = std::fs::File::from(rustix::fs::memfd_create("mosec-spec", MemfdFlags::CLOEXEC)?);
    file.write_all_at(spec_json.as_bytes(), 0)?;
    Ok(file)
}

#[cfg(test)]
mod tests;

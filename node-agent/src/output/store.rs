//! The last lines of each worker, within bounds, and how readers move through them. Pure: time is passed in.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use mosec_types::{PipelineName, ReplicaId, StageKey};
use mosec_wire::control::proto;

use super::line::Line;

/// The place of a replica, with one process after the other.
pub(crate) type Slot = (StageKey, ReplicaId);

/// What a line takes beside its text, so that empty lines count too.
const LINE_OVERHEAD: usize = size_of::<Line>();

/// How much of the workers' output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputLimits {
    /// Longest line; what is beyond is cut off. 8 KiB: a log record in JSON with a traceback in it.
    pub line_bytes: usize,
    /// Most lines of one worker: twenty screens of tracebacks, and some hours of a calm service.
    pub worker_lines: usize,
    /// Most bytes of one worker, so that one that babbles does not push out the others.
    pub worker_bytes: usize,
    /// Most bytes in all: beyond it, workers that have ended go first, then the oldest lines of whoever has most.
    pub total_bytes: usize,
    /// Most workers that have ended and are kept: some failed deployments, with a replica on each of this host's GPUs.
    pub ended_workers: usize,
    /// How long a worker that has ended is kept: as long as people take to come and look.
    pub keep_ended: Duration,
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self {
            line_bytes: 8 * 1024,
            worker_lines: 2000,
            worker_bytes: 512 * 1024,
            total_bytes: 16 * 1024 * 1024,
            ended_workers: 128,
            keep_ended: Duration::from_secs(3600),
        }
    }
}

/// The output of all workers of this node.
#[derive(Debug)]
pub(crate) struct Store {
    limits: OutputLimits,
    workers: BTreeMap<Slot, Kept>,
    bytes: usize,
    /// The largest `next` of those that are forgotten. Others that come to their places are numbered from here, so that no
    /// reader takes new lines for those it has read.
    forgotten: u64,
}

#[derive(Debug)]
struct Kept {
    pipeline: PipelineName,
    stage: String,
    lines: VecDeque<Line>,
    bytes: usize,
    /// Number of the first line since the worker is known.
    begin: u64,
    /// Number of the line that comes next.
    next: u64,
    ended: Option<Instant>,
}

impl Kept {
    /// Number of the oldest line there is.
    fn first(&self) -> u64 {
        self.next - self.lines.len() as u64
    }

    fn drop_oldest(&mut self) -> usize {
        let freed = self
            .lines
            .pop_front()
            .map_or(0, |line| line.text.len() + LINE_OVERHEAD);
        self.bytes -= freed;
        freed
    }
}

impl Store {
    pub(crate) fn new(limits: OutputLimits) -> Self {
        Self {
            limits,
            workers: BTreeMap::new(),
            bytes: 0,
            forgotten: 0,
        }
    }

    pub(crate) fn limits(&self) -> &OutputLimits {
        &self.limits
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A worker is there, or there again; what it said before stays.
    pub(crate) fn open(&mut self, slot: Slot, pipeline: &PipelineName, stage: &str) {
        let begin = self.forgotten;
        let kept = self.workers.entry(slot).or_insert_with(|| Kept {
            pipeline: pipeline.clone(),
            stage: stage.to_owned(),
            lines: VecDeque::new(),
            bytes: 0,
            begin,
            next: begin,
            ended: None,
        });
        kept.ended = None;
    }

    /// Adds a line, within the bounds. Nothing is kept of a worker that is not there.
    pub(crate) fn push(&mut self, slot: Slot, line: Line) {
        let Some(kept) = self.workers.get_mut(&slot) else {
            return;
        };
        let bytes = line.text.len() + LINE_OVERHEAD;
        kept.lines.push_back(line);
        kept.next += 1;
        kept.bytes += bytes;
        self.bytes += bytes;
        while kept.lines.len() > self.limits.worker_lines || kept.bytes > self.limits.worker_bytes {
            self.bytes -= kept.drop_oldest();
        }
        while self.bytes > self.limits.total_bytes {
            self.make_room();
        }
    }

    /// A worker has ended for good. It is kept for a while.
    pub(crate) fn close(&mut self, slot: Slot, now: Instant) {
        if let Some(kept) = self.workers.get_mut(&slot) {
            kept.ended = Some(now);
        }
        let ended = self.workers.values().filter(|kept| kept.ended.is_some()).count();
        if ended > self.limits.ended_workers {
            self.forget_oldest();
        }
        self.expire(now);
    }

    /// Forgets the workers that ended long ago.
    pub(crate) fn expire(&mut self, now: Instant) {
        let limit = self.limits.keep_ended;
        let (bytes, forgotten) = (&mut self.bytes, &mut self.forgotten);
        self.workers.retain(|_, kept| {
            let is_old = kept
                .ended
                .is_some_and(|at| now.saturating_duration_since(at) >= limit);
            if is_old {
                *bytes -= kept.bytes;
                *forgotten = kept.next.max(*forgotten);
            }
            !is_old
        });
    }

    /// Frees something. There is something to free: the caller has found too many bytes.
    fn make_room(&mut self) {
        if self.forget_oldest() {
            return;
        }
        if let Some(largest) = self.workers.values_mut().max_by_key(|kept| kept.bytes) {
            self.bytes -= largest.drop_oldest();
        }
    }

    /// Forgets the worker that ended longest ago; false where none has.
    fn forget_oldest(&mut self) -> bool {
        let ended = self
            .workers
            .iter()
            .filter_map(|(slot, kept)| Some((kept.ended?, *slot)));
        let Some((_, slot)) = ended.min() else {
            return false;
        };
        if let Some(kept) = self.workers.remove(&slot) {
            self.bytes -= kept.bytes;
            self.forgotten = kept.next.max(self.forgotten);
        }
        true
    }
}

/// What somebody reads, and how far they are. A reader that is slow loses lines and holds nobody back.
#[derive(Debug)]
pub(crate) struct Reader {
    query: proto::LogsQuery,
    /// Older lines are not wanted, at the beginning.
    since_unix_ms: u64,
    /// Numbers of the next lines.
    next: BTreeMap<Slot, u64>,
    /// Everything has been read once. Workers that are new to the reader have begun since then, and no line of theirs is
    /// too many or too old.
    caught_up: bool,
    /// The worker that was read last: others come before it the next time, so that one that babbles does not have all the
    /// room.
    last: Option<Slot>,
}

impl Reader {
    /// `seen`: how far the reader has been before, in this run of the agent. `caught_up`: it had read everything before.
    pub(crate) fn new(
        query: proto::LogsQuery,
        seen: BTreeMap<Slot, u64>,
        caught_up: bool,
        now_unix_ms: u64,
    ) -> Self {
        let since = query.since_ms.map(|age| now_unix_ms.saturating_sub(age));
        Self {
            since_unix_ms: since.unwrap_or(0),
            next: seen,
            caught_up,
            last: None,
            query,
        }
    }

    pub(crate) fn follows(&self) -> bool {
        self.query.follow
    }

    fn wants(&self, (key, replica): Slot, kept: &Kept) -> bool {
        let query = &self.query;
        kept.pipeline.as_str() == query.pipeline
            && query.revision.is_none_or(|revision| revision == key.revision.0)
            && (query.stage.is_empty() || query.stage == kept.stage)
            && query.replica.is_none_or(|wanted| wanted == replica.0)
    }

    /// Number of the first line that somebody wants who sees a worker for the first time.
    fn beginning(&self, kept: &Kept) -> u64 {
        if self.caught_up {
            return kept.begin;
        }
        let tail = u64::from(self.query.tail).min(kept.lines.len() as u64);
        let is_old = |line: &&Line| line.at_unix_ms < self.since_unix_ms;
        let old = kept.lines.iter().take_while(is_old).count() as u64;
        (kept.next - tail).max(kept.first() + old)
    }

    /// The next lines, up to `max_bytes` of them and at least one, of as many workers as that makes. Empty where the
    /// reader has everything. A worker that is new to the reader is told of even without lines.
    pub(crate) fn read(&mut self, store: &Store, max_bytes: usize) -> Vec<proto::WorkerOutput> {
        self.next.retain(|slot, _| store.workers.contains_key(slot));
        let mut room = max_bytes;
        let mut output = Vec::new();
        let after_last = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let up_to_last = self.last.map(|last| store.workers.range(..=last));
        let in_turn = store.workers.range((after_last, Bound::Unbounded));
        for (&slot, kept) in in_turn.chain(up_to_last.into_iter().flatten()) {
            if room == 0 {
                break;
            }
            if !self.wants(slot, kept) {
                continue;
            }
            let known = self.next.get(&slot).copied();
            // A position before the beginning is of one whose output is forgotten, and one beyond the end of nothing.
            let next = known
                .filter(|&next| next <= kept.next)
                .map_or_else(|| self.beginning(kept), |next| next.max(kept.begin));
            if known == Some(kept.next) {
                continue;
            }
            let start = next.max(kept.first());
            let mut lines = Vec::new();
            let skipped = usize::try_from(start - kept.first()).unwrap_or(usize::MAX);
            for line in kept.lines.iter().skip(skipped) {
                let bytes = line.text.len() + LINE_OVERHEAD;
                if bytes > room && !(lines.is_empty() && room == max_bytes) {
                    room = 0;
                    break;
                }
                room = room.saturating_sub(bytes);
                lines.push(proto::OutputLine {
                    at_unix_ms: line.at_unix_ms,
                    stream: line.stream.into(),
                    text: line.text.to_string(),
                    cut_bytes: line.cut_bytes,
                });
            }
            let after = start + lines.len() as u64;
            if known == Some(after) {
                break;
            }
            self.next.insert(slot, after);
            self.last = Some(slot);
            output.push(proto::WorkerOutput {
                revision: slot.0.revision.0,
                stage: u32::from(slot.0.stage.0),
                stage_name: kept.stage.clone(),
                replica: slot.1.0,
                lost: start - next,
                lines,
                next: after,
                begin: kept.begin,
            });
        }
        self.caught_up |= output.is_empty();
        output
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

//! Keeps one replica running: starts its process, feeds it to the pool when ready, restarts it when it ends.

use std::sync::Arc;
use std::time::Duration;

use mosec_shm_ring::{AgentChannel, Arena, ChannelConfig, ChannelError, ControlError, Readable, WorkerEvent};
use mosec_types::{Generation, ReplicaId, StageSpec, WorkerState, worker};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::backoff::BackOff;
use super::oom::Cgroups;
use super::process::{Process, Surroundings, worker_spec};
use super::worker::Worker;
use crate::code::{self, Code, Prepared};
use crate::output::{Capture, Output, WorkerOutput};
use crate::pool::{Pool, Supervised};
use crate::status::StatusBoard;

/// How long a worker that was told to stop may take to leave.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// Everything a supervisor needs to know about its replica.
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    pub(crate) stage: StageSpec,
    pub(crate) pool: Arc<Pool>,
    pub(crate) python: String,
    /// Its GPUs, as `CUDA_VISIBLE_DEVICES` names them; all of the host's where absent.
    pub(crate) gpus: Option<String>,
    pub(crate) code: Option<Code>,
    /// Keeps what it writes; absent where that goes straight to the agent's own output.
    pub(crate) output: Option<Output>,
    pub(crate) arena: Arena,
    pub(crate) board: StatusBoard,
    pub(crate) cgroups: Cgroups,
    pub(crate) drain_timeout: Duration,
    pub(crate) quiet: Duration,
}

/// A process that has been started and greeted.
struct Started {
    process: Process,
    worker: Arc<Worker>,
    control: Readable,
    capture: Option<Capture>,
}

/// How a run of a worker ended.
struct RunEnd {
    ready_for: Option<Duration>,
    error: String,
}

impl RunEnd {
    /// Of a run that did not come to be ready.
    fn unready(error: impl ToString) -> Self {
        Self {
            ready_for: None,
            error: error.to_string(),
        }
    }
}

/// How a replica is told to end.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    /// It drains and leaves.
    pub(crate) stop: CancellationToken,
    /// Its stage has other replicas, to which new requests go from now on.
    pub(crate) relieved: CancellationToken,
    /// It ends at once; what it has is lost.
    pub(crate) evict: CancellationToken,
}

/// Runs a replica until it is to end.
pub(crate) async fn supervise(replica: Replica, ending: Ending) {
    let Ending { stop, evict, .. } = &ending;
    let _placed = replica.pool.metrics.placed();
    let mut backoff = BackOff::default();
    let mut generation = Generation::default();
    let output = replica.output();
    let remark = |text: &str| {
        if let Some(output) = &output {
            output.remark(text);
        }
    };
    while !stop.is_cancelled() && !evict.is_cancelled() {
        generation.0 = generation.0.wrapping_add(1);
        if generation.0 > 1 {
            replica.pool.metrics.restarts.inc();
        }
        let end = replica.run(generation, &ending, output.as_ref()).await;
        if stop.is_cancelled() || evict.is_cancelled() {
            break;
        }
        let pause = backoff.after(end.ready_for);
        tracing::warn!(
            stage = %replica.pool.stage, replica = %replica.id, error = end.error, pause_ms = pause.as_millis() as u64,
            "worker ended"
        );
        remark(&format!(
            "ended, and starts again in {:.1}s: {}",
            pause.as_secs_f64(),
            end.error
        ));
        replica.update(|status| {
            status.state = WorkerState::BackOff;
            status.pid = None;
            status.restarts += 1;
            status.failed_starts = if end.ready_for.is_some() {
                0
            } else {
                status.failed_starts + 1
            };
            status.last_error = Some(worker::trim_error(&end.error));
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => {}
            () = evict.cancelled() => {}
        }
    }
    remark("ended, as it was told to");
    replica.board.remove(replica.pool.stage, replica.id);
}

impl Replica {
    fn update(&self, change: impl FnOnce(&mut mosec_types::WorkerStatus)) {
        self.board.update(self.pool.stage, self.id, change);
    }

    /// Where its output is kept, if it is.
    fn output(&self) -> Option<WorkerOutput> {
        let (slot, pipeline) = ((self.pool.stage, self.id), &self.pool.spec.name);
        let output = self.output.as_ref()?;
        Some(output.of_worker(slot, pipeline, &self.stage.name))
    }

    /// One process from its start to its confirmed end.
    async fn run(&self, generation: Generation, ending: &Ending, output: Option<&WorkerOutput>) -> RunEnd {
        // Should the deployment's time pass meanwhile, this is what it was waiting for. An error of an earlier start says more.
        let pending = code::pending(&self.pool.spec.source);
        self.update(|status| {
            status.state = WorkerState::Starting;
            status.pid = None;
            status.last_error = status.last_error.take().or(pending.map(str::to_owned));
        });
        // Its folders stay until the process has ended.
        let prepared = tokio::select! {
            prepared = code::prepare(self.code.as_ref(), &self.pool.spec.source, &self.python) => prepared,
            () = ending.stop.cancelled() => return RunEnd::unready("told to stop"),
            () = ending.evict.cancelled() => return RunEnd::unready("told to stop"),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return RunEnd::unready(error),
        };
        self.update(|status| {
            if status.last_error.as_deref() == pending {
                status.last_error = None;
            }
        });
        match self.start(generation, &prepared, output) {
            Ok(started) => self.attend(started, ending, output).await,
            Err(error) => RunEnd::unready(format!("{error:#}")),
        }
    }

    fn start(
        &self,
        generation: Generation,
        prepared: &Prepared,
        output: Option<&WorkerOutput>,
    ) -> anyhow::Result<Started> {
        use anyhow::Context as _;
        let (channel, control) = AgentChannel::create(&self.arena, generation, &ChannelConfig::default())
            .context("cannot make the worker's shared memory")?;
        let source = &prepared.source;
        let surroundings = Surroundings {
            gpus: self.gpus.as_deref(),
            control,
            cgroups: &self.cgroups,
            captured: output.is_some(),
        };
        let process = Process::start(prepared, &self.stage, self.id, surroundings);
        let mut process = process.with_context(|| {
            let python = source.python.as_deref().unwrap_or(&self.python);
            format!("cannot start {python} in {}", source.dir)
        })?;
        let (stdout, stderr) = process.pipes();
        let capture = output.map(|output| {
            output.remark(&format!(
                "started as process {}",
                process.pid().unwrap_or_default()
            ));
            output.capture(stdout, stderr)
        });
        let watch = Readable::new(channel.control_fd()).context("cannot watch the worker's socket")?;
        match channel.hello(&worker_spec(source, &self.stage, self.id)?) {
            // It has ended already; its end says more than that it does not listen.
            Err(ControlError::Closed) => {}
            greeted => greeted.context("cannot greet the worker")?,
        }
        self.update(|status| {
            status.state = WorkerState::Starting;
            status.pid = process.pid();
        });
        Ok(Started {
            process,
            worker: Arc::new(Worker::new(self.id, channel, self.pool.metrics.worker(self.id))),
            control: watch,
            capture,
        })
    }

    /// Follows a process until it has ended, and sees to what it leaves.
    async fn attend(&self, started: Started, ending: &Ending, output: Option<&WorkerOutput>) -> RunEnd {
        let began = Instant::now();
        let Ending { stop, evict, .. } = ending;
        let Started {
            mut process,
            worker,
            control,
            capture,
        } = started;
        // Should this task fail, the process is killed, its ring is no longer read, and what it had goes to others.
        let supervised = Supervised::new(self.pool.clone(), worker.clone());
        let reader = AbortOnDropHandle::new(tokio::spawn(read_ring(worker.clone(), self.pool.clone())));
        let attending = AbortOnDropHandle::new(tokio::spawn({
            let worker = worker.clone();
            async move { worker.attend().await }
        }));
        let mut said = None;
        let mut ready = None;
        let how = loop {
            tokio::select! {
                how = process.ended() => break how,
                event = next_event(&worker.channel, &control) => match event {
                    Ok(WorkerEvent::Ready) => {
                        ready = Some(Instant::now());
                        if let Some(output) = output {
                            output.remark(&format!("ready after {:.1}s", began.elapsed().as_secs_f64()));
                        }
                        self.pool.add(worker.clone());
                        self.update(|status| {
                            status.state = WorkerState::Ready;
                            status.failed_starts = 0;
                        });
                        tracing::info!(stage = %self.pool.stage, replica = %self.id, pid = process.pid(), "worker is ready");
                    }
                    Ok(WorkerEvent::Failed { traceback }) => said = Some(traceback),
                    Ok(_) => {}
                    // It has closed its socket or talks nonsense: it is leaving, or has to.
                    Err(error) => {
                        tracing::debug!(stage = %self.pool.stage, replica = %self.id, error, "control socket ended");
                        self.pool.retire(&worker);
                        break self.end(&mut process).await;
                    }
                },
                () = worker.broken.cancelled() => {
                    process.kill();
                    process.ended().await;
                    break "the worker broke the protocol of its ring".into();
                }
                // Nothing to finish, and a worker that loads a model does not listen.
                () = stop.cancelled(), if ready.is_none() => {
                    process.kill();
                    break process.ended().await;
                }
                () = stop.cancelled(), if ready.is_some() => break self.drain(&mut process, &worker, ending).await,
                () = evict.cancelled() => {
                    process.kill();
                    break process.ended().await;
                }
            }
        };
        process.kill();
        attending.abort();
        reader.abort();
        let _ = reader.await;
        // The process is gone, so what it answered last is all there is.
        drain_ring(&worker, &self.pool);
        supervised.bury();
        worker.channel.reclaim();
        if let Some(capture) = capture {
            capture.finish().await;
        }
        RunEnd {
            ready_for: ready.map(|at| at.elapsed()),
            error: said.unwrap_or(how),
        }
    }

    /// Lets a worker finish, then ends it.
    async fn drain(&self, process: &mut Process, worker: &Arc<Worker>, ending: &Ending) -> String {
        self.update(|status| status.state = WorkerState::Draining);
        let quiet = async {
            // The whole pool, not this worker: while upstreams still send here, somebody has to serve.
            while !is_quiet(&self.pool, self.quiet) || worker.outstanding() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let finished = async {
            ending.relieved.cancelled().await;
            // Others serve: its window closes, and only what it has is finished.
            self.pool.retire(worker);
            while worker.outstanding() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let done = async {
            tokio::select! {
                () = quiet => {}
                () = finished => {}
            }
        };
        tokio::select! {
            result = tokio::time::timeout(self.drain_timeout, done) => if result.is_err() {
                tracing::warn!(stage = %self.pool.stage, replica = %self.id, "drain timeout");
            },
            // It has died: what it had goes to others as ever.
            how = process.ended() => return how,
            () = worker.broken.cancelled() => process.kill(),
            () = ending.evict.cancelled() => {}
        }
        self.pool.retire(worker);
        if let Err(error) = worker.channel.stop() {
            tracing::debug!(%error, "worker could not be told to stop");
        }
        self.end(process).await
    }

    /// Waits for a process that is leaving; kills it if it does not.
    async fn end(&self, process: &mut Process) -> String {
        match tokio::time::timeout(STOP_TIMEOUT, process.ended()).await {
            Ok(how) => how,
            Err(_) => {
                tracing::warn!(stage = %self.pool.stage, replica = %self.id, "worker did not leave and is killed");
                process.kill();
                process.ended().await
            }
        }
    }
}

fn is_quiet(pool: &Pool, quiet: Duration) -> bool {
    match pool.idle_since() {
        None => false,
        Some(used) => used.is_none_or(|at| at.elapsed() >= quiet),
    }
}

/// The worker's next word. Cancel safe.
async fn next_event(channel: &AgentChannel, control: &Readable) -> Result<WorkerEvent, String> {
    loop {
        match channel.control_recv() {
            Ok(Some(WorkerEvent::Eof)) => return Err("closed".into()),
            Ok(Some(event)) => return Ok(event),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        control.wait().await.map_err(|error| error.to_string())?;
    }
}

/// Reads a worker's answers for as long as it lives.
///
/// However this ends, nobody reads the ring from then on, and the supervisor ends the worker: what it wrote cannot be
/// trusted, or a bug of ours has ended the reading.
pub(crate) async fn read_ring(worker: Arc<Worker>, pool: Arc<Pool>) {
    let _broken = worker.broken.clone().drop_guard();
    if let Err(error) = follow_ring(&worker, &pool).await {
        tracing::error!(stage = %pool.stage, replica = %worker.replica, error, "worker's ring is unusable");
    }
}

async fn follow_ring(worker: &Worker, pool: &Pool) -> Result<(), String> {
    let bell = Readable::new(worker.channel.bell_fd()).map_err(|error| error.to_string())?;
    loop {
        if take_responses(worker, pool).map_err(|error| error.to_string())? {
            // Others get their turn; more may have arrived meanwhile.
            tokio::task::yield_now().await;
        } else if worker.channel.arm() {
            bell.wait().await.map_err(|error| error.to_string())?;
        }
    }
}

/// Takes what is left in the ring of a worker that has ended.
fn drain_ring(worker: &Worker, pool: &Pool) {
    if let Err(error) = take_responses(worker, pool) {
        tracing::debug!(%error, "the dead worker's ring is unusable");
    }
}

/// Takes what the ring has; false where that is nothing. What comes before an error is in order and counts: a request that has
/// been answered must not run again.
fn take_responses(worker: &Worker, pool: &Pool) -> Result<bool, ChannelError> {
    let mut responses = Vec::new();
    let polled = worker.channel.poll_responses(&mut responses);
    let progress = !responses.is_empty();
    for response in responses {
        worker.on_response(pool, response);
    }
    polled.map(|()| progress)
}

//! Runs a command as a worker, sends it batches, checks that they come back unchanged, and says how long that took.
//!
//! `cargo run --release -p mosec-shm-ring --example round_trips -- [--spec JSON] BATCHES ITEMS BYTES COMMAND [ARGUMENT]...`

use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mosec_shm_ring::{
    AgentChannel, Arena, ArenaConfig, ChannelConfig, ITEM_EGRESS, ITEM_INGRESS, ItemPayload, Request,
    RequestItem, Response, WorkerEvent,
};
use mosec_types::Generation;
use rustix::event::{PollFd, PollFlags};

type Error = Box<dyn std::error::Error>;

const SPEC: &str = r#"{"stage":{"timeout":3000}}"#;

fn main() -> Result<(), Error> {
    let mut arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut spec = SPEC.to_owned();
    if arguments.first().is_some_and(|first| first == "--spec") {
        spec = arguments.drain(..2).nth(1).ok_or("--spec needs a value")?;
    }
    let [batches, items, bytes, program, rest @ ..] = arguments.as_slice() else {
        return Err("expected: BATCHES ITEMS BYTES COMMAND [ARGUMENT]...".into());
    };
    let (batches, items, bytes): (u64, usize, usize) = (batches.parse()?, items.parse()?, bytes.parse()?);

    let arena = Arena::new(ArenaConfig::default())?;
    let (agent, worker_end) = AgentChannel::create(&arena, Generation(1), &ChannelConfig::default())?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(worker_end)
        .process_group(0)
        .spawn()?;
    agent.hello(&spec)?;
    wait_until_ready(&agent)?;

    let (mut times, mut worker_times) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        let payloads: Vec<_> = (0..items).map(|item| payload(batch, item, bytes)).collect();
        let started = Instant::now();
        let response = round_trip(&agent, batch, &payloads)?;
        let answers: Vec<_> = response
            .items
            .iter()
            .map(|item| item.payload.to_bytes())
            .collect();
        times.push(started.elapsed());
        worker_times.push(Duration::from_nanos(response.worker_nanos));
        let codes_ok = response.items.iter().all(|item| item.code == 0);
        if !codes_ok || answers != payloads || !response.done {
            return Err(format!("batch {batch} came back changed: {response:?}").into());
        }
    }
    agent.stop()?;
    let status = child.wait()?;
    agent.reclaim();
    report("round trip", &mut times);
    report("of it at work", &mut worker_times);
    match status.success() {
        true => Ok(()),
        false => Err(format!("the worker ended with {status}").into()),
    }
}

fn payload(batch: u64, item: usize, bytes: usize) -> Bytes {
    let text = format!("{{\"batch\": {batch}, \"item\": {item}}}").into_bytes();
    text.into_iter()
        .chain(std::iter::repeat(b' '))
        .take(bytes.max(1))
        .collect()
}

fn wait_until_ready(agent: &AgentChannel) -> Result<(), Error> {
    loop {
        wait(agent.control_fd())?;
        match agent.control_recv()? {
            Some(WorkerEvent::Ready) => return Ok(()),
            None => {}
            Some(event) => return Err(format!("{event:?}").into()),
        }
    }
}

fn round_trip(agent: &AgentChannel, batch: u64, payloads: &[Bytes]) -> Result<Response, Error> {
    let flags = ITEM_INGRESS | ITEM_EGRESS;
    let item = |bytes| RequestItem {
        flags,
        deadline_micros: 0,
        request: 5,
        headers: b"",
        payload: ItemPayload::Bytes(bytes),
    };
    let items: Vec<_> = payloads.iter().map(item).collect();
    let reply_hint = payloads.iter().map(Bytes::len).sum();
    agent.request(&Request {
        batch,
        items: &items,
        reply_hint,
    })?;
    let mut out = Vec::new();
    loop {
        agent.poll_responses(&mut out)?;
        if let Some(response) = out.pop() {
            return Ok(response);
        }
        if agent.arm() {
            wait(agent.bell_fd())?;
        }
    }
}

fn wait(fd: BorrowedFd<'_>) -> Result<(), Error> {
    let bound = rustix::event::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&bound))? {
        0 => Err("the worker said nothing for a minute".into()),
        _ => Ok(()),
    }
}

#[expect(clippy::print_stdout, reason = "it is what a user of this program asked for")]
fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .copied()
            .unwrap_or_default()
    };
    println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(0.5), at(0.9), at(0.99));
}

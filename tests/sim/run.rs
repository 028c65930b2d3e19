//! One history: a control plane, its clients and its troubles, all from one seed.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mosec_control_plane::raft::MemberId;
use mosec_control_plane::state::Formats;
use mosec_control_plane::{Config, RaftTiming};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::client::{Client, Habits, Notes, view};
use crate::disk::Lie;
use crate::faults::{Faults, Troubles};
use crate::member::Member;
use crate::net::{Counts, Net, address};
use crate::spec::{Act, History, Outcome, Rollouts, verify};

/// How long clients and troubles go on.
const TROUBLED: Duration = Duration::from_secs(10);
/// Time until a whole cluster must be of use again: an election, a snapshot, and as much again.
const RECOVERY: Duration = Duration::from_secs(15);
/// Entries between snapshots: so few that members are brought level by snapshots, too.
const SNAPSHOT_EVERY: u64 = 12;

/// What a run is made of, besides its seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Setup {
    pub members: u64,
    pub habits: Habits,
    pub lie: Lie,
    /// Members that were ended may come back without their disk, one at a time and with all others there.
    pub wipes: bool,
    /// Members are added and removed.
    pub changes: bool,
}

/// What a run has shown.
pub struct Outcomes {
    pub history: History,
    pub faults: Faults,
    pub messages: Counts,
    /// What was wrong, where something was.
    pub verdict: Result<(), String>,
}

/// Runs the history of `seed`.
pub fn run(seed: u64, setup: Setup) -> Outcomes {
    in_virtual_time(simulate(seed, setup))
}

/// Runs `work` on a clock that stands still while anything is done.
pub fn in_virtual_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

/// The members of a control plane, none of which runs yet.
pub fn members(seeds: &mut StdRng, net: &Arc<Net>, setup: Setup) -> BTreeMap<MemberId, Member> {
    let addresses: BTreeMap<_, _> = (1..=setup.members).map(|id| (id, address(id))).collect();
    let mut members = BTreeMap::new();
    for &id in addresses.keys() {
        let config = Config {
            member: id,
            peers: addresses.clone(),
            ..base()
        };
        net.enrol(id);
        members.insert(id, Member::new(config, net.clone(), seeds.random(), setup.lie));
    }
    members
}

fn base() -> Config {
    Config {
        raft: RaftTiming {
            snapshot_every: SNAPSHOT_EVERY,
            ..RaftTiming::default()
        },
        ..Config::single("sim")
    }
}

/// A member that does not run yet, and that is to be added to those that are there.
pub fn another(id: MemberId, seed: u64, net: &Arc<Net>, there: impl Iterator<Item = MemberId>) -> Member {
    let config = Config {
        member: id,
        seeds: there.map(address).collect(),
        ..base()
    };
    Member::new(config, net.clone(), seed, Lie::None)
}

async fn simulate(seed: u64, setup: Setup) -> Outcomes {
    let mut seeds = StdRng::seed_from_u64(seed);
    let net = Net::new(seeds.random());
    let members = members(&mut seeds, &net, setup);
    let notes = Notes::new();
    let mut troubles = Troubles::new(
        members,
        net.clone(),
        StdRng::seed_from_u64(seeds.random()),
        setup.wipes,
        setup.changes,
    );
    let mut started = troubles.start_all().await;
    // The others begin while the format may still be raised, and have only what the first one has.
    let at_once = seeds.random_bool(0.75);
    if at_once && started.is_ok() {
        started = newest_format(&net, &troubles.members()).await;
    }
    let end = Instant::now() + TROUBLED;
    let incarnations = Arc::new(Mutex::new(0));
    let clients: Vec<_> = (1..=seeds.random_range(3..=5))
        .map(|id| {
            let (net, notes) = (net.clone(), notes.clone());
            let mut client = Client::new(id, seeds.random(), net, notes, setup.habits);
            client.share(&incarnations);
            client.at_once = at_once;
            tokio::spawn(client.run(end))
        })
        .collect();
    let troubled = troubles.run(end).await;
    let mut verdict = started.and(troubled).and(troubles.heal().await);
    for client in clients {
        client.await.unwrap();
    }
    if verdict.is_ok() {
        let last = Client::new(0, seeds.random(), net.clone(), notes.clone(), Habits::default());
        verdict = recover(last, &net, &troubles.members()).await;
    }
    let history = notes.history();
    Outcomes {
        verdict: verdict.and_then(|()| verify(&history, Rollouts::ByCalls)),
        history,
        faults: troubles.faults(),
        messages: net.counts(),
    }
}

/// Waits until the newest format is in force, as somebody has applied what raised it.
async fn newest_format(net: &Arc<Net>, members: &[MemberId]) -> Result<(), String> {
    let end = Instant::now() + RECOVERY;
    let newest = Formats::BUILD.max;
    let is_there = |id: &MemberId| {
        let live = net.member(*id);
        live.is_some_and(|live| live.model.borrow().format == newest)
    };
    while !members.iter().any(is_there) {
        if Instant::now() > end {
            return Err(format!(
                "{newest} was not in force within {RECOVERY:?} of the start"
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// With nothing in the way, a write and a read must succeed, and all members come to hold the same.
async fn recover(mut client: Client, net: &Arc<Net>, members: &[MemberId]) -> Result<(), String> {
    let end = Instant::now() + RECOVERY;
    let mut node = 0;
    loop {
        node += 1;
        // A name of its own for each attempt, as registrations are not repeated.
        let act = Act::Register {
            node: format!("last-{node}"),
            incarnation: 1,
        };
        if client.call(act).await != Outcome::Unknown {
            break;
        }
        if Instant::now() > end {
            let members: Vec<_> = members
                .iter()
                .filter_map(|&id| Some(net.member(id)?.describe()))
                .collect();
            return Err(format!(
                "no write succeeded within {RECOVERY:?} of the end of all troubles: {members:#?}"
            ));
        }
    }
    let read = loop {
        match client.call(Act::Read).await {
            Outcome::View(read) => break read,
            _ if Instant::now() > end => return Err("the reads after the last write had no answer".into()),
            _ => {}
        }
    };
    loop {
        let views: BTreeMap<_, _> = members
            .iter()
            .filter_map(|&id| Some((id, view(&net.member(id)?.model.borrow().clone()))))
            .collect();
        if views.len() == members.len() && views.values().all(|view| *view == read) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!(
                "members do not agree: {read:?} was read, they hold {views:?}"
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

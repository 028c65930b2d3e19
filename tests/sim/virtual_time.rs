//! Histories of simulated control planes.

use crate::client::Habits;
use crate::disk::Lie;
use crate::report::{self, Tally};
use crate::run::{Outcomes, Setup, run};

/// Runs one seed after the other; the first that fails fails the test, with its history.
fn all_pass(seeds: std::ops::Range<u64>, setup: Setup) {
    for seed in seeds {
        let outcomes = run(seed, setup);
        if let Err(problem) = &outcomes.verdict {
            panic!(
                "seed {seed} of {} members: {problem}\n{:?}",
                setup.members, outcomes.faults
            );
        }
    }
}

const THREE: Setup = Setup {
    members: 3,
    habits: Habits {
        no_barrier: false,
        no_dedup: false,
    },
    lie: Lie::None,
    wipes: true,
    changes: false,
};

const FIVE: Setup = Setup { members: 5, ..THREE };

/// Three to begin with.
const CHANGING: Setup = Setup {
    changes: true,
    ..THREE
};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

// Two hundred histories, in pieces that a busy machine finishes in time.

#[test]
fn three_members_are_as_one() {
    all_pass(0..60, THREE);
}

#[test]
fn three_members_are_as_one_again() {
    all_pass(60..120, THREE);
}

#[test]
fn five_members_are_as_one() {
    all_pass(1000..1040, FIVE);
}

#[test]
fn five_members_are_as_one_again() {
    all_pass(1040..1080, FIVE);
}

#[test]
fn members_that_come_and_go_are_as_one() {
    all_pass(2000..2050, CHANGING);
}

#[test]
fn a_seed_makes_the_same_history_again() {
    for seed in [3, 14, 15, 92] {
        let (first, second) = (run(seed, THREE), run(seed, THREE));
        assert_eq!(first.history, second.history);
        assert_eq!((first.faults, first.messages), (second.faults, second.messages));
    }
}

#[test]
fn replay() {
    let Some(seed) = number("SIM_SEED") else {
        return;
    };
    let setup = Setup {
        members: number("SIM_MEMBERS").unwrap_or(3),
        changes: number("SIM_CHANGES").is_some(),
        ..THREE
    };
    let Outcomes {
        history,
        faults,
        messages,
        verdict,
    } = run(seed, setup);
    for call in &history {
        println!("{:?}", call.op);
    }
    println!("{faults:?}\n{messages:?}");
    verdict.unwrap();
}

/// What `make sim` runs in turn.
const KINDS: [(&str, Setup); 3] = [
    ("Three members", THREE),
    ("Five members", FIVE),
    ("Members that come and go, three to begin with", CHANGING),
];

/// `make sim`: as many histories as `SIM_HISTORIES` says, a third of each kind, from seed `SIM_SEED` on.
#[test]
#[ignore = "takes minutes; writes REPORT.md"]
fn many_histories() {
    let (histories, first) = (
        number("SIM_HISTORIES").unwrap_or(5000),
        number("SIM_SEED").unwrap_or(0),
    );
    let started = std::time::Instant::now();
    let next = std::sync::atomic::AtomicU64::new(first);
    let tallies = KINDS.map(|_| parking_lot::Mutex::new(Tally::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= first + histories {
                return;
            }
            let kind = (seed % KINDS.len() as u64) as usize;
            let (name, setup) = KINDS[kind];
            let outcomes = run(seed, setup);
            let name = format!("seed {seed} ({})", name.to_lowercase());
            if let Err(problem) = &outcomes.verdict {
                println!("{name}: {problem}");
            }
            let mut tally = tallies[kind].lock();
            tally.add(&name, &outcomes.history, &outcomes.faults, &outcomes.verdict);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut text = format!(
        "# Histories in virtual time\n\nWritten by `make sim` on {}: seeds {first} to {}, {} s on this machine. FINDINGS.md \
         says what earlier runs have found.\n",
        report::today(),
        first + histories - 1,
        started.elapsed().as_secs(),
    );
    let tallies = tallies.map(parking_lot::Mutex::into_inner);
    for ((name, _), tally) in KINDS.iter().zip(&tallies) {
        text += &format!("\n## {name}: {} histories\n\n{}", tally.histories, tally.tables());
    }
    report::write("REPORT.md", &text);
    assert!(tallies.iter().all(|tally| tally.failures.is_empty()));
}

/// The first seed whose history is found to be wrong.
fn first_caught(seeds: u64, setup: Setup) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| Some((seed, run(seed, setup).verdict.err()?)))
}

#[test]
fn a_read_that_asks_no_majority_is_caught() {
    let habits = Habits {
        no_barrier: true,
        ..Habits::default()
    };
    let caught = first_caught(20, Setup { habits, ..THREE });
    println!("{caught:?}");
    assert!(caught.unwrap().1.contains("no order explains"));
}

#[test]
fn a_repeated_write_without_its_number_is_caught() {
    let habits = Habits {
        no_dedup: true,
        ..Habits::default()
    };
    let caught = first_caught(40, Setup { habits, ..THREE });
    println!("{caught:?}");
    assert!(caught.is_some());
}

#[test]
fn a_disk_that_does_not_sync_is_caught() {
    let caught = first_caught(
        40,
        Setup {
            lie: Lie::Sync,
            ..THREE
        },
    );
    println!("{caught:?}");
    assert!(caught.is_some());
}

#[test]
fn a_disk_that_forgets_votes_is_caught() {
    let lie = Lie::Vote;
    let caught = first_caught(400, Setup { lie, ..THREE });
    println!("{caught:?}");
    assert!(caught.is_some());
}

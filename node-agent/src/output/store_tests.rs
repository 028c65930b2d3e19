use mosec_types::{Revision, StageIndex};
use mosec_wire::control::proto::OutputStream;
use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_000_000;

fn slot(revision: u64, replica: u32) -> Slot {
    let key = StageKey {
        revision: Revision(revision),
        stage: StageIndex(0),
    };
    (key, ReplicaId(replica))
}

fn line(text: &str, at_unix_ms: u64) -> Line {
    Line {
        at_unix_ms,
        stream: OutputStream::Stdout,
        text: text.into(),
        cut_bytes: 0,
    }
}

fn store(limits: OutputLimits) -> Store {
    let mut store = Store::new(limits);
    for replica in 1..=2 {
        store.open(slot(1, replica), &PipelineName::new("ocr").unwrap(), "read");
    }
    store
}

fn say(store: &mut Store, replica: u32, texts: &[&str]) {
    for text in texts {
        store.push(slot(1, replica), line(text, NOW));
    }
}

fn query(tail: u32) -> proto::LogsQuery {
    proto::LogsQuery {
        pipeline: "ocr".into(),
        tail,
        ..Default::default()
    }
}

fn reader(query: proto::LogsQuery) -> Reader {
    Reader::new(query, BTreeMap::new(), false, NOW)
}

fn texts(output: &[proto::WorkerOutput]) -> Vec<(u32, u64, Vec<&str>)> {
    output
        .iter()
        .map(|worker| {
            let lines = worker.lines.iter().map(|line| line.text.as_str()).collect();
            (worker.replica, worker.lost, lines)
        })
        .collect()
}

#[test]
fn a_reader_gets_the_tail_of_each_worker_and_then_what_is_new() {
    let mut store = store(OutputLimits::default());
    say(&mut store, 1, &["a", "b", "c"]);
    let mut reader = reader(query(2));
    let first = reader.read(&store, 1000);
    assert_eq!(texts(&first), [(1, 0, vec!["b", "c"]), (2, 0, vec![])]);
    assert_eq!((first[0].next, first[1].next), (3, 0));
    assert!(reader.read(&store, 1000).is_empty());
    say(&mut store, 2, &["x"]);
    assert_eq!(texts(&reader.read(&store, 1000)), [(2, 0, vec!["x"])]);
}

#[test]
fn of_workers_that_start_after_the_beginning_each_line_is_read() {
    let limits = OutputLimits {
        worker_lines: 3,
        ..OutputLimits::default()
    };
    let start = |store: &mut Store| {
        store.open(slot(2, 1), &PipelineName::new("ocr").unwrap(), "read");
        for text in ["a", "b", "c", "d"] {
            // By a clock that was set back meanwhile.
            store.push(slot(2, 1), line(text, NOW - 10_000));
        }
    };
    let query = proto::LogsQuery {
        since_ms: Some(1000),
        ..query(0)
    };
    let expected = [(1, 1, vec!["b", "c", "d"])];

    let mut store = store(limits);
    say(&mut store, 1, &["old"]);
    let mut reader = reader(query.clone());
    assert_eq!(
        texts(&reader.read(&store, 1000)),
        [(1, 0, vec![]), (2, 0, vec![])]
    );
    assert!(reader.read(&store, 1000).is_empty());
    start(&mut store);
    assert_eq!(texts(&reader.read(&store, 1000)), expected);

    // So for one who asks again, and had caught up before.
    let seen = || BTreeMap::from([(slot(1, 1), 1), (slot(1, 2), 0)]);
    let mut again = Reader::new(query.clone(), seen(), true, NOW);
    assert_eq!(texts(&again.read(&store, 1000)), expected);
    let mut not_yet = Reader::new(query, seen(), false, NOW);
    assert_eq!(texts(&not_yet.read(&store, 1000)), [(1, 0, vec![])]);
}

#[test]
fn only_what_was_asked_for_is_read() {
    let mut store = store(OutputLimits::default());
    store.open(slot(2, 1), &PipelineName::new("ocr").unwrap(), "find");
    store.open(slot(3, 1), &PipelineName::new("other").unwrap(), "read");
    let found = |query| -> Vec<(u64, u32)> {
        let output = reader(query).read(&store, 1000);
        output
            .iter()
            .map(|worker| (worker.revision, worker.replica))
            .collect()
    };
    assert_eq!(found(query(1)), [(1, 1), (1, 2), (2, 1)]);
    let of = |edit: fn(&mut proto::LogsQuery)| {
        let mut query = query(1);
        edit(&mut query);
        query
    };
    assert_eq!(found(of(|query| query.revision = Some(2))), [(2, 1)]);
    assert_eq!(found(of(|query| query.stage = "read".into())), [(1, 1), (1, 2)]);
    assert_eq!(found(of(|query| query.replica = Some(2))), [(1, 2)]);
    assert_eq!(found(of(|query| query.pipeline = "none".into())), []);
}

#[test]
fn lines_may_be_too_old() {
    let mut store = store(OutputLimits::default());
    store.push(slot(1, 1), line("old", NOW - 501));
    store.push(slot(1, 1), line("new", NOW - 500));
    let mut reader = reader(proto::LogsQuery {
        since_ms: Some(500),
        ..query(100)
    });
    assert_eq!(texts(&reader.read(&store, 1000))[0], (1, 0, vec!["new"]));
}

#[test]
fn a_slow_reader_is_told_what_it_has_lost() {
    let limits = OutputLimits {
        worker_lines: 3,
        ..OutputLimits::default()
    };
    let mut store = store(limits);
    let mut reader = reader(query(100));
    reader.read(&store, 1000);
    say(&mut store, 1, &["a", "b", "c", "d", "e"]);
    assert_eq!(texts(&reader.read(&store, 1000)), [(1, 2, vec!["c", "d", "e"])]);
}

#[test]
fn a_reader_goes_on_where_it_was_and_not_after_another_life() {
    let mut store = store(OutputLimits::default());
    say(&mut store, 1, &["a", "b", "c"]);
    let mut again = Reader::new(query(1), BTreeMap::from([(slot(1, 1), 1)]), false, NOW);
    assert_eq!(texts(&again.read(&store, 1000))[0], (1, 0, vec!["b", "c"]));
    let mut other = Reader::new(query(1), BTreeMap::from([(slot(1, 1), 99)]), false, NOW);
    assert_eq!(texts(&other.read(&store, 1000))[0], (1, 0, vec!["c"]));
}

#[test]
fn a_place_that_was_forgotten_is_not_mistaken_for_what_it_was() {
    let now = Instant::now();
    for new in [1, 3, 5] {
        let mut store = store(OutputLimits::default());
        let mut reader = reader(query(9));
        say(&mut store, 1, &["a", "b", "c"]);
        reader.read(&store, 1000);
        let seen = reader.next.clone();
        store.close(slot(1, 1), now);
        store.expire(now + OutputLimits::default().keep_ended);
        store.open(slot(1, 1), &PipelineName::new("ocr").unwrap(), "read");
        let texts_of_new = &["1", "2", "3", "4", "5"][..new];
        say(&mut store, 1, texts_of_new);
        let output = reader.read(&store, 1000);
        assert_eq!(texts(&output), [(1, 0, texts_of_new.to_vec())]);
        assert_eq!((output[0].begin, output[0].next), (3, 3 + new as u64));
        // So for who asks again, whatever it wants of those it does not know.
        let mut again = Reader::new(query(0), seen, false, NOW);
        assert_eq!(texts(&again.read(&store, 1000)), [(1, 0, texts_of_new.to_vec())]);
    }
}

#[test]
fn output_outlives_the_worker_for_a_while() {
    let now = Instant::now();
    let mut store = store(OutputLimits::default());
    say(&mut store, 1, &["why"]);
    store.close(slot(1, 1), now);
    let hour = OutputLimits::default().keep_ended;
    store.expire(now + hour - Duration::from_secs(1));
    assert_eq!(texts(&reader(query(9)).read(&store, 1000))[0].2, ["why"]);
    // It came back meanwhile.
    store.open(slot(1, 1), &PipelineName::new("ocr").unwrap(), "read");
    store.expire(now + hour);
    assert_eq!(texts(&reader(query(9)).read(&store, 1000))[0].2, ["why"]);
    store.close(slot(1, 1), now);
    store.expire(now + hour);
    assert_eq!(texts(&reader(query(9)).read(&store, 1000)), [(2, 0, vec![])]);
}

#[test]
fn those_that_have_ended_make_room_first_and_then_the_largest() {
    let now = Instant::now();
    let limits = OutputLimits {
        total_bytes: 4 * (LINE_OVERHEAD + 1),
        ended_workers: 1,
        ..OutputLimits::default()
    };
    let mut store = store(limits);
    say(&mut store, 1, &["a", "b"]);
    store.close(slot(1, 1), now);
    say(&mut store, 2, &["c", "d", "e"]);
    assert_eq!(
        texts(&reader(query(9)).read(&store, 9000)),
        [(2, 0, vec!["c", "d", "e"])]
    );
    for revision in [2, 3] {
        store.open(slot(revision, 1), &PipelineName::new("ocr").unwrap(), "read");
        store.close(slot(revision, 1), now + Duration::from_secs(revision));
    }
    assert!(!store.workers.contains_key(&slot(2, 1)) && store.workers.contains_key(&slot(3, 1)));
    say(&mut store, 2, &["f", "g"]);
    assert_eq!(
        texts(&reader(query(9)).read(&store, 9000)),
        [(2, 0, vec!["d", "e", "f", "g"])],
        "the oldest line of the one that has most"
    );
}

proptest! {
    /// Whatever happens, the bounds hold, the sums are right, and a reader sees each line once and in order, or is told
    /// that it is lost.
    #[test]
    fn bounds_hold_and_readers_miss_nothing_unsaid(
        steps in prop::collection::vec((0u32..3, 0usize..40, 0u8..4), 0..200),
        max_bytes in 1usize..600,
    ) {
        let limits = OutputLimits {
            line_bytes: 40,
            worker_lines: 5,
            worker_bytes: 4 * (LINE_OVERHEAD + 40),
            total_bytes: 9 * (LINE_OVERHEAD + 40),
            ended_workers: 1,
            keep_ended: Duration::from_secs(20),
        };
        let mut store = Store::new(limits);
        let mut reader = reader(query(100));
        let mut told: BTreeMap<Slot, u64> = BTreeMap::new();
        let start = Instant::now();
        for (second, (replica, length, step)) in steps.into_iter().enumerate() {
            let (slot, now) = (slot(1, replica), start + Duration::from_secs(second as u64));
            match step {
                0 => store.close(slot, now),
                1 => {
                    for output in reader.read(&store, max_bytes) {
                        let slot = super::tests::slot(output.revision, output.replica);
                        let before = told.get(&slot).copied();
                        let count = output.lines.len() as u64;
                        prop_assert!(before.is_none_or(|before| before <= output.next), "numbers never come again");
                        // One that is new to the reader, for the first time or again, begins anywhere.
                        if let Some(before) = before.filter(|&before| before > output.begin) {
                            prop_assert_eq!(before + output.lost + count, output.next);
                        }
                        prop_assert!(output.lines.len() <= 5);
                        told.insert(slot, output.next);
                    }
                }
                _ => {
                    store.open(slot, &PipelineName::new("ocr").unwrap(), "read");
                    store.push(slot, line(&"x".repeat(length), NOW));
                }
            }
            let sum: usize = store.workers.values().map(|kept| kept.bytes).sum();
            prop_assert_eq!(sum, store.bytes);
            prop_assert!(store.bytes <= limits.total_bytes);
            for kept in store.workers.values() {
                prop_assert!(kept.lines.len() <= limits.worker_lines && kept.bytes <= limits.worker_bytes);
            }
            prop_assert!(store.workers.values().filter(|kept| kept.ended.is_some()).count() <= limits.ended_workers);
        }
        while !reader.read(&store, max_bytes).is_empty() {}
        for (slot, kept) in &store.workers {
            prop_assert_eq!(reader.next.get(slot), Some(&kept.next), "all is read in the end");
        }
    }
}

use std::process::Stdio;

use futures_util::StreamExt as _;
use mosec_types::{ReplicaId, Revision, StageIndex, StageKey};
use tokio::process::Command;

use super::*;

fn slot() -> Slot {
    let key = StageKey {
        revision: Revision(1),
        stage: StageIndex(0),
    };
    (key, ReplicaId(1))
}

fn worker(output: &Output) -> WorkerOutput {
    output.of_worker(slot(), &PipelineName::new("ocr").unwrap(), "read")
}

fn said(output: &Output) -> Vec<(OutputStream, String)> {
    let query = proto::LogsQuery {
        pipeline: "ocr".into(),
        tail: 100,
        ..Default::default()
    };
    let mut reader = Reader::new(query, Default::default(), false, unix_ms());
    let workers = output.read(&mut reader, 100_000);
    let lines = workers.into_iter().flat_map(|worker| worker.lines);
    lines.map(|line| (line.stream(), line.text)).collect()
}

/// Runs a script as a worker's process; gives back once it has been read.
async fn run(worker: &WorkerOutput, script: &str) {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let capture = worker.capture(child.stdout.take(), child.stderr.take());
    child.wait().await.unwrap();
    capture.finish().await;
}

#[tokio::test]
async fn what_a_worker_says_last_is_kept_through_its_restarts_and_its_end() {
    let output = Output::new(OutputLimits::default());
    let worker = worker(&output);
    run(&worker, "echo one; printf 'no end' >&2; kill -9 $$").await;
    worker.remark("it ended:\nof signal 9");
    run(&worker, "echo two").await;
    drop(worker);
    let mut said = said(&output);
    // The two pipes are read by two tasks.
    said[..2].sort_by_key(|(stream, _)| *stream as i32);
    let expected = [
        (OutputStream::Stdout, "one"),
        (OutputStream::Stderr, "no end"),
        (OutputStream::Agent, "it ended:"),
        (OutputStream::Agent, "of signal 9"),
        (OutputStream::Stdout, "two"),
    ];
    assert_eq!(said, expected.map(|(stream, text)| (stream, text.to_owned())));
}

#[tokio::test]
async fn lines_of_several_workers_do_not_get_into_each_other() {
    let output = Output::new(OutputLimits::default());
    let _worker = worker(&output);
    let own = tokio::sync::Mutex::new(Vec::new());
    let (mut one, one_pipe) = tokio::io::duplex(READ_BYTES);
    let (mut other, other_pipe) = tokio::io::duplex(READ_BYTES);
    let follow = |pipe| output.follow(slot(), OutputStream::Stdout, pipe, &own);
    let said = async {
        one.write_all(b"first\nsec").await.unwrap();
        until(&own, b"first\n").await;
        other.write_all(b"whole\nno end").await.unwrap();
        until(&own, b"first\nwhole\n").await;
        drop(other);
        until(&own, b"first\nwhole\nno end\n").await;
        one.write_all(b"ond\n").await.unwrap();
        drop(one);
    };
    tokio::join!(follow(one_pipe), follow(other_pipe), said);
    assert_eq!(own.into_inner(), b"first\nwhole\nno end\nsecond\n");
}

/// Waits until so much has been written.
async fn until(own: &tokio::sync::Mutex<Vec<u8>>, expected: &[u8]) {
    let written = async {
        while own.lock().await.len() < expected.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .unwrap();
    assert_eq!(*own.lock().await, expected);
}

#[tokio::test]
async fn a_process_left_behind_does_not_hold_up_the_end() {
    let output = Output::new(OutputLimits::default());
    let worker = worker(&output);
    let started = Instant::now();
    run(&worker, "echo mine; sleep 30 & echo $!").await;
    assert!(started.elapsed() < Duration::from_secs(20));
    let said = said(&output);
    assert_eq!(said[0].1, "mine");
    let left: i32 = said[1].1.parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    let _ = rustix::process::kill_process(left, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn an_answer_says_when_it_has_caught_up_and_goes_on_with_news() {
    let output = Output::new(OutputLimits::default());
    let worker = worker(&output);
    worker.remark("old");
    let chunks = answer::tests::chunks(&output, true);
    let mut chunks = std::pin::pin!(chunks);
    let first = chunks.next().await.unwrap();
    assert_eq!((first.id, first.refusal.as_str()), (7, ""));
    let texts = |chunk: proto::LogsChunk| -> Vec<String> {
        let workers = chunk.output.unwrap().workers;
        let lines = workers.into_iter().flat_map(|worker| worker.lines);
        lines.map(|line| line.text).collect()
    };
    let old = chunks.next().await.unwrap();
    assert!(!old.caught_up);
    assert_eq!(texts(old), ["old"]);
    let all = chunks.next().await.unwrap();
    assert!(all.caught_up);
    assert_eq!(texts(all), [""; 0]);
    worker.remark("new");
    let new = chunks.next().await.unwrap();
    assert!(new.caught_up);
    assert_eq!(texts(new), ["new"]);

    let chunks = answer::tests::chunks(&output, false);
    let whole: Vec<_> = chunks.collect().await;
    assert_eq!(whole.len(), 3, "{whole:?}");
    assert!(whole[2].caught_up, "without `follow` it ends there");
}

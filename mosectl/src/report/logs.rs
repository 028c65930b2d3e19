//! The output of workers as `mosectl logs` gives it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use chrono::{DateTime, SecondsFormat};
use mosec_wire::control::MAX_POSITIONS;
use mosec_wire::control::proto::{self, OutputStream};
use serde::Serialize;

use crate::terminal::{printable, printable_output};

/// Colours of prefixes that can be read on light and on dark: cyan, yellow, green, magenta, blue, red.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];
const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// One line of a worker. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Entry {
    /// When the agent read its end, in UTC as RFC 3339 writes it.
    pub(crate) at: String,
    pub(crate) node: String,
    pub(crate) pipeline: String,
    pub(crate) revision: u64,
    pub(crate) stage: String,
    pub(crate) replica: u32,
    /// `stdout`, `stderr`, or `agent` for what the agent says about the worker.
    pub(crate) stream: &'static str,
    pub(crate) text: String,
    /// Bytes that were cut off at the end of a long line.
    pub(crate) cut_bytes: u32,
    /// Lines before this one that are lost, as they were not read in time.
    pub(crate) lost: u64,
    #[serde(skip)]
    at_unix_ms: u64,
}

/// One worker on one node.
type Source = (String, u64, u32, u32);

/// How far a worker has been read.
#[derive(Debug, Clone, Copy)]
struct Position {
    /// Of its agent.
    incarnation: u64,
    /// Number of the next line.
    next: u64,
    /// Which of all that was heard was its last.
    heard: u64,
}

/// How far each worker has been read.
///
/// It has as many positions as a question may: with more, those of the oldest revisions go first, and among them of whoever has
/// been quiet for longest. Their workers have ended long ago, so that agents have nothing to send again.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pipeline: String,
    positions: BTreeMap<Source, Position>,
    /// Counts what was heard of workers.
    heard: u64,
    caught_up: bool,
}

impl Journal {
    pub(crate) fn of(pipeline: impl ToString) -> Self {
        Self {
            pipeline: pipeline.to_string(),
            positions: BTreeMap::new(),
            heard: 0,
            caught_up: false,
        }
    }

    /// Notes that everything has come that there was at the beginning.
    pub(crate) fn catch_up(&mut self) {
        self.caught_up = true;
    }

    /// Whether workers that have no position have begun since the beginning.
    pub(crate) fn has_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Whether no worker has been heard of.
    pub(crate) fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    pub(crate) fn positions(&self) -> Vec<proto::LogsPosition> {
        let position = |(source, at): (&Source, &Position)| {
            let (node, revision, stage, replica) = source;
            proto::LogsPosition {
                node: node.clone(),
                incarnation: at.incarnation,
                revision: *revision,
                stage: *stage,
                replica: *replica,
                next: at.next,
            }
        };
        self.positions.iter().map(position).collect()
    }

    /// The lines that are new. What comes a second time, as after a change of the leader, is left out.
    pub(crate) fn take(&mut self, output: proto::NodeOutput) -> Vec<Entry> {
        let mut entries = Vec::new();
        for worker in output.workers {
            let source = (output.node.clone(), worker.revision, worker.stage, worker.replica);
            let count = worker.lines.len() as u64;
            let first = worker.next.saturating_sub(count);
            let known = self.positions.get(&source);
            // What is before the beginning was of another one in this place, which the agent has forgotten.
            let known = known.filter(|at| at.incarnation == output.incarnation && at.next >= worker.begin);
            let known = known.map(|at| at.next);
            let (skip, mut lost) = match known {
                Some(next) => (next.saturating_sub(first), first.saturating_sub(next)),
                None => (0, worker.lost),
            };
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            let new = worker.lines.iter().skip(skip);
            entries.extend(new.map(|line| Entry {
                at: date(line.at_unix_ms),
                node: output.node.clone(),
                pipeline: self.pipeline.clone(),
                revision: worker.revision,
                stage: worker.stage_name.clone(),
                replica: worker.replica,
                stream: name(line.stream()),
                text: line.text.clone(),
                cut_bytes: line.cut_bytes,
                lost: std::mem::take(&mut lost),
                at_unix_ms: line.at_unix_ms,
            }));
            self.heard += 1;
            let position = Position {
                incarnation: output.incarnation,
                // Lines that are lost and not told yet are told with the next one.
                next: known.unwrap_or(0).max(worker.next).saturating_sub(lost),
                heard: self.heard,
            };
            self.positions.insert(source, position);
            if self.positions.len() > MAX_POSITIONS {
                self.forget_one();
            }
        }
        entries
    }

    fn forget_one(&mut self) {
        let oldest = self
            .positions
            .iter()
            .min_by_key(|(source, at)| (source.1, at.heard));
        if let Some(source) = oldest.map(|(source, _)| source.clone()) {
            self.positions.remove(&source);
        }
    }
}

fn name(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stderr => "stderr",
        OutputStream::Agent => "agent",
        OutputStream::Stdout | OutputStream::Unspecified => "stdout",
    }
}

/// To the millisecond. Empty where the number is no date.
fn date(unix_ms: u64) -> String {
    let date = i64::try_from(unix_ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    date.map_or_else(String::new, |date| {
        date.to_rfc3339_opts(SecondsFormat::Millis, true)
    })
}

/// Brings the lines of several workers into the order of their times; those of one worker stay in theirs.
pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_by_key(|entry| entry.at_unix_ms);
}

/// How lines look to people.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub(crate) colours: bool,
    /// Whether each line begins with its time.
    pub(crate) timestamps: bool,
    /// The widest prefix so far: texts begin below each other.
    width: usize,
}

impl Style {
    pub(crate) fn new(colours: bool, timestamps: bool) -> Self {
        Self {
            colours,
            timestamps,
            width: 0,
        }
    }

    /// One line for each entry, as `read/1@gpu-3 r12 | text`, or with `*` in place of `|` for what the agent says.
    pub(crate) fn render(&mut self, entries: &[Entry]) -> String {
        let prefixes: Vec<_> = entries.iter().map(prefix).collect();
        let widest = prefixes.iter().map(|prefix| prefix.chars().count()).max();
        self.width = self.width.max(widest.unwrap_or(0));
        let mut text = String::new();
        for (entry, prefix) in entries.iter().zip(&prefixes) {
            if entry.lost > 0 {
                let lines = if entry.lost == 1 { "line is" } else { "lines are" };
                let note = format!(
                    "{} {lines} lost here: written faster than they were read",
                    entry.lost
                );
                self.line(&mut text, entry, prefix, '*', &note);
            }
            let mut said = printable_output(&entry.text, self.colours);
            if entry.cut_bytes > 0 {
                said += &format!(" [{} more bytes]", entry.cut_bytes);
            }
            let mark = if entry.stream == "agent" { '*' } else { '|' };
            self.line(&mut text, entry, prefix, mark, &said);
        }
        text
    }

    fn line(&self, text: &mut String, entry: &Entry, prefix: &str, mark: char, said: &str) {
        let width = self.width;
        let time = if self.timestamps {
            format!("{} ", entry.at)
        } else {
            String::new()
        };
        if !self.colours {
            *text += format!("{time}{prefix:<width$} {mark} {said}").trim_end();
            text.push('\n');
            return;
        }
        let colour = colour(prefix);
        let said = if mark == '*' {
            format!("{DIM}{said}{RESET}")
        } else {
            said.to_owned()
        };
        *text += &format!("{time}\x1b[{colour}m{prefix:<width$} {mark}{RESET} {said}\n");
    }
}

fn prefix(entry: &Entry) -> String {
    let Entry {
        stage,
        replica,
        node,
        revision,
        ..
    } = entry;
    printable(&format!("{stage}/{replica}@{node} r{revision}"))
}

/// The same for each line of a worker.
fn colour(prefix: &str) -> u8 {
    let mut hasher = DefaultHasher::new();
    prefix.hash(&mut hasher);
    COLOURS[(hasher.finish() % COLOURS.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 1_795_628_100_123;

    fn line(text: &str, at_unix_ms: u64, stream: OutputStream) -> proto::OutputLine {
        proto::OutputLine {
            at_unix_ms,
            stream: stream.into(),
            text: text.into(),
            cut_bytes: 0,
        }
    }

    fn output(incarnation: u64, lost: u64, next: u64, texts: &[&str]) -> proto::NodeOutput {
        let lines = texts.iter().map(|text| line(text, AT, OutputStream::Stdout));
        proto::NodeOutput {
            node: "gpu-3".into(),
            incarnation,
            workers: vec![proto::WorkerOutput {
                revision: 12,
                stage: 0,
                stage_name: "read".into(),
                replica: 1,
                lost,
                lines: lines.collect(),
                next,
                begin: 0,
            }],
        }
    }

    fn texts(entries: &[Entry]) -> Vec<(&str, u64)> {
        entries
            .iter()
            .map(|entry| (entry.text.as_str(), entry.lost))
            .collect()
    }

    #[test]
    fn each_line_comes_once_and_gaps_are_counted() {
        let mut journal = Journal::of("ocr");
        assert!(journal.is_empty());
        assert_eq!(
            texts(&journal.take(output(1, 0, 2, &["a", "b"]))),
            [("a", 0), ("b", 0)]
        );
        assert_eq!(journal.positions()[0].next, 2);
        // Another leader asks the agent again.
        assert_eq!(
            texts(&journal.take(output(1, 0, 3, &["a", "b", "c"]))),
            [("c", 0)]
        );
        assert_eq!(texts(&journal.take(output(1, 0, 2, &["b"]))), []);
        assert_eq!(journal.positions()[0].next, 3);
        assert_eq!(
            texts(&journal.take(output(1, 4, 9, &["h", "i"]))),
            [("h", 4), ("i", 0)]
        );
        // Another agent's numbers begin anew.
        assert_eq!(texts(&journal.take(output(2, 0, 1, &["a"]))), [("a", 0)]);
    }

    #[test]
    fn lines_that_are_lost_are_told_with_the_next_one() {
        let mut journal = Journal::of("ocr");
        journal.take(output(1, 0, 1, &["a"]));
        assert_eq!(texts(&journal.take(output(1, 3, 4, &[]))), []);
        assert_eq!(texts(&journal.take(output(1, 0, 5, &["e"]))), [("e", 3)]);
    }

    #[test]
    fn a_worker_in_the_place_of_a_forgotten_one_is_read_from_its_beginning() {
        let mut journal = Journal::of("ocr");
        journal.take(output(1, 0, 2, &["a", "b"]));
        let again = |lost, next, texts| {
            let mut output = output(1, lost, next, texts);
            output.workers[0].begin = 500;
            output
        };
        assert_eq!(texts(&journal.take(again(3, 503, &[]))), []);
        assert_eq!(texts(&journal.take(again(0, 504, &["c"]))), [("c", 3)]);
        assert_eq!(
            texts(&journal.take(again(0, 505, &["c", "d"]))),
            [("d", 0)],
            "each line once"
        );
    }

    #[test]
    fn positions_are_as_many_as_may_be_asked_for_and_those_of_workers_that_are_there() {
        let mut journal = Journal::of("ocr");
        let mut take = |revision: u64, replica: u32| {
            let mut said = output(1, 0, 1, &["a"]);
            (said.workers[0].revision, said.workers[0].replica) = (revision, replica);
            journal.take(said);
        };
        take(9, 0);
        for _ in 0..2 {
            take(2, 1);
            take(2, 2);
        }
        take(2, 1);
        let before = 3;
        let new = u32::try_from(MAX_POSITIONS).unwrap() - before + 1;
        (0..new).for_each(|replica| take(3, replica));
        let positions = journal.positions();
        assert_eq!(positions.len(), MAX_POSITIONS);
        let has = |revision, replica| {
            positions
                .iter()
                .any(|at| (at.revision, at.replica) == (revision, replica))
        };
        assert!(has(9, 0), "the newest revision, be it quiet");
        assert!(
            has(2, 1) && !has(2, 2),
            "of the oldest, the one that was quiet for longest"
        );
        assert!(has(3, 0) && has(3, new - 1));
    }

    #[test]
    fn lines_name_their_worker() {
        let mut journal = Journal::of("ocr");
        let mut said = output(1, 2, 5, &["one"]);
        let worker = &mut said.workers[0];
        worker
            .lines
            .push(line("\x1b[31mtwo\x1b[2J", AT - 1, OutputStream::Stderr));
        worker.lines.push(line("ended", AT, OutputStream::Agent));
        worker.lines[0].cut_bytes = 7;
        let mut other = worker.clone();
        (other.replica, other.lost, other.next) = (10, 0, 1);
        other.lines = vec![line("three", AT - 5, OutputStream::Stdout)];
        said.workers.push(other);
        let mut entries = journal.take(said);
        sort(&mut entries);
        let text = Style::new(false, false).render(&entries);
        let expected = "read/10@gpu-3 r12 | three\n\
                        read/1@gpu-3 r12  | two\n\
                        read/1@gpu-3 r12  * 2 lines are lost here: written faster than they were read\n\
                        read/1@gpu-3 r12  | one [7 more bytes]\n\
                        read/1@gpu-3 r12  * ended\n";
        assert_eq!(text, expected);
        let text = Style::new(true, true).render(&entries[1..2]);
        assert!(text.starts_with("2026-11-25T17:35:00.122Z \x1b["), "{text:?}");
        assert!(text.ends_with("\x1b[0m \x1b[31mtwo\x1b[0m\n"), "{text:?}");
        let json = serde_json::to_value(&entries[0]).unwrap();
        assert_eq!(
            (&json["stage"], &json["stream"], &json["at"]),
            (
                &"read".into(),
                &"stdout".into(),
                &"2026-11-25T17:35:00.118Z".into()
            )
        );
    }
}

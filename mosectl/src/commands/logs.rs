//! `mosectl logs`: what workers write, from wherever they run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use mosec_types::{NodeId, PipelineName};
use mosec_wire::control::proto::logs_reply::Part;
use mosec_wire::control::{ControlError, proto};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, Streaming};

use super::deploy::parse_timeout;
use crate::connect::{Cluster, Connection, connect};
use crate::failure::{Exit, Failure, Result, refused};
use crate::report::logs::{Entry, Journal, Style, sort};
use crate::terminal;

/// Lines of each worker without `--tail`: two screens, which hold a traceback with what led to it.
const TAIL: u32 = 100;
/// Most text that is held back to be brought into order. Beyond it lines come as they come.
const MAX_HELD_BYTES: usize = 32 * 1024 * 1024;
/// How long the control plane may be away before this stops following: many elections long.
const SILENCE: Duration = Duration::from_secs(20);
/// How many replicas are named where the one that is asked for has no output.
const NAMED: usize = 10;
/// Time between tries when streams break off at once.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl logs ocr                      the last lines of each worker, and why it was restarted
  mosectl logs ocr -f --stage read      new lines of one stage, as they are written
  mosectl logs ocr --revision 12        of a deployment that has failed
  mosectl logs ocr --since 10m --output json | jq -r 'select(.stream == \"stderr\").text'

Each line begins with STAGE/REPLICA@NODE rREVISION. After it comes '|', or '*' where the node agent says something
about the worker.")]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    /// Only of this stage.
    #[arg(long)]
    stage: Option<String>,
    /// Only of workers on this node.
    #[arg(long)]
    node: Option<NodeId>,
    /// Only of the replica with this number.
    #[arg(long)]
    replica: Option<u32>,
    /// Only of this revision. All of which there is output where absent.
    #[arg(long)]
    revision: Option<u64>,
    /// How many of the last lines of each worker to show, or `all` that are kept. 100, or with --since all, where absent.
    #[arg(long, value_name = "LINES", value_parser = parse_tail)]
    tail: Option<u32>,
    /// Only lines that are at most so old, as 10m.
    #[arg(long, value_name = "AGE", value_parser = parse_timeout)]
    since: Option<Duration>,
    /// Goes on with new lines until it is interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Begins each line with its time.
    #[arg(long, short)]
    timestamps: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// One object a line, described in docs/mosectl.md.
    Json,
}

fn parse_tail(text: &str) -> Result<u32, String> {
    match text {
        "all" => Ok(u32::MAX),
        number => number
            .parse()
            .map_err(|_| format!("expected a number of lines or \"all\", found {number:?}")),
    }
}

impl Args {
    /// `elapsed`: since the beginning, by which what was recent enough then is older now.
    fn request(&self, elapsed: Duration, journal: &Journal) -> proto::LogsRequest {
        let since = self.since.map(|since| since + elapsed);
        let tail = if since.is_some() { u32::MAX } else { TAIL };
        proto::LogsRequest {
            query: Some(proto::LogsQuery {
                pipeline: self.pipeline.to_string(),
                revision: self.revision,
                stage: self.stage.clone().unwrap_or_default(),
                replica: self.replica,
                tail: self.tail.unwrap_or(tail),
                since_ms: since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
                follow: self.follow,
            }),
            node: self.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            seen: journal.positions(),
            caught_up: journal.has_caught_up(),
        }
    }
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect(&args.connection)?;
    let mut printer = Printer::new(&args);
    let mut journal = Journal::of(&args.pipeline);
    let started = Instant::now();
    let mut silence = Silence { since: started };
    loop {
        let request = args.request(started.elapsed(), &journal);
        let (reason, was_heard) = match open(&cluster, request).await {
            Ok(mut stream) => match read(&mut stream, &mut journal, &mut printer).await? {
                End::Complete => return complete(&cluster, &args, &journal, &printer).await,
                End::Unread => return Ok(()),
                End::Broken { reason, was_heard } => (reason, was_heard),
            },
            Err(error @ ControlError::Unavailable { .. }) if !args.follow => return Err(error.into()),
            Err(ControlError::Unavailable { last, .. }) => (last, false),
            Err(error) => {
                let hint = "`mosectl status` lists the pipelines with their stages and nodes";
                return Err(refused(error, &[Code::NotFound], hint));
            }
        };
        if silence.is_too_long(was_heard, Instant::now()) {
            let error = anyhow!("the control plane has not been heard of for {SILENCE:?}: {reason}");
            let hint = "what was shown is complete up to there";
            return Err(Failure::new(Exit::Unreachable, error).hint(hint));
        }
        sleep(PAUSE).await;
    }
}

async fn open(
    cluster: &Cluster,
    request: proto::LogsRequest,
) -> Result<Streaming<proto::LogsReply>, ControlError> {
    cluster.client.logs(request).await
}

/// For how long streams have brought nothing.
struct Silence {
    since: Instant,
}

impl Silence {
    /// Notes that a stream has ended, or that there was none.
    ///
    /// `was_heard`: it had brought something. Then it was there until now, however long ago that was: workers may be quiet
    /// for hours, and whoever reads may pause.
    fn is_too_long(&mut self, was_heard: bool, now: Instant) -> bool {
        if was_heard {
            self.since = now;
        }
        now - self.since > SILENCE
    }
}

/// How a stream ended.
enum End {
    Complete,
    /// Whoever reads standard output has left.
    Unread,
    /// A member has gone, or leads no more: another one knows the rest.
    Broken {
        reason: String,
        /// Whether it had brought something.
        was_heard: bool,
    },
}

/// Prints what a stream brings.
async fn read(
    stream: &mut Streaming<proto::LogsReply>,
    journal: &mut Journal,
    printer: &mut Printer,
) -> Result<End> {
    let mut held = Some(Vec::new());
    let mut bytes = 0;
    let mut was_heard = false;
    let reason = loop {
        let reply = match stream.message().await {
            Ok(Some(reply)) => reply,
            Ok(None) => break "the stream ended".to_owned(),
            Err(status) if is_final(&status) => {
                flush(&mut held, printer).await?;
                return Err(anyhow!("{}", status.message()).into());
            }
            Err(status) => break status.message().to_owned(),
        };
        was_heard = true;
        match reply.part {
            Some(Part::Output(output)) => {
                printer.answered(&output.node);
                let entries = journal.take(output);
                bytes += entries.iter().map(|entry| entry.text.len()).sum::<usize>();
                match &mut held {
                    Some(held) if bytes <= MAX_HELD_BYTES => held.extend(entries),
                    _ => {
                        if !flush(&mut held, printer).await? || !printer.print(entries).await? {
                            return Ok(End::Unread);
                        }
                    }
                }
            }
            Some(Part::Problem(problem)) => printer.problem(problem),
            Some(Part::CaughtUp(_)) => {
                journal.catch_up();
                if !flush(&mut held, printer).await? {
                    return Ok(End::Unread);
                }
                if !printer.follow {
                    return Ok(End::Complete);
                }
            }
            // Of a newer control plane.
            None => {}
        }
    };
    flush(&mut held, printer).await?;
    Ok(End::Broken { reason, was_heard })
}

/// Prints what was held back, in the order of its times; false where nobody reads.
async fn flush(held: &mut Option<Vec<Entry>>, printer: &mut Printer) -> Result<bool> {
    match held.take() {
        Some(mut entries) => {
            sort(&mut entries);
            printer.print(entries).await
        }
        None => Ok(true),
    }
}

/// Whether asking again would not help.
fn is_final(status: &Status) -> bool {
    // A connection that breaks shows as any of the others.
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Unimplemented
    )
}

/// The replicas of which there is output, as `STAGE/REPLICA`, whichever is asked for.
async fn kept(cluster: &Cluster, args: &Args) -> Result<BTreeSet<String>> {
    let mut request = args.request(Duration::ZERO, &Journal::of(&args.pipeline));
    if let Some(query) = &mut request.query {
        query.replica = None;
        query.since_ms = None;
        query.tail = 1;
        query.follow = false;
    }
    let mut stream = open(cluster, request).await?;
    let mut journal = Journal::of(&args.pipeline);
    let mut found = BTreeSet::new();
    while let Some(reply) = stream.message().await? {
        match reply.part {
            Some(Part::Output(output)) => {
                let entries = journal.take(output).into_iter();
                found.extend(entries.map(|entry| format!("{}/{}", entry.stage, entry.replica)));
            }
            Some(Part::CaughtUp(_)) => break,
            Some(Part::Problem(_)) | None => {}
        }
    }
    Ok(found)
}

/// What is said where there is output, and none of the replica that is asked for.
fn other_replicas(replica: u32, pipeline: &PipelineName, kept: &BTreeSet<String>) -> String {
    let some: Vec<_> = kept.iter().take(NAMED).map(String::as_str).collect();
    let more = match kept.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "no output of replica {replica} of {pipeline} is kept; there is that of {}{more}",
        some.join(", ")
    )
}

async fn complete(cluster: &Cluster, args: &Args, journal: &Journal, printer: &Printer) -> Result {
    if !journal.is_empty() {
        return Ok(());
    }
    let problems: Vec<_> = printer
        .problems
        .iter()
        .map(|(node, text)| format!("{node} {text}"))
        .collect();
    if !problems.is_empty() {
        let error = anyhow!(
            "no node has answered with output of {}: {}",
            args.pipeline,
            problems.join(", ")
        );
        return Err(error.into());
    }
    if let Some(replica) = args.replica {
        let kept = kept(cluster, args).await?;
        if !kept.is_empty() {
            return Err(anyhow!(other_replicas(replica, &args.pipeline, &kept)).into());
        }
    }
    terminal::print_error(&format!("no output of {} is kept anywhere\n", args.pipeline));
    Ok(())
}

/// Writes lines to standard output and what is missing to standard error.
struct Printer {
    follow: bool,
    json: bool,
    style: Style,
    /// What was said last about each node that does not answer.
    problems: BTreeMap<String, String>,
}

impl Printer {
    fn new(args: &Args) -> Self {
        Self {
            follow: args.follow,
            json: args.output == Output::Json,
            style: Style::new(terminal::stdout_has_colours(), args.timestamps),
            problems: BTreeMap::new(),
        }
    }

    /// False where nobody reads any more.
    async fn print(&mut self, entries: Vec<Entry>) -> Result<bool> {
        let text = if self.json {
            let lines: Result<Vec<_>, _> = entries.iter().map(serde_json::to_string).collect();
            let lines = lines.context("cannot write JSON")?;
            lines.into_iter().map(|line| line + "\n").collect()
        } else {
            self.style.render(&entries)
        };
        if text.is_empty() {
            return Ok(true);
        }
        // Behind a pager this may wait for long, and the connection is to live on meanwhile.
        let printed = tokio::task::spawn_blocking(move || terminal::print_while_read(&text)).await;
        Ok(printed.context("cannot print")??)
    }

    fn problem(&mut self, problem: proto::NodeProblem) {
        let proto::NodeProblem { node, problem } = problem;
        let told = self.problems.insert(node.clone(), problem.clone());
        if told.as_ref() != Some(&problem) {
            let text = format!("node {node} {problem}: what its workers wrote is missing here");
            terminal::print_error(&format!("{}\n", terminal::printable(&text)));
        }
    }

    /// A node answers: what was said about it is over.
    fn answered(&mut self, node: &str) {
        self.problems.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn request(line: &str) -> proto::LogsRequest {
        let args = Line::try_parse_from(line.split(' ')).unwrap().args;
        args.request(Duration::from_secs(1), &Journal::of("ocr"))
    }

    #[test]
    fn one_who_asks_again_says_that_it_had_caught_up() {
        let args = Line::try_parse_from(["logs", "ocr", "-f"]).unwrap().args;
        let mut journal = Journal::of("ocr");
        assert!(!args.request(Duration::ZERO, &journal).caught_up);
        journal.catch_up();
        assert!(args.request(Duration::ZERO, &journal).caught_up);
    }

    #[test]
    fn silence_is_counted_from_the_end_of_the_last_stream_that_was_heard() {
        let started = Instant::now();
        let mut silence = Silence { since: started };
        let broke_off = started + Duration::from_secs(3600);
        assert!(!silence.is_too_long(true, broke_off), "the workers were quiet");
        assert!(!silence.is_too_long(false, broke_off + SILENCE));
        assert!(silence.is_too_long(false, broke_off + SILENCE + PAUSE));
        let mut never = Silence { since: started };
        assert!(never.is_too_long(false, started + SILENCE + PAUSE));
    }

    #[test]
    fn a_replica_without_output_is_told_with_those_that_have_some() {
        let kept = (10..22).map(|number| format!("read/{number}")).collect();
        let text = other_replicas(77, &PipelineName::new("echo").unwrap(), &kept);
        assert!(
            text.starts_with("no output of replica 77 of echo is kept; there is that of read/10, ")
                && text.ends_with("read/19 and 2 more"),
            "{text}"
        );
    }

    #[test]
    fn the_flags_say_what_is_asked_for() {
        let query = |line| request(line).query.unwrap();
        assert_eq!(query("logs ocr").tail, TAIL);
        assert_eq!(query("logs ocr --tail 0 -f").tail, 0);
        let since = query("logs ocr --since 10m");
        assert_eq!((since.tail, since.since_ms), (u32::MAX, Some(601_000)));
        assert_eq!(query("logs ocr --since 10m --tail 5").tail, 5);
        assert_eq!(query("logs ocr --tail all").tail, u32::MAX);
        let one = request("logs ocr --node gpu-3 --stage read --replica 2 --revision 12");
        assert_eq!(one.node, "gpu-3");
        let one = one.query.unwrap();
        assert_eq!(
            (one.stage.as_str(), one.replica, one.revision, one.follow),
            ("read", Some(2), Some(12), false)
        );
        assert!(Line::try_parse_from(["logs", "ocr", "--tail", "-1"]).is_err());
        assert!(Line::try_parse_from(["logs", "ocr", "--since", "0s"]).is_err());
    }
}

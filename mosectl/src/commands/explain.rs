//! `mosectl explain`: what an error of a request means, and what helps.

use mosec_types::ErrorCode;

use crate::failure::{Failure, Result};
use crate::nearest::nearest;
use crate::report::table::table;
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl explain no_replica               by its name, as in metrics and logs
  mosectl explain 503                      by its status")]
pub(crate) struct Args {
    /// Name of the error, as in metrics and logs (no_replica; no-replica and NoReplica are the same), or an HTTP status
    /// (503). All of them where absent.
    code: Option<String>,
}

pub(crate) fn run(args: Args) -> Result {
    let Some(wanted) = args.code else {
        return Ok(terminal::print(&list())?);
    };
    let texts: Vec<_> = find(&wanted)?.into_iter().map(explain).collect();
    Ok(terminal::print(&texts.join("\n"))?)
}

/// The errors with this name or status.
fn find(wanted: &str) -> Result<Vec<ErrorCode>> {
    let status: Option<u16> = wanted.trim().parse().ok();
    let name = letters(wanted);
    let matches = |code: &ErrorCode| letters(code.name()) == name || status == Some(code.http_status());
    let found: Vec<_> = ErrorCode::all().filter(matches).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let failure = match status {
        Some(status) => Failure::usage(format!("no error is answered with {status}")),
        None => Failure::usage(format!("no error is called {wanted:?}")),
    };
    let names = ErrorCode::all().map(ErrorCode::name);
    Err(match nearest(&wanted.replace(['-', ' '], "_"), names) {
        Some(name) => failure.hint(format!("did you mean {name}? `mosectl explain` lists them all")),
        None => failure.hint("`mosectl explain` lists them"),
    })
}

/// A name without what differs where it was read: case, and what is between its words.
fn letters(name: &str) -> String {
    let letters = name.chars().filter(|c| c.is_ascii_alphanumeric());
    letters.map(|c| c.to_ascii_lowercase()).collect()
}

fn list() -> String {
    let mut table = table(&["ERROR", "HTTP", "RETRIED", "ANSWER"]);
    for code in ErrorCode::all() {
        let meaning = code.meaning();
        table.add_row([
            meaning.name,
            &meaning.http_status.to_string(),
            if meaning.retryable { "yes" } else { "no" },
            if meaning.text.is_empty() {
                "-"
            } else {
                meaning.text
            },
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn explain(code: ErrorCode) -> String {
    let meaning = code.meaning();
    let retried = match code {
        ErrorCode::ReplicaLost => {
            "by the cluster, up to the stage's attempts; by a client where it may run twice"
        }
        _ if meaning.retryable => {
            "sent again by the cluster where the stage's delivery allows; a client may send it again, too"
        }
        _ => "not sent again by the cluster",
    };
    let answer = match meaning.text {
        "" => String::new(),
        text => format!("  answer:  {text}\n"),
    };
    format!(
        "{} (HTTP {})\n{answer}  retried: {retried}\n  means:   {}\n  helps:   {}\n",
        meaning.name,
        meaning.http_status,
        means(code),
        helps(code)
    )
}

fn means(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Ok => "the worker answered",
        ErrorCode::BadRequest => {
            "the worker could not read the request, or refused it (ClientError, DecodingError)"
        }
        ErrorCode::Validation => "the worker found the request invalid (ValidationError)",
        ErrorCode::Worker => "the worker failed and said why (ServerError, EncodingError)",
        ErrorCode::Inference => {
            "forward raised another exception; its traceback is in the worker's log alone"
        }
        ErrorCode::ForwardTimeout => "one forward took longer than its stage's timeout",
        ErrorCode::DeadlineExceeded => {
            "the answer was not there within the pipeline's timeout, waiting included"
        }
        ErrorCode::QueueFull => "the first stage's queue has as many requests as capacity allows",
        ErrorCode::NoReplica => "no replica of a stage has been ready for some seconds",
        ErrorCode::Draining => "the gateway is being stopped",
        ErrorCode::ReplicaLost => {
            "a node was lost under each attempt; `delivery: at_most_once` and streams that have begun have one"
        }
        ErrorCode::WorkerCrashed => "the worker process died under the request, each time it was tried",
        ErrorCode::UnknownRoute => "no pipeline that serves has this path",
        ErrorCode::MethodNotAllowed => "the path takes POST alone",
        ErrorCode::BodyTooLarge => "the body is larger than max_request_size",
        ErrorCode::BodyUnreadable => "the body broke off, stood still or could not be decompressed",
        ErrorCode::Cancelled => "the client left before its answer",
        ErrorCode::Internal => "a fault of this system",
        ErrorCode::UnknownStage => "the node had not heard of the revision yet, or has forgotten it",
        ErrorCode::ArenaFull => "a payload found no room in the node's shared memory",
        ErrorCode::BodyMemory => "the gateway holds as many bytes of request bodies as it may",
        ErrorCode::UnsupportedCoding => "the body has a content-encoding other than gzip and zstd",
    }
}

fn helps(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Ok | ErrorCode::Cancelled => "nothing has to",
        ErrorCode::BadRequest | ErrorCode::Validation | ErrorCode::BodyUnreadable => "mend the request",
        ErrorCode::Worker | ErrorCode::Inference | ErrorCode::WorkerCrashed => {
            "`mosectl status` shows restarts and last errors; the worker's log has the traceback"
        }
        ErrorCode::ForwardTimeout => {
            "a longer timeout of the stage, a smaller max_batch_size, or a faster forward"
        }
        ErrorCode::DeadlineExceeded | ErrorCode::QueueFull => {
            "more replicas (`mosectl scale`), or fewer requests; the header mosec-trace shows where the time goes"
        }
        ErrorCode::NoReplica => "`mosectl status` shows why the replicas are not ready",
        ErrorCode::Draining | ErrorCode::UnknownStage => "another try, at another gateway",
        ErrorCode::ReplicaLost => {
            "`mosectl node list` shows which nodes are down; `delivery: retry` where the stage may run twice"
        }
        ErrorCode::UnknownRoute => "`mosectl status` lists the routes",
        ErrorCode::MethodNotAllowed => "POST",
        ErrorCode::BodyTooLarge => "a larger max_request_size; 64 MiB is the most on a cluster",
        ErrorCode::Internal => "a report, with the log of the gateway and the agent",
        ErrorCode::ArenaFull => "a larger --arena-mib of the agent, and as much of /dev/shm",
        ErrorCode::BodyMemory => "fewer large requests at a time, or more gateways",
        ErrorCode::UnsupportedCoding => "a body as it is, or one of gzip and zstd with --compression",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_explained_on_one_screen() {
        for code in ErrorCode::all() {
            let text = explain(code);
            assert!(
                text.lines().count() <= 5 && text.lines().all(|line| line.len() <= 120),
                "{text}"
            );
        }
        assert!(list().contains("no_replica") && list().contains("503"));
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        for wanted in [
            "no_replica",
            "no-replica",
            "NO_REPLICA",
            "NoReplica",
            "no replica",
        ] {
            assert_eq!(find(wanted).unwrap(), [ErrorCode::NoReplica], "{wanted}");
        }
        let unavailable = find("503").unwrap();
        assert!(unavailable.contains(&ErrorCode::Draining) && unavailable.len() > 2);
    }

    #[test]
    fn a_name_that_is_almost_right_is_told() {
        let hint = |wanted| find(wanted).unwrap_err().to_string();
        for wanted in ["no_replca", "No-Replca"] {
            let text = hint(wanted);
            assert!(
                text.ends_with("hint: did you mean no_replica? `mosectl explain` lists them all"),
                "{text}"
            );
        }
        assert!(hint("xyz").ends_with("hint: `mosectl explain` lists them"));
        assert!(hint("302").starts_with("no error is answered with 302"));
    }

    /// What is sent again under one setting is not said never to be.
    #[test]
    fn a_lost_replica_is_told_without_contradiction() {
        let text = explain(ErrorCode::ReplicaLost);
        assert!(!text.contains("may not be sent again"), "{text}");
        assert!(
            text.contains("attempts") && text.contains("at_most_once"),
            "{text}"
        );
    }
}

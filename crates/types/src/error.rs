//! The one table from what went wrong to what a client, a peer and a retry policy see.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What happened to a request, as every hop reports it.
///
/// The number is the wire's: never reuse or renumber one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u16)]
pub enum ErrorCode {
    /// The worker answered.
    Ok = 0,
    /// The worker refused the request (`ClientError`, `DecodingError`).
    BadRequest = 1,
    /// The worker found the request invalid (`ValidationError`).
    Validation = 2,
    /// The worker failed in a way its author named (`ServerError`, `EncodingError`, `MosecError`); details are shown.
    Worker = 3,
    /// The worker raised anything else; details are in its log only.
    Inference = 4,
    /// `forward` overran the stage's own time limit.
    ForwardTimeout = 5,
    /// The request's deadline passed.
    DeadlineExceeded = 6,
    /// The first stage's queue is full.
    QueueFull = 7,
    /// No replica of a stage is ready.
    NoReplica = 8,
    /// The process is draining.
    Draining = 9,
    /// The replica or its node was lost before it answered; the dispatcher that has custody may try again.
    ReplicaLost = 10,
    /// The worker process died each time it was given this request.
    WorkerCrashed = 11,
    /// No route has this path.
    UnknownRoute = 12,
    /// The path exists, the method does not.
    MethodNotAllowed = 13,
    /// The body is larger than the limit.
    BodyTooLarge = 14,
    /// The body could not be read.
    BodyUnreadable = 15,
    /// The client left before the answer.
    Cancelled = 16,
    /// A promise inside the system was broken; always a bug.
    Internal = 17,
    /// The stage or revision is not known where the batch arrived; its topology is older or newer.
    UnknownStage = 18,
    /// The answer or payload does not fit into the node's shared memory.
    ArenaFull = 19,
    /// The gateway has no memory left for request bodies.
    BodyMemory = 20,
    /// The body's content coding is not known to the gateway.
    UnsupportedCoding = 21,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    pub code: ErrorCode,
    /// Stable word for labels and logs.
    pub name: &'static str,
    pub http_status: u16,
    /// Body for the client where the error carries no text of its own. MOSEC's texts, which its clients match on.
    pub text: &'static str,
    /// Whether the dispatcher that has custody may send the request again.
    pub retryable: bool,
}

macro_rules! table {
    ($($code:ident, $name:literal, $http:literal, $retryable:literal, $text:literal;)*) => {
        const TABLE: &[Meaning] = &[$(Meaning {
            code: ErrorCode::$code,
            name: $name,
            http_status: $http,
            text: $text,
            retryable: $retryable,
        }),*];
    };
}

table! {
    // code           name                  HTTP retry  text
    Ok,               "ok",                 200, false, "";
    BadRequest,       "bad_request",        400, false, "bad request";
    Validation,       "validation",         422, false, "request validation error";
    Worker,           "worker",             500, false, "internal error";
    Inference,        "inference",          500, false, "inference internal error";
    ForwardTimeout,   "forward_timeout",    408, false, "mosec timeout error: forward timeout";
    DeadlineExceeded, "deadline_exceeded",  408, false, "inference timeout";
    QueueFull,        "queue_full",         429, false, "too many request: task queue is full";
    NoReplica,        "no_replica",         503, true,  "no ready replica";
    Draining,         "draining",           503, true,  "gracefully shutting down";
    ReplicaLost,      "replica_lost",       503, true,  "the replica was lost before it answered";
    WorkerCrashed,    "worker_crashed",     500, false, "the worker process died while handling this request";
    UnknownRoute,     "unknown_route",      404, false, "";
    MethodNotAllowed, "method_not_allowed", 405, false, "";
    BodyTooLarge,     "body_too_large",     413, false, "request body is too large";
    BodyUnreadable,   "body_unreadable",    400, false, "request body could not be read";
    Cancelled,        "cancelled",          499, false, "cancelled";
    Internal,         "internal",           500, false, "mosec unknown error";
    UnknownStage,     "unknown_stage",      503, true,  "the stage is not known on this node";
    ArenaFull,        "arena_full",         503, true,  "the node's shared memory is full";
    BodyMemory,       "body_memory",        503, true,  "too many request bodies in memory";
    UnsupportedCoding, "unsupported_coding", 415, false, "";
}

impl ErrorCode {
    /// Every code, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.code)
    }

    /// The code's row of the table.
    pub fn meaning(self) -> &'static Meaning {
        &TABLE[self as usize]
    }

    /// The code with this number on the wire, if there is one.
    pub fn from_wire(number: u16) -> Option<Self> {
        TABLE.get(usize::from(number)).map(|row| row.code)
    }

    pub fn to_wire(self) -> u16 {
        self as u16
    }

    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }

    pub fn name(self) -> &'static str {
        self.meaning().name
    }

    pub fn http_status(self) -> u16 {
        self.meaning().http_status
    }

    pub fn text(self) -> &'static str {
        self.meaning().text
    }

    pub fn is_retryable(self) -> bool {
        self.meaning().retryable
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_indexed_by_wire_number() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.code as usize, index, "{}", row.name);
            assert_eq!(ErrorCode::from_wire(row.code.to_wire()), Some(row.code));
        }
        assert_eq!(ErrorCode::from_wire(u16::MAX), None);
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = ErrorCode::all().map(ErrorCode::name).collect();
        assert_eq!(names.len(), TABLE.len());
    }
}

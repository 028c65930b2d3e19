//! One stage of a pipeline.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::spread::{self, Spread};
use super::{Problems, millis};
use crate::{Needs, StageIndex};

/// Most replicas of one stage.
pub const MAX_REPLICAS: u32 = 4096;
/// Largest batch; the item count of a frame is 16 bits wide.
pub const MAX_BATCH_SIZE: u32 = 65_535;
/// Most request headers that one stage may ask for.
pub const MAX_STAGE_HEADERS: usize = 64;
/// Most attempts: losses are counted in eight bits.
pub const MAX_ATTEMPTS: u32 = 255;

/// MOSEC's default `--timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(3000);
/// MOSEC's default `--wait`, the batch window where a stage gives none.
pub const DEFAULT_WAIT: Duration = Duration::from_millis(10);
/// Default of [`StageSpec::attempts`]: one try, and two more for two unlucky losses in a row.
pub const DEFAULT_ATTEMPTS: u32 = 3;
/// Content type of a MOSEC worker that sets none.
pub const DEFAULT_MIME: &str = "application/json";

/// One stage: a worker class, how many processes of it, and how requests are batched for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// Unique in the pipeline. MOSEC's `Class_n` where the user gives none.
    pub name: String,
    /// Module of the worker class, `__main__` for the source's main script.
    pub module: String,
    /// Qualified name of the worker class.
    pub class: String,
    pub replicas: u32,
    pub max_batch_size: u32,
    /// Longest time a batch waits for more requests.
    #[serde(with = "millis")]
    pub max_wait: Duration,
    #[serde(default)]
    pub batching: Batching,
    /// Longest time of one `forward` call.
    #[serde(with = "millis")]
    pub timeout: Duration,
    /// Empty, or one set of variables for each replica.
    #[serde(default)]
    pub env: Vec<BTreeMap<String, String>>,
    /// Labels a node must have to run replicas of this stage. `node` is every node's own name.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub delivery: Delivery,
    /// Most times a request is given to a replica of this stage when replicas are lost under it.
    pub attempts: u32,
    /// Content type of the answers, where this is a route's last stage.
    pub mime: String,
    /// Whether its class is an `SSEWorker`: where this is a route's last stage, answers are streams of events.
    #[serde(default)]
    pub streaming: bool,
    /// Names of the request headers, in lower case, that its workers are told of.
    #[serde(default)]
    pub request_headers: Vec<String>,
    /// What each replica needs of its node.
    #[serde(default)]
    pub needs: Needs,
    /// What its replicas are spread over, the most important first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    /// Stages whose replicas, of the same revision, are never on a node with one of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<StageIndex>,
}

/// When a batch that is not full leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// After `max_wait`, to a replica that has nothing to do. MOSEC's way.
    #[default]
    Window,
    /// At once where a replica has nothing to do. Otherwise it waits for one, but no longer than `max_wait`, than a batch
    /// takes, and than its first deadline allows.
    Adaptive,
}

/// What may be done with a request whose replica was lost before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Give it to another replica, at most `attempts` times in all.
    #[default]
    Retry,
    /// Fail it: the stage must never run twice for one request.
    AtMostOnce,
}

impl StageSpec {
    /// A stage of one replica, with MOSEC's defaults.
    pub fn new(name: impl Into<String>, module: impl Into<String>, class: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            module: module.into(),
            class: class.into(),
            replicas: 1,
            max_batch_size: 1,
            max_wait: DEFAULT_WAIT,
            batching: Batching::default(),
            timeout: DEFAULT_TIMEOUT,
            env: Vec::new(),
            node_labels: BTreeMap::new(),
            delivery: Delivery::default(),
            attempts: DEFAULT_ATTEMPTS,
            mime: DEFAULT_MIME.into(),
            streaming: false,
            request_headers: Vec::new(),
            needs: Needs::default(),
            spread: Vec::new(),
            anti_affinity: Vec::new(),
        }
    }

    /// The variables of one replica's process, beyond those of its node.
    ///
    /// `replica` counts from one, as `worker_id` does.
    pub fn env_of(&self, replica: crate::ReplicaId) -> Option<&BTreeMap<String, String>> {
        let own = self.env.get((replica.0 as usize).checked_sub(1)?);
        own.or_else(|| self.env.first().filter(|_| self.has_one_env()))
    }

    /// Whether its replicas all have the same variables, so that there can be any number of them.
    pub fn has_one_env(&self) -> bool {
        self.env.windows(2).all(|pair| pair[0] == pair[1])
    }

    pub(super) fn validate(&self, at: &str, found: &mut Problems) {
        found.check(
            !self.name.is_empty() && self.name.len() <= 200,
            &format!("{at}.name"),
            || "expected a name of 1 to 200 bytes".into(),
        );
        found.check(!self.module.is_empty(), &format!("{at}.module"), || {
            "expected a module's name".into()
        });
        found.check(!self.class.is_empty(), &format!("{at}.class"), || {
            "expected a class's name".into()
        });
        found.check(
            (1..=MAX_REPLICAS).contains(&self.replicas),
            &format!("{at}.replicas"),
            || format!("expected 1 to {MAX_REPLICAS}, found {}", self.replicas),
        );
        found.check(
            (1..=MAX_BATCH_SIZE).contains(&self.max_batch_size),
            &format!("{at}.max_batch_size"),
            || format!("expected 1 to {MAX_BATCH_SIZE}, found {}", self.max_batch_size),
        );
        found.check(!self.timeout.is_zero(), &format!("{at}.timeout"), || {
            "expected a time above zero".into()
        });
        found.check(
            (1..=MAX_ATTEMPTS).contains(&self.attempts),
            &format!("{at}.attempts"),
            || format!("expected 1 to {MAX_ATTEMPTS}, found {}", self.attempts),
        );
        found.check(
            self.env.is_empty() || self.env.len() == self.replicas as usize,
            &format!("{at}.env"),
            || {
                format!(
                    "expected one set for each of the {} replicas, found {}",
                    self.replicas,
                    self.env.len()
                )
            },
        );
        self.needs.validate(at, found);
        spread::validate(&self.spread, &format!("{at}.spread"), found);
        self.validate_headers(&format!("{at}.request_headers"), found);
    }

    fn validate_headers(&self, at: &str, found: &mut Problems) {
        let names = &self.request_headers;
        found.check(names.len() <= MAX_STAGE_HEADERS, at, || {
            format!(
                "expected at most {MAX_STAGE_HEADERS} names, found {}",
                names.len()
            )
        });
        let wrong = names.iter().find(|name| !is_header_name(name));
        found.check(wrong.is_none(), at, || {
            format!(
                "expected names of headers in lower case, found {:?}",
                wrong.map_or("", String::as_str)
            )
        });
    }
}

/// Whether `name` is a field name of HTTP as it is compared: a token without capitals (RFC 9110, section 5.6.2).
pub(crate) fn is_header_name(name: &str) -> bool {
    let is_token =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=256).contains(&name.len()) && name.bytes().all(is_token)
}

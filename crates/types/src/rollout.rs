//! How a revision takes over from the one that serves. The words are those of Nomad's `update` block.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spec::{MAX_REPLICAS, Problems, is_header_name, millis};

/// Default of [`CanarySpec::weight`], in percent.
pub const DEFAULT_CANARY_WEIGHT: u32 = 10;
/// Default of [`RolloutSpec::min_healthy_time`] where there is a canary: Nomad's. Without one, ready is enough.
pub const DEFAULT_CANARY_TIME: Duration = Duration::from_secs(10);
/// Default of [`Bounds::min_requests`]: with fewer, one unlucky request would decide.
pub const DEFAULT_MIN_REQUESTS: u32 = 50;
/// The whole, where shares are counted in ten-thousandths.
pub const WHOLE: u32 = 10_000;
/// Longest text of a header match.
const MAX_HEADER_TEXT: usize = 1024;

/// How replicas of a new revision replace those of the one that serves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutSpec {
    /// Most replicas of each stage that are replaced at a time; all at once where zero.
    pub max_parallel: u32,
    /// How long all new replicas have to be ready before the rollout goes on.
    #[serde(with = "millis")]
    pub min_healthy_time: Duration,
    /// Longest time in which no further replica of a step becomes ready; such an update fails. Absent: each step as a
    /// whole has the deployment's own deadline.
    #[serde(with = "optional_millis", skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Duration>,
    /// Part of the revision that takes some of the requests and waits to be promoted.
    pub canary: Option<CanarySpec>,
    pub bounds: Bounds,
}

/// The part of a new revision that is tried first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanarySpec {
    /// Replicas of each stage; zero for all of them, which makes the update blue/green.
    pub replicas: u32,
    /// Percent of the pipeline's requests that it takes.
    pub weight: u32,
    /// Requests that go to it whatever the weight.
    #[serde(default)]
    pub header: Option<HeaderMatch>,
    /// Goes on by itself once it has held its bounds for [`RolloutSpec::min_healthy_time`].
    #[serde(default)]
    pub auto_promote: bool,
}

/// A request header and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: String,
    pub value: String,
}

/// What a new revision's requests have to keep to while another one still serves. Breaking one reverts the update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// Most requests that may fail for the service's or the cluster's fault, in ten-thousandths.
    pub max_errors: Option<u32>,
    /// Longest time within which 99 of 100 requests are answered, streams with their first event.
    #[serde(with = "optional_millis")]
    pub max_p99: Option<Duration>,
    /// Nothing is judged by fewer requests than these.
    pub min_requests: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_errors: None,
            max_p99: None,
            min_requests: DEFAULT_MIN_REQUESTS,
        }
    }
}

impl Bounds {
    pub fn is_empty(&self) -> bool {
        self.max_errors.is_none() && self.max_p99.is_none()
    }
}

impl RolloutSpec {
    pub(crate) fn validate(&self, found: &mut Problems) {
        let deadline = self.progress_deadline;
        found.check(
            deadline.is_none_or(|time| !time.is_zero()),
            "rollout.progress_deadline",
            || "expected a time above zero".into(),
        );
        if let Some(canary) = &self.canary {
            found.check(canary.weight <= 100, "rollout.canary.weight", || {
                format!("expected 0% to 100%, found {}%", canary.weight)
            });
            found.check(canary.replicas <= MAX_REPLICAS, "rollout.canary.replicas", || {
                format!("expected at most {MAX_REPLICAS}, found {}", canary.replicas)
            });
            if let Some(HeaderMatch { name, value }) = &canary.header {
                found.check(is_header_name(name), "rollout.canary.header", || {
                    format!("expected the name of a header in lower case, found {name:?}")
                });
                let is_plain =
                    value.len() <= MAX_HEADER_TEXT && value.bytes().all(|b| (0x20..0x7f).contains(&b));
                found.check(is_plain, "rollout.canary.header", || {
                    format!("expected at most {MAX_HEADER_TEXT} printable ASCII characters, found {value:?}")
                });
            }
        }
        let bounds = &self.bounds;
        found.check(
            bounds.max_errors.is_none_or(|most| most <= WHOLE),
            "rollout.bounds.max_error_rate",
            || "expected 0% to 100%".into(),
        );
        found.check(
            bounds.max_p99.is_none_or(|most| !most.is_zero()),
            "rollout.bounds.max_p99",
            || "expected a time above zero".into(),
        );
        found.check(bounds.min_requests >= 1, "rollout.bounds.min_requests", || {
            "expected at least 1".into()
        });
    }
}

mod optional_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        value.map(millis).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_says_which_key_is_wrong() {
        let canary = CanarySpec {
            replicas: 1,
            weight: 10,
            header: None,
            auto_promote: false,
        };
        let with = |canary| RolloutSpec {
            canary: Some(canary),
            ..Default::default()
        };
        let header = |name: &str, value: &str| {
            with(CanarySpec {
                header: Some(HeaderMatch {
                    name: name.into(),
                    value: value.into(),
                }),
                ..canary.clone()
            })
        };
        let place = |spec: RolloutSpec| {
            let mut found = Problems::up_to(1);
            spec.validate(&mut found);
            found.into_result().map_err(|error| error.place)
        };
        assert_eq!(place(header("x-canary", "1")), Ok(()));
        let bounds = |bounds| RolloutSpec {
            bounds,
            ..Default::default()
        };
        let heavy = with(CanarySpec {
            weight: 101,
            ..canary.clone()
        });
        let errors = Bounds {
            max_errors: Some(WHOLE + 1),
            ..Default::default()
        };
        let nothing = Bounds {
            min_requests: 0,
            ..Default::default()
        };
        let no_time = RolloutSpec {
            progress_deadline: Some(Duration::ZERO),
            ..Default::default()
        };
        let cases = [
            (no_time, "rollout.progress_deadline"),
            (heavy, "rollout.canary.weight"),
            (header("X-Canary", "1"), "rollout.canary.header"),
            (header("x", "a\nb"), "rollout.canary.header"),
            (bounds(errors), "rollout.bounds.max_error_rate"),
            (bounds(nothing), "rollout.bounds.min_requests"),
        ];
        for (spec, expected) in cases {
            assert_eq!(place(spec), Err(expected.to_owned()));
        }
    }

    #[test]
    fn it_is_the_same_after_json() {
        let spec = RolloutSpec {
            max_parallel: 2,
            min_healthy_time: Duration::from_millis(1500),
            progress_deadline: Some(Duration::from_secs(600)),
            canary: None,
            bounds: Bounds {
                max_p99: Some(Duration::from_millis(250)),
                ..Default::default()
            },
        };
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<RolloutSpec>(&json).unwrap(), spec);
        assert_eq!(
            serde_json::from_str::<RolloutSpec>("{}").unwrap(),
            RolloutSpec::default()
        );
    }
}

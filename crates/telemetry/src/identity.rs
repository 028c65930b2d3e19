//! The end of a process's certificate, as a series.

use std::time::UNIX_EPOCH;

use mosec_wire::tls::LiveIdentity;
use prometheus::IntGauge;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::series::{Kind, Series};

/// Registers `mosec_certificate_expiry_timestamp_seconds`: when the certificate that is current expires, in seconds since
/// 1970. It is renewed when a third of its lifetime is left, so that less is worth an alert.
pub fn register_identity(series: &Series, identity: &LiveIdentity) -> prometheus::Result<()> {
    let (gauge, identity) = (gauge()?, identity.clone());
    series.add(Kind::Gauge, Expiry { gauge, identity }).map(drop)
}

/// Registers the same without a certificate, for what it says of itself alone.
pub(crate) fn describe_identity(series: &Series) -> prometheus::Result<()> {
    series.add(Kind::Gauge, gauge()?).map(drop)
}

fn gauge() -> prometheus::Result<IntGauge> {
    IntGauge::new(
        "mosec_certificate_expiry_timestamp_seconds",
        "When this process's certificate expires, in seconds since 1970.",
    )
}

/// Reads the date whenever it is asked.
#[derive(Clone)]
struct Expiry {
    gauge: IntGauge,
    identity: LiveIdentity,
}

impl Collector for Expiry {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let not_after = self.identity.current().validity().not_after;
        let since = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.gauge.set(i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        self.gauge.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use mosec_wire::tls::{ClusterCa, Role, Validity};

    use super::*;

    #[test]
    fn the_series_follows_the_identity() {
        let ca = ClusterCa::create().unwrap();
        let issue = |seconds| {
            let validity = Validity::starting(SystemTime::now(), Duration::from_secs(seconds));
            ca.issue_for(Role::Agent, "a", validity).unwrap()
        };
        let (identity, series) = (LiveIdentity::from(issue(100)), Series::default());
        register_identity(&series, &identity).unwrap();
        let value = || {
            series.registry().gather()[0].get_metric()[0]
                .get_gauge()
                .get_value()
        };
        let before = value();
        identity.replace(issue(1100)).unwrap();
        assert!((999.0..=1001.0).contains(&(value() - before)));
    }
}

//! The end of a process's certificate, as a series.

use std::time::UNIX_EPOCH;

use mosec_wire::tls::LiveIdentity;

use crate::series::{Series, whole};

const NAME: &str = "mosec_certificate_expiry_timestamp_seconds";
const HELP: &str = "When this process's certificate expires, in seconds since 1970.";

/// Registers `mosec_certificate_expiry_timestamp_seconds`: when the certificate that is current expires, in seconds since
/// 1970. It is renewed when a third of its lifetime is left, so that less is worth an alert.
pub fn register_identity(series: &Series, identity: &LiveIdentity) -> prometheus::Result<()> {
    let identity = identity.clone();
    series.gauge_read(NAME, HELP, move || {
        let not_after = identity.current().validity().not_after;
        let since = not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
        whole(since.as_secs())
    })
}

/// Registers the same without a certificate, for what it says of itself alone.
pub(crate) fn describe_identity(series: &Series) -> prometheus::Result<()> {
    series.gauge(NAME, HELP).map(drop)
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

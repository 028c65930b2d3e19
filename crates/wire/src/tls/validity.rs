//! When a certificate is good, and when it is to be replaced.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::TlsError;

/// A certificate that is not accepted yet is as bad as none: certificates begin in the past by so much of their
/// lifetime, so that hosts whose clocks are behind accept them.
const SKEW_SHARE: u32 = 10;
/// Clocks that are behind by more are to be set right.
const LONGEST_SKEW: Duration = Duration::from_secs(24 * 60 * 60);
/// Renewals are spread over so much of the lifetime, so that processes that started together do not renew together.
const SPREAD_SHARE: f64 = 0.05;
/// Longest sleep before the clock is looked at again: it may have been set, or the host suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);

/// From when until when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What is to be done about a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It is young: look again after this time.
    Later(Duration),
    Now,
    /// It is too late: nobody accepts it any more.
    Expired,
}

impl Validity {
    /// Of a certificate that is made now and good for `lifetime`.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            not_before: now - (lifetime / SKEW_SHARE).min(LONGEST_SKEW),
            not_after: now + lifetime,
        }
    }

    /// What a certificate says.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| TlsError::unusable("certificate", error))?;
        let validity = parsed.validity();
        let time = |timestamp: i64| {
            let since = Duration::from_secs(timestamp.unsigned_abs());
            let time = if timestamp < 0 {
                SystemTime::UNIX_EPOCH.checked_sub(since)
            } else {
                SystemTime::UNIX_EPOCH.checked_add(since)
            };
            time.ok_or_else(|| TlsError::unusable("certificate", "its dates are out of range"))
        };
        Ok(Self {
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
        })
    }

    pub fn lifetime(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// When two thirds of the lifetime are over, a renewal is due; `draw`, at random from 0 to 1, puts it off a little.
    pub fn due(&self, now: SystemTime, draw: f64) -> Due {
        if now >= self.not_after {
            return Due::Expired;
        }
        let lifetime = self.lifetime();
        let due = self.not_before + lifetime * 2 / 3 + lifetime.mul_f64(SPREAD_SHARE * draw.clamp(0.0, 1.0));
        match due.duration_since(now) {
            Ok(left) if !left.is_zero() => Due::Later(left.min(LONGEST_SLEEP)),
            _ => Due::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    #[test]
    fn a_renewal_is_due_when_two_thirds_are_over() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * DAY);
        let validity = Validity {
            not_before: start,
            not_after: start + Duration::from_secs(90 * DAY),
        };
        let after = |days: u64| validity.due(start + Duration::from_secs(days * DAY), 0.0);
        // The clock is looked at every hour at least.
        assert_eq!(after(0), Due::Later(LONGEST_SLEEP));
        assert_eq!(after(59), Due::Later(LONGEST_SLEEP));
        assert_eq!(after(60), Due::Now);
        assert_eq!(after(89), Due::Now);
        assert_eq!(after(90), Due::Expired);
        let almost = start + Duration::from_secs(60 * DAY - 30);
        assert_eq!(validity.due(almost, 0.0), Due::Later(Duration::from_secs(30)));
        let late = start + Duration::from_secs(60 * DAY);
        assert_eq!(validity.due(late, 1.0), Due::Later(LONGEST_SLEEP));
        assert_eq!(validity.due(start + Duration::from_secs(65 * DAY), 1.0), Due::Now);
    }

    #[test]
    fn short_certificates_begin_a_little_in_the_past() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let short = Validity::starting(now, Duration::from_secs(30));
        assert_eq!(short.lifetime(), Duration::from_secs(33));
        assert!(matches!(short.due(now, 0.0), Due::Later(left) if left == Duration::from_secs(19)));
        let long = Validity::starting(now, Duration::from_secs(365 * DAY));
        assert_eq!(long.lifetime(), Duration::from_secs(366 * DAY));
    }
}

//! Times and sizes as people write them.

use std::time::Duration;

/// Units of time, in microseconds.
const TIMES: &[(&str, u64)] = &[
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
];
/// Units of size, in bytes.
const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// Reads a time as `10ms`, `1.5s`, `2m` or `1h`; zero needs no unit.
///
/// Errors: what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let micros = parse(text, TIMES).ok_or("expected a time as 10ms, 1.5s, 2m or 1h")?;
    // The wire and MOSEC both count milliseconds: a shorter time would silently become another one.
    if micros % 1000 != 0 {
        return Err("expected a time in whole milliseconds".into());
    }
    Ok(Duration::from_micros(micros))
}

/// Reads a size as `10MiB`, `64KiB`, `1GB` or a number of bytes.
///
/// Errors: what was expected.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, SIZES).ok_or_else(|| "expected a size as 512KiB, 10MiB or a number of bytes".into())
}

/// Reads a decimal number as a count of parts: `0.25` of 100 parts is 25.
///
/// Errors: what was expected.
pub fn parse_parts(text: &str, whole: u64) -> Result<u32, String> {
    let parts = parse(text, &[("", whole)]).and_then(|parts| u32::try_from(parts).ok());
    parts.ok_or_else(|| {
        format!(
            "expected a number with at most {} decimals, as 1 or 0.5",
            whole.ilog10()
        )
    })
}

/// Reads a share as `10%` or `0.5%`, in ten-thousandths.
///
/// Errors: what was expected.
pub fn parse_share(text: &str) -> Result<u32, String> {
    let share = parse(text, &[("%", 100)]).and_then(|share| u32::try_from(share).ok());
    share.ok_or_else(|| "expected a share as 10% or 0.5%".into())
}

/// A decimal number and a unit, without rounding: `None` where the result is not whole or too large.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty()
        || fraction.is_empty()
        || fraction.len() > 9
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits = whole
        .parse::<u128>()
        .ok()?
        .checked_mul(scale)?
        .checked_add(fraction.parse().ok()?)?;
    let scaled = digits.checked_mul((*factor).into())?;
    if scaled % scale != 0 {
        return None;
    }
    u64::try_from(scaled / scale).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times() {
        for (text, millis) in [
            ("10ms", 10),
            ("3s", 3_000),
            ("1.5s", 1_500),
            (" 2 m ", 120_000),
            ("2min", 120_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("0ms", 0),
            ("2000us", 2),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "ms",
            "10 parsecs",
            "-1s",
            "1.s",
            ".5s",
            "1e3s",
            "1.5.5s",
            "99999999999999999999h",
            "1S",
        ] {
            assert!(
                parse_duration(text).is_err_and(|error| error.contains("as 10ms")),
                "{text}"
            );
        }
        assert!(parse_duration("500us").is_err_and(|error| error.contains("whole milliseconds")));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("10MiB", 10 << 20),
            ("1.5KiB", 1536),
            ("2 GB", 2_000_000_000),
            ("1048576", 1 << 20),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MiB",
            "10mib",
            "1.3B",
            "-1",
            "99999999999GiB",
            "1.0000000001GiB",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn parts_and_shares() {
        assert_eq!(parse_parts("0.25", 100), Ok(25));
        assert_eq!(parse_parts("8", 100), Ok(800));
        assert_eq!(parse_share("0.5%"), Ok(50));
        assert_eq!(parse_share("100 %"), Ok(10_000));
        for text in ["", "0.125", "-1", "x", "1%", "99999999"] {
            assert!(parse_parts(text, 100).is_err(), "{text}");
        }
        for text in ["", "10", "0.001%", "%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_times_come_back(millis in 0u64..1 << 40) {
            prop_assert_eq!(parse_duration(&format!("{millis}ms")), Ok(Duration::from_millis(millis)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = (parse_duration(&text), parse_size(&text));
        }
    }
}

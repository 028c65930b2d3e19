//! Versioned, checked records: what goes to disk and between control-plane nodes.
//!
//! Layout: format (1 byte), CRC-32 (4 bytes, little endian), JSON. The format is the lowest that has all
//! that is in the record, see [`crate::state::format`].

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::format::FIRST;
use crate::state::{Format, FormatError, Formats};

const HEADER_BYTES: usize = 5;

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a record of {0} bytes is cut short")]
    Short(usize),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("a record's checksum does not match: the data is corrupt")]
    Checksum,
    #[error("a record could not be read")]
    Json(#[from] serde_json::Error),
}

/// Makes a record of `value`, which is the same in all formats.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    encode_as(FIRST, value)
}

/// Makes a record of `value`, which `format` has.
pub fn encode_as<T: Serialize + ?Sized>(format: Format, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut record = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut record, value)?;
    record[0] = format.0;
    let checksum = checksum(format, &record[HEADER_BYTES..]);
    record[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(record)
}

/// Reads the value of a record that is the same in all formats.
pub fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, CodecError> {
    let first = Formats {
        min: FIRST,
        max: FIRST,
    };
    decode_as(first, record)
}

/// Reads the value of a record, if it is of a format that `formats` has.
pub fn decode_as<T: DeserializeOwned>(formats: Formats, record: &[u8]) -> Result<T, CodecError> {
    let (format, json) = check(record)?;
    formats.can_read(format)?;
    Ok(serde_json::from_slice(json)?)
}

/// Checks that a record is whole, and gives its format and its JSON.
pub fn check(record: &[u8]) -> Result<(Format, &[u8]), CodecError> {
    let Some(([format, checksum @ ..], json)) = record.split_first_chunk::<HEADER_BYTES>() else {
        return Err(CodecError::Short(record.len()));
    };
    let format = Format(*format);
    if u32::from_le_bytes(*checksum) != self::checksum(format, json) {
        return Err(CodecError::Checksum);
    }
    Ok((format, json))
}

/// Of the format, too, so that damage is not taken for a later one; the first format's has always been without.
fn checksum(format: Format, json: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if format != FIRST {
        hasher.update(&[format.0]);
    }
    hasher.update(json);
    hasher.finalize()
}

/// The format of a record, whole or only begun.
pub fn format_of(record: &[u8]) -> Format {
    record.first().map_or(FIRST, |&format| Format(format))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_record_survives_and_no_damage_goes_unseen(text in ".{0,40}", at in any::<usize>(), bit in 0u8..8, format in 1u8..=3) {
            let formats = Formats { min: FIRST, max: Format(3) };
            let record = encode_as(Format(format), &text).unwrap();
            prop_assert_eq!(decode_as::<String>(formats, &record).unwrap(), text);
            let mut damaged = record.clone();
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            prop_assert!(matches!(decode_as::<String>(formats, &damaged), Err(CodecError::Checksum)));
            prop_assert!(decode_as::<String>(formats, &record[..at]).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<serde_json::Value>(&bytes);
        }
    }
}

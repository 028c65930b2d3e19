//! Versioned, checked records: what goes to disk and between control-plane nodes.
//!
//! Layout: version (1 byte), CRC-32 of the rest (4 bytes, little endian), JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a record of {0} bytes is cut short")]
    Short(usize),
    #[error("record version {0} is not known here")]
    Version(u8),
    #[error("a record's checksum does not match: the data is corrupt")]
    Checksum,
    #[error("a record could not be read")]
    Json(#[from] serde_json::Error),
}

/// Makes a record of `value`.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut record = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut record, value)?;
    record[0] = VERSION;
    let checksum = crc32fast::hash(&record[HEADER_BYTES..]);
    record[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(record)
}

/// Reads a record's value.
pub fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, CodecError> {
    Ok(serde_json::from_slice(check(record)?)?)
}

/// Checks that a record is whole, and gives its JSON.
pub fn check(record: &[u8]) -> Result<&[u8], CodecError> {
    let Some(([version, checksum @ ..], json)) = record.split_first_chunk::<HEADER_BYTES>() else {
        return Err(CodecError::Short(record.len()));
    };
    if *version != VERSION {
        return Err(CodecError::Version(*version));
    }
    if u32::from_le_bytes(*checksum) != crc32fast::hash(json) {
        return Err(CodecError::Checksum);
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_record_survives_and_no_damage_goes_unseen(text in ".{0,40}", at in any::<usize>(), bit in 0u8..8) {
            let record = encode(&text).unwrap();
            prop_assert_eq!(decode::<String>(&record).unwrap(), text);
            let mut damaged = record.clone();
            let at = at % damaged.len();
            damaged[at] ^= 1 << bit;
            prop_assert!(decode::<String>(&damaged).is_err());
            prop_assert!(decode::<String>(&record[..at]).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode::<serde_json::Value>(&bytes);
        }
    }
}

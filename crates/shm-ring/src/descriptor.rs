//! Hot path. What a ring slot, an item table and an answer table say, and their bytes.
//!
//! Descriptor, 64 bytes, little-endian; unused bytes are zero:
//!
//! | bytes  | name       | `Batch`            | `Grant`      | `Refuse` | `Answers`      | `Alloc`   | `Fail` |
//! |--------|------------|--------------------|--------------|----------|----------------|-----------|--------|
//! | 0..2   | kind       | 1                  | 2            | 3        | 17             | 18        | 19     |
//! | 2..4   | code       |                    |              |          |                |           | code   |
//! | 4..8   | generation | of the attach, in every kind                                                        |
//! | 8..16  | batch      | the batch it is about, in every kind                                                |
//! | 16..28 | region     | item table         | reply extent |          | answer table and payloads |  |        |
//! | 28..40 | reply      | reply extent       |              |          |                |           |        |
//! | 40..44 | count      | items              |              |          | answers        |           | item   |
//! | 48..56 | number     |                    |              | bytes    | nanoseconds    | bytes     | nanoseconds |
//!
//! `Hold` is 20 and `Release` 21; they have a batch and nothing else.
//!
//! A region is segment, offset, length, 4 bytes each. Answer table, 16 bytes each: item (4), code (2), flags (2: bit 0
//! last), offset from the table's start (4), length (4). Item table, 48 bytes each, at a multiple of 16:
//!
//! | bytes  | name      | what                                                                                        |
//! |--------|-----------|---------------------------------------------------------------------------------------------|
//! | 0..12  | payload   | region                                                                                      |
//! | 12..16 | flags     | which codecs apply                                                                          |
//! | 16..24 | deadline  | on the machine's monotonic clock, in microseconds; zero: none. The agent may move it later  |
//! | 24..32 | request   | the request's id                                                                            |
//! | 32..36 | cancelled | not zero: nobody waits for the answer any more. The agent may set it later                  |
//! | 36..48 | headers   | region of the client's headers that the worker is told of; zero: none                       |
//!
//! What the agent changes while the worker has the batch, it writes atomically; the worker only reads the table.

pub(crate) const DESCRIPTOR_BYTES: usize = 64;
pub(crate) const ITEM_BYTES: usize = 48;
/// Where in a row of the item table its deadline and its cancelled word are.
pub(crate) const ITEM_DEADLINE: usize = 16;
pub(crate) const ITEM_CANCELLED: usize = 32;
pub(crate) const ANSWER_BYTES: usize = 16;
/// Payloads start at multiples of this, so that arrays in them may be viewed in place.
pub(crate) const PAYLOAD_ALIGN: usize = 64;

const ANSWER_LAST: u16 = 1;

/// A slot as it lies in memory: eight 64-bit words.
pub(crate) type Words = [u64; DESCRIPTOR_BYTES / 8];

/// A piece of the arena, by numbers that mean the same in every process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Region {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// What one slot says. Untrusted until checked: any bytes decode to one of these or to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) generation: u32,
    pub(crate) batch: u64,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// To the worker: run this batch.
    Batch {
        items: u32,
        table: Region,
        reply: Region,
    },
    /// To the worker: the larger reply extent it asked for. The one before it is no longer its own.
    Grant { reply: Region },
    /// To the worker: the arena has no room for this many bytes.
    Refuse { bytes: u64 },
    /// To the agent: answers to some items of a batch.
    Answers { count: u32, region: Region, nanos: u64 },
    /// To the agent: the reply extent is too small, this many bytes are needed.
    Alloc { bytes: u64 },
    /// To the agent: the last answer of one item, without any payload.
    Fail { item: u32, code: u16, nanos: u64 },
    /// To the agent: the batch's payloads stay in use when it has been answered, until `Release`.
    Hold,
    /// To the agent: they are not in use any more.
    Release,
}

const BATCH: u16 = 1;
const GRANT: u16 = 2;
const REFUSE: u16 = 3;
const ANSWERS: u16 = 17;
const ALLOC: u16 = 18;
const FAIL: u16 = 19;
const HOLD: u16 = 20;
const RELEASE: u16 = 21;

impl Descriptor {
    pub(crate) fn encode(&self) -> Words {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        put_u32(&mut bytes, 4, self.generation);
        put_u64(&mut bytes, 8, self.batch);
        let kind = match self.body {
            Body::Batch { items, table, reply } => {
                put_region(&mut bytes, 16, table);
                put_region(&mut bytes, 28, reply);
                put_u32(&mut bytes, 40, items);
                BATCH
            }
            Body::Grant { reply } => {
                put_region(&mut bytes, 16, reply);
                GRANT
            }
            Body::Refuse { bytes: refused } => {
                put_u64(&mut bytes, 48, refused);
                REFUSE
            }
            Body::Answers { count, region, nanos } => {
                put_region(&mut bytes, 16, region);
                put_u32(&mut bytes, 40, count);
                put_u64(&mut bytes, 48, nanos);
                ANSWERS
            }
            Body::Alloc { bytes: wanted } => {
                put_u64(&mut bytes, 48, wanted);
                ALLOC
            }
            Body::Fail { item, code, nanos } => {
                put_u16(&mut bytes, 2, code);
                put_u32(&mut bytes, 40, item);
                put_u64(&mut bytes, 48, nanos);
                FAIL
            }
            Body::Hold => HOLD,
            Body::Release => RELEASE,
        };
        put_u16(&mut bytes, 0, kind);
        words_of(&bytes)
    }

    /// Reads a slot; `None` where its kind is not known.
    pub(crate) fn decode(words: &Words) -> Option<Self> {
        let bytes = bytes_of(words);
        let number = u64_at(&bytes, 48);
        let body = match u16_at(&bytes, 0) {
            BATCH => Body::Batch {
                items: u32_at(&bytes, 40),
                table: region_at(&bytes, 16),
                reply: region_at(&bytes, 28),
            },
            GRANT => Body::Grant {
                reply: region_at(&bytes, 16),
            },
            REFUSE => Body::Refuse { bytes: number },
            ANSWERS => Body::Answers {
                count: u32_at(&bytes, 40),
                region: region_at(&bytes, 16),
                nanos: number,
            },
            ALLOC => Body::Alloc { bytes: number },
            FAIL => Body::Fail {
                item: u32_at(&bytes, 40),
                code: u16_at(&bytes, 2),
                nanos: number,
            },
            HOLD => Body::Hold,
            RELEASE => Body::Release,
            _ => return None,
        };
        Some(Self {
            generation: u32_at(&bytes, 4),
            batch: u64_at(&bytes, 8),
            body,
        })
    }
}

/// One row of a batch's item table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ItemEntry {
    pub(crate) payload: Region,
    pub(crate) flags: u32,
    pub(crate) deadline_micros: u64,
    pub(crate) request: u64,
    pub(crate) headers: Region,
}

impl ItemEntry {
    pub(crate) fn encode(&self) -> [u8; ITEM_BYTES] {
        let mut bytes = [0; ITEM_BYTES];
        put_region(&mut bytes, 0, self.payload);
        put_u32(&mut bytes, 12, self.flags);
        put_u64(&mut bytes, ITEM_DEADLINE, self.deadline_micros);
        put_u64(&mut bytes, 24, self.request);
        put_region(&mut bytes, 36, self.headers);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ITEM_BYTES]) -> Self {
        Self {
            payload: region_at(bytes, 0),
            flags: u32_at(bytes, 12),
            deadline_micros: u64_at(bytes, ITEM_DEADLINE),
            request: u64_at(bytes, 24),
            headers: region_at(bytes, 36),
        }
    }
}

/// One row of an answer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerEntry {
    pub(crate) item: u32,
    pub(crate) code: u16,
    pub(crate) last: bool,
    /// From the start of the table.
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

impl AnswerEntry {
    pub(crate) fn encode(&self) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        put_u32(&mut bytes, 0, self.item);
        put_u16(&mut bytes, 4, self.code);
        put_u16(&mut bytes, 6, if self.last { ANSWER_LAST } else { 0 });
        put_u32(&mut bytes, 8, self.offset);
        put_u32(&mut bytes, 12, self.len);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; ANSWER_BYTES]) -> Self {
        Self {
            item: u32_at(bytes, 0),
            code: u16_at(bytes, 4),
            last: u16_at(bytes, 6) & ANSWER_LAST != 0,
            offset: u32_at(bytes, 8),
            len: u32_at(bytes, 12),
        }
    }
}

/// `bytes` rounded up to where the next payload may start.
pub(crate) fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(PAYLOAD_ALIGN)
}

fn words_of(bytes: &[u8; DESCRIPTOR_BYTES]) -> Words {
    std::array::from_fn(|word| u64::from_ne_bytes(take(bytes, word * 8)))
}

fn bytes_of(words: &Words) -> [u8; DESCRIPTOR_BYTES] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The `N` bytes at `at`, which every caller keeps inside its fixed-size array.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(take(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(take(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(take(bytes, at))
}

fn region_at(bytes: &[u8], at: usize) -> Region {
    Region {
        segment: u32_at(bytes, at),
        offset: u32_at(bytes, at + 4),
        len: u32_at(bytes, at + 8),
    }
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_region(bytes: &mut [u8], at: usize, region: Region) {
    put_u32(bytes, at, region.segment);
    put_u32(bytes, at + 4, region.offset);
    put_u32(bytes, at + 8, region.len);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region() -> impl Strategy<Value = Region> {
        any::<(u32, u32, u32)>().prop_map(|(segment, offset, len)| Region { segment, offset, len })
    }

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            (any::<u32>(), region(), region()).prop_map(|(items, table, reply)| Body::Batch {
                items,
                table,
                reply
            }),
            region().prop_map(|reply| Body::Grant { reply }),
            any::<u64>().prop_map(|bytes| Body::Refuse { bytes }),
            (any::<u32>(), region(), any::<u64>()).prop_map(|(count, region, nanos)| Body::Answers {
                count,
                region,
                nanos
            }),
            any::<u64>().prop_map(|bytes| Body::Alloc { bytes }),
            any::<(u32, u16, u64)>().prop_map(|(item, code, nanos)| Body::Fail { item, code, nanos }),
            Just(Body::Hold),
            Just(Body::Release),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a_descriptor_survives_its_bytes(generation: u32, batch: u64, body in body()) {
            let descriptor = Descriptor { generation, batch, body };
            prop_assert_eq!(Descriptor::decode(&descriptor.encode()), Some(descriptor));
        }

        #[test]
        fn table_rows_survive_their_bytes(
            payload in region(), headers in region(), flags: u32, deadline_micros: u64, request: u64, code: u16, last: bool,
        ) {
            let item = ItemEntry { payload, flags, deadline_micros, request, headers };
            let bytes = item.encode();
            prop_assert_eq!(ItemEntry::decode(&bytes), item);
            prop_assert_eq!(u64_at(&bytes, ITEM_DEADLINE), deadline_micros);
            prop_assert_eq!(u32_at(&bytes, ITEM_CANCELLED), 0, "not cancelled");
            let answer = AnswerEntry { item: flags, code, last, offset: payload.offset, len: payload.len };
            prop_assert_eq!(AnswerEntry::decode(&answer.encode()), answer);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(words: [u64; 8]) {
            if let Some(descriptor) = Descriptor::decode(&words) {
                prop_assert_eq!(Descriptor::decode(&descriptor.encode()), Some(descriptor));
            }
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let table = Region {
            segment: 2,
            offset: 0x1000,
            len: 0x40,
        };
        let reply = Region {
            segment: 3,
            offset: 0x2000,
            len: 0x400,
        };
        let words = Descriptor {
            generation: 7,
            batch: 9,
            body: Body::Batch {
                items: 1,
                table,
                reply,
            },
        }
        .encode();
        let bytes = bytes_of(&words);
        assert_eq!(bytes[..16], [1, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..28], [2, 0, 0, 0, 0, 0x10, 0, 0, 0x40, 0, 0, 0]);
        assert_eq!(bytes[28..44], [3, 0, 0, 0, 0, 0x20, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0]);
    }
}

use std::time::Duration;

use mosec_types::spec::RouteIndex;
use mosec_types::{ErrorCode, Incarnation, NodeId, RequestId, Span, SpanKind};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::link::Custody;

use super::*;
use crate::link::{Item, Window};

const LIMIT: usize = 1024 * 1024;

prop_compose! {
    fn stage()(revision in any::<u64>(), stage in any::<u16>()) -> StageKey {
        StageKey { revision: Revision(revision), stage: StageIndex(stage) }
    }
}

/// Around the size up to which payloads are gathered, and empty.
fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![3 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 1000..1100)].prop_map(Bytes::from)
}

prop_compose! {
    fn item()(
        id in any::<u64>(),
        route in any::<u16>(),
        micros in any::<u64>(),
        losses in any::<u8>(),
        traced in any::<bool>(),
        headers in payload(),
        payload in payload(),
    ) -> Item {
        let remaining = Duration::from_micros(micros);
        Item { id: RequestId(id), route: RouteIndex(route), remaining, losses, traced, headers, payload }
    }
}

prop_compose! {
    fn span()(kind in select(&SpanKind::ALL[..]), stage in any::<u16>(), micros in any::<u32>()) -> Span {
        // As the other end reads it.
        let kind = SpanKind::from_wire(kind.to_wire()).unwrap();
        Span { kind, stage: StageIndex(stage), micros }
    }
}

prop_compose! {
    fn answer()(
        item in any::<u32>(),
        code in select(ErrorCode::all().collect::<Vec<_>>()),
        custody in custody(),
        last in any::<bool>(),
        payload in payload(),
        spans in vec(span(), 0..4),
    ) -> Answer {
        Answer { item, code, custody, last, payload, spans }
    }
}

fn custody() -> impl Strategy<Value = Custody> {
    prop_oneof![
        Just(Custody::Done),
        any::<u8>().prop_map(|losses| Custody::Refused { losses }),
        any::<u8>().prop_map(|losses| Custody::Lost { losses }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let batch = (stage(), vec(item(), 1..8)).prop_map(|(stage, items)| Frame::Batch(Batch { stage, items }));
    let hello = ("[a-z0-9][a-z0-9_-]{0,62}", any::<u64>()).prop_map(|(name, incarnation)| {
        let node = NodeId::new(name).unwrap();
        Frame::Event(LinkEvent::Hello {
            node,
            incarnation: Incarnation(incarnation),
        })
    });
    let window = (stage(), any::<u32>(), any::<u32>()).prop_map(|(stage, replicas, limit)| {
        Frame::Event(LinkEvent::Window {
            stage,
            window: Window { replicas, limit },
        })
    });
    let cancel = (any::<u64>(), vec(any::<u32>(), 1..8))
        .prop_map(|(stream, items)| Frame::Cancel(Cancel { stream, items }));
    prop_oneof![
        1 => cancel,
        4 => batch,
        4 => vec(answer(), 1..8).prop_map(Frame::Answers),
        1 => hello,
        1 => window,
        1 => select(&[Frame::Finish, Frame::Credit, Frame::Heartbeat, Frame::Event(LinkEvent::Drain)][..]),
    ]
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.encode(LIMIT).unwrap().concat()
}

/// Decodes, and checks that what the decoder allocated stays in proportion to the input.
fn decode(bytes: &[u8]) -> Result<Frame, FrameError> {
    let frame = Frame::decode(Bytes::copy_from_slice(bytes), LIMIT)?;
    let allocated = match &frame {
        Frame::Batch(batch) => batch.items.capacity() * size_of::<Item>(),
        Frame::Answers(answers) => {
            let spans: usize = answers.iter().map(|answer| answer.spans.capacity()).sum();
            answers.capacity() * size_of::<Answer>() + spans * size_of::<Span>()
        }
        _ => 0,
    };
    // An answer takes 16 bytes on the wire and five times that in memory. The least vector of spans has four.
    assert!(
        allocated <= 8 * bytes.len(),
        "{allocated} bytes for {}",
        bytes.len()
    );
    Ok(frame)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_frame_survives_the_wire(frame in frame()) {
        let bytes = bytes_of(&frame);
        prop_assert_eq!(decode(&bytes), Ok(frame));
    }

    #[test]
    fn a_frame_cut_off_is_an_error(frame in frame(), at in any::<Index>()) {
        let bytes = bytes_of(&frame);
        prop_assert_eq!(decode(&bytes[..at.index(bytes.len())]), Err(FrameError::Truncated));
    }

    #[test]
    fn bytes_after_a_frame_are_an_error(frame in frame(), extra in vec(any::<u8>(), 1..20)) {
        let bytes = [bytes_of(&frame), extra.clone()].concat();
        prop_assert_eq!(decode(&bytes), Err(FrameError::Trailing(extra.len())));
    }

    #[test]
    fn whatever_decodes_has_one_encoding(frame in frame(), changes in vec((any::<Index>(), any::<u8>()), 1..6)) {
        let mut bytes = bytes_of(&frame);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(decoded) = decode(&bytes) {
            prop_assert_eq!(bytes_of(&decoded), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(kind in select(&Kind::ALL[..]), tail in vec(any::<u8>(), 0..400)) {
        let _ = decode(&tail);
        // Past the first checks, with small counts, so that the tables are reached too.
        let mut bytes = [&MAGIC[..], &[VERSION, kind as u8, 0, 0], &[0; 10], &[tail.len() as u8 % 8, 0]].concat();
        bytes.extend([0; 4]);
        bytes.extend((tail.len() as u64).to_le_bytes());
        bytes.extend(&tail);
        if let Ok(decoded) = decode(&bytes) {
            prop_assert_eq!(bytes_of(&decoded), bytes);
        }
    }
}

fn header(kind: Kind, items: u16, body_bytes: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4] = VERSION;
    header[5] = kind as u8;
    header[18..20].copy_from_slice(&items.to_le_bytes());
    header[24..].copy_from_slice(&body_bytes.to_le_bytes());
    header
}

#[test]
fn a_header_is_refused_before_its_body_is_read() {
    let refused = |header: [u8; HEADER_BYTES]| Header::decode(&header, LIMIT).unwrap_err();
    let with = |at: usize, value: u8| {
        let mut header = header(Kind::Batch, 1, 28);
        header[at] = value;
        header
    };
    assert!(Header::decode(&header(Kind::Batch, 1, 28), LIMIT).is_ok());
    assert_eq!(refused(with(0, b'x')), FrameError::Magic(*b"xsec"));
    assert_eq!(refused(with(4, 1)), FrameError::Version(1));
    assert_eq!(refused(with(5, 0)), FrameError::Kind(0));
    assert_eq!(refused(with(6, 1)), FrameError::Reserved);
    assert_eq!(refused(with(20, 1)), FrameError::Reserved);
    assert_eq!(refused(header(Kind::Drain, 1, 0)), FrameError::Reserved);
    assert_eq!(refused(header(Kind::Batch, 0, 0)), FrameError::NoItems);
    assert_eq!(
        refused(header(Kind::Batch, u16::MAX, 1000)),
        FrameError::Truncated
    );
    assert_eq!(refused(header(Kind::Answers, 2, 31)), FrameError::Truncated);
    assert_eq!(refused(header(Kind::Finish, 0, 5)), FrameError::Trailing(5));
    assert_eq!(refused(header(Kind::Hello, 0, 8)), FrameError::Truncated);
    assert_eq!(refused(header(Kind::Hello, 0, 72)), FrameError::Trailing(1));
    assert_eq!(
        refused(header(Kind::Batch, 1, u64::MAX)),
        FrameError::TooLarge {
            bytes: u64::MAX,
            limit: LIMIT
        }
    );
}

#[test]
fn a_header_lies_where_its_table_says() {
    let stage = StageKey {
        revision: Revision(0x0807_0605_0403_0201),
        stage: StageIndex(0x1211),
    };
    let event = LinkEvent::Window {
        stage,
        window: Window {
            replicas: 3,
            limit: 5,
        },
    };
    let expected = [
        b"msec\x02\x11\0\0".as_slice(),
        &[1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0, 0, 0, 0, 0, 0],
        &[8, 0, 0, 0, 0, 0, 0, 0],
        &[3, 0, 0, 0, 5, 0, 0, 0],
    ];
    assert_eq!(encode_event(&event), expected.concat());
}

#[test]
fn an_answer_lies_where_its_table_says() {
    let encoded = |custody| {
        let answer = Answer {
            item: 0x0403_0201,
            code: ErrorCode::Ok,
            custody,
            last: true,
            payload: Bytes::from_static(b"xy"),
            spans: Vec::new(),
        };
        encode_answers(&[answer], LIMIT)
            .unwrap()
            .concat()
            .split_off(HEADER_BYTES)
    };
    for (custody, bytes) in [
        (Custody::Done, [0, 0]),
        (Custody::Refused { losses: 0 }, [1, 0]),
        (Custody::Refused { losses: 5 }, [1, 5]),
        (Custody::Lost { losses: 255 }, [2, 255]),
    ] {
        let [kind, losses] = bytes;
        let expected = [1, 2, 3, 4, 2, 0, 0, 0, 0, 0, 0, 0, 1, kind, losses, 0, b'x', b'y'];
        assert_eq!(encoded(custody), expected, "{custody:?}");
    }
}

#[test]
fn custody_that_is_not_known_is_refused() {
    for (kind, losses, reserved) in [(0, 1, 0), (3, 0, 0), (1, 0, 1)] {
        let mut bytes = header(Kind::Answers, 1, 16).to_vec();
        bytes.extend([0; 12]);
        bytes.extend([1, kind, losses, reserved]);
        assert_eq!(
            decode(&bytes),
            Err(FrameError::Reserved),
            "{kind} {losses} {reserved}"
        );
    }
}

#[test]
fn what_does_not_fit_is_not_encoded() {
    let stage = NO_STAGE;
    let item = Item {
        id: RequestId(1),
        route: RouteIndex(0),
        remaining: Duration::MAX,
        losses: 0,
        traced: false,
        headers: Bytes::new(),
        payload: Bytes::from(vec![0; 100]),
    };
    let batch = |count| Batch {
        stage,
        items: vec![item.clone(); count],
    };
    assert_eq!(encode_batch(&batch(0), LIMIT), Err(FrameError::NoItems));
    assert_eq!(
        encode_batch(&batch(2), 255),
        Err(FrameError::TooLarge {
            bytes: 256,
            limit: 255
        })
    );
    assert!(encode_batch(&batch(2), 256).is_ok());
    assert_eq!(
        encode_batch(&batch(65_536), usize::MAX),
        Err(FrameError::TooManyItems(65_536))
    );
}

#[test]
fn the_largest_request_fits_and_so_do_the_most_items() {
    let item = |payload| Item {
        id: RequestId(1),
        route: RouteIndex(0),
        remaining: Duration::MAX,
        losses: 0,
        traced: false,
        headers: Bytes::new(),
        payload,
    };
    let bytes = MAX_LINK_REQUEST_BYTES as usize;
    let one = vec![item(Bytes::from(vec![0; bytes]))];
    let part = Bytes::from(vec![0; bytes / MAX_ITEMS]);
    for items in [one, vec![item(part); MAX_ITEMS]] {
        let batch = Batch {
            stage: NO_STAGE,
            items,
        };
        assert!(encode_batch(&batch, DEFAULT_MAX_BODY_BYTES).is_ok());
    }
}

#[test]
fn large_payloads_are_not_copied() {
    let payload = Bytes::from(vec![7; 4096]);
    let answer = Answer {
        item: 0,
        code: ErrorCode::Ok,
        custody: Custody::Done,
        last: true,
        payload: payload.clone(),
        spans: Vec::new(),
    };
    let chunks = encode_answers(&[answer], LIMIT).unwrap();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[1].as_ptr(), payload.as_ptr());
    let whole = Bytes::from(chunks.concat());
    let Ok(Frame::Answers(answers)) = Frame::decode(whole.clone(), LIMIT) else {
        panic!("expected answers")
    };
    assert_eq!(answers[0].payload.as_ptr(), whole[whole.len() - 4096..].as_ptr());
}

#[test]
fn a_batchs_wait_is_the_queues_to_peers_who_know_no_other() {
    let span = |kind| Span {
        kind,
        stage: StageIndex(1),
        micros: 5,
    };
    let answer = Answer {
        item: 0,
        code: ErrorCode::Ok,
        custody: Custody::Done,
        last: true,
        payload: Bytes::new(),
        spans: vec![span(SpanKind::Queue), span(SpanKind::Batch)],
    };
    let bytes = bytes_of(&Frame::Answers(vec![answer]));
    let Ok(Frame::Answers(answers)) = decode(&bytes) else {
        panic!("no answers");
    };
    let kinds = answers[0].spans.iter().map(|span| span.kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [SpanKind::Queue, SpanKind::Queue]);
}

//! Hot path. What a batch's items tell the task that writes to the batch's stream: answers, and events before them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{Lost, Outcome, Payload, Respond};
use mosec_shm_ring::now_micros;
use mosec_types::{ErrorCode, Span, SpanKind, StageIndex};
use mosec_wire::{Answer, Custody};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events of one item that may wait for the link for [`PATIENCE`], in bytes. A gateway takes events without waiting for its
/// clients, so more than a moment's worth waits only where the link itself is too slow; half of a stream's window.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How long nothing may be sent where so much waits.
const PATIENCE: Duration = Duration::from_secs(5);
/// Events that come faster than any link sends them, in bytes; as much as a gateway keeps for a client.
const MAX_BURST_BYTES: usize = 8 << 20;
/// What an event takes besides its text, so that empty ones are bounded too.
const EVENT_BYTES: usize = 128;

const TOO_SLOW: &str = "internal error: the stream was read too slowly";

/// What the tasks that work on a batch tell the one that answers it.
pub(crate) enum Message {
    /// The last of its item.
    Answer(Answer),
    Event(Answer, Waiting),
    Credit,
}

/// What an item's events have in common.
#[derive(Default)]
struct Events {
    /// Bytes of those that wait.
    bytes: AtomicUsize,
    /// When one of them was last sent, as [`now_micros`] counts.
    sent: AtomicU64,
    /// The stream was ended before its answer came.
    ended: AtomicBool,
}

/// The room that an event takes until it is sent. Dropping it gives the room back.
pub(crate) struct Waiting {
    bytes: usize,
    events: Arc<Events>,
}

impl Waiting {
    /// Says that the item has been answered in place of this event: it takes no more, and nobody waits for it.
    pub(crate) fn end_stream(&self) {
        self.events.ended.store(true, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.events.sent.store(now_micros(), Ordering::Relaxed);
        self.events.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What of a batch its upstream has given up.
pub(crate) struct GivenUp {
    all: AtomicBool,
    items: Vec<AtomicBool>,
}

impl GivenUp {
    pub(crate) fn new(items: usize) -> Arc<Self> {
        let items = (0..items).map(|_| AtomicBool::new(false)).collect();
        let all = AtomicBool::new(false);
        Arc::new(Self { all, items })
    }

    /// How many the batch has.
    pub(crate) fn items(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn give_up(&self) {
        self.all.store(true, Ordering::Relaxed);
    }

    pub(crate) fn give_up_items(&self, items: &[u32]) {
        for item in items.iter().filter_map(|&item| self.items.get(item as usize)) {
            item.store(true, Ordering::Relaxed);
        }
    }

    fn has(&self, item: u32) -> bool {
        let item = self.items.get(item as usize);
        self.all.load(Ordering::Relaxed) || item.is_some_and(|item| item.load(Ordering::Relaxed))
    }
}

/// Answers one item of a batch.
pub(crate) struct LinkReply {
    item: u32,
    stage: StageIndex,
    received: Instant,
    traced: bool,
    given_up: Arc<GivenUp>,
    sender: mpsc::UnboundedSender<Message>,
    /// None before the first event.
    events: OnceLock<Arc<Events>>,
}

impl LinkReply {
    pub(crate) fn new(
        (item, stage): (u32, StageIndex),
        traced: bool,
        received: Instant,
        given_up: Arc<GivenUp>,
        sender: mpsc::UnboundedSender<Message>,
    ) -> Self {
        Self {
            item,
            stage,
            received,
            traced,
            given_up,
            sender,
            events: OnceLock::new(),
        }
    }

    fn answer(&self, code: ErrorCode, payload: Bytes) -> Answer {
        Answer {
            item: self.item,
            code,
            custody: Custody::Done,
            last: true,
            payload,
            spans: Vec::new(),
        }
    }

    fn is_ended(&self) -> bool {
        self.events
            .get()
            .is_some_and(|events| events.ended.load(Ordering::Relaxed))
    }

    /// Room for an event of `bytes`; `None` where too much waits already. One event may be of any size.
    fn room(&self, bytes: usize) -> Option<Waiting> {
        let events = self.events.get_or_init(Arc::default);
        let bytes = bytes + EVENT_BYTES;
        let (before, now) = (events.bytes.fetch_add(bytes, Ordering::Relaxed), now_micros());
        let silence = now.saturating_sub(events.sent.load(Ordering::Relaxed));
        let limit = if Duration::from_micros(silence) > PATIENCE {
            MAX_WAITING_BYTES
        } else {
            MAX_BURST_BYTES
        };
        if before == 0 {
            events.sent.store(now, Ordering::Relaxed);
        } else if before + bytes > limit {
            events.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Waiting {
            bytes,
            events: events.clone(),
        })
    }

    fn add_span(&self, spans: &mut Vec<Span>) {
        let total = u32::try_from(self.received.elapsed().as_micros()).unwrap_or(u32::MAX);
        let accounted = spans
            .iter()
            .fold(0u32, |sum, span| sum.saturating_add(span.micros));
        let micros = total.saturating_sub(accounted);
        spans.push(Span {
            kind: SpanKind::Agent,
            stage: self.stage,
            micros,
        });
    }
}

impl Respond for LinkReply {
    fn respond(self: Box<Self>, outcome: Outcome) {
        if self.is_ended() {
            return;
        }
        let mut spans = outcome.spans;
        if self.traced {
            self.add_span(&mut spans);
        }
        let custody = match outcome.lost {
            None => Custody::Done,
            Some(Lost { loss, losses }) => match loss {
                Loss::Refused => Custody::Refused { losses },
                Loss::Worker | Loss::Link => Custody::Lost { losses },
            },
        };
        let answer = Answer {
            custody,
            spans,
            ..self.answer(outcome.code, outcome.payload.to_bytes())
        };
        // The batch's task is gone if its upstream is.
        let _ = self.sender.send(Message::Answer(answer));
    }

    fn event(&self, payload: Payload) {
        if self.is_ended() {
            return;
        }
        let message = match self.room(payload.len()) {
            Some(waiting) => {
                let event = Answer {
                    last: false,
                    ..self.answer(ErrorCode::Ok, payload.to_bytes())
                };
                Message::Event(event, waiting)
            }
            None => {
                self.events
                    .get_or_init(Arc::default)
                    .ended
                    .store(true, Ordering::Relaxed);
                Message::Answer(self.answer(ErrorCode::Worker, Bytes::from_static(TOO_SLOW.as_bytes())))
            }
        };
        let _ = self.sender.send(message);
    }

    fn is_wanted(&self) -> bool {
        !self.given_up.has(self.item) && !self.is_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> (LinkReply, mpsc::UnboundedReceiver<Message>) {
        let (sender, messages) = mpsc::unbounded_channel();
        let given_up = GivenUp::new(4);
        let reply = LinkReply::new((3, StageIndex(0)), false, Instant::now(), given_up, sender);
        (reply, messages)
    }

    fn event(bytes: usize) -> Payload {
        Payload::Bytes(Bytes::from(vec![b'x'; bytes]))
    }

    fn respond(reply: LinkReply) {
        Box::new(reply).respond(Outcome {
            code: ErrorCode::Ok,
            payload: Payload::Bytes(Bytes::new()),
            spans: Vec::new(),
            lost: None,
        });
    }

    #[tokio::test]
    async fn events_come_before_the_answer() {
        let (reply, mut messages) = reply();
        reply.event(event(1));
        respond(reply);
        assert!(
            matches!(messages.try_recv(), Ok(Message::Event(event, _)) if !event.last && event.item == 3)
        );
        assert!(matches!(messages.try_recv(), Ok(Message::Answer(answer)) if answer.last));
        assert!(messages.try_recv().is_err());
    }

    #[test]
    fn items_are_given_up_one_by_one_or_together() {
        let given_up = GivenUp::new(3);
        let gone = || [0, 1, 2, 3].map(|item| given_up.has(item));
        given_up.give_up_items(&[1, 7]);
        assert_eq!(gone(), [false, true, false, false]);
        given_up.give_up();
        assert_eq!(gone(), [true; 4]);
    }

    #[tokio::test]
    async fn a_stream_that_is_read_too_slowly_ends_once() {
        let (reply, mut messages) = reply();
        for _ in 0..10_000 {
            reply.event(event(1000));
        }
        assert!(!reply.is_wanted());
        respond(reply);
        let mut bytes = 0;
        let end = loop {
            match messages.try_recv() {
                Ok(Message::Event(event, _)) => bytes += event.payload.len(),
                Ok(Message::Answer(answer)) => break answer,
                other => panic!("{}", other.is_ok()),
            }
        };
        assert!(bytes > MAX_BURST_BYTES / 2 && bytes <= MAX_BURST_BYTES, "{bytes}");
        assert_eq!(
            (end.code, end.payload.as_ref()),
            (ErrorCode::Worker, TOO_SLOW.as_bytes())
        );
        assert!(messages.try_recv().is_err(), "nothing after the end");
    }

    #[tokio::test]
    async fn what_is_sent_makes_room_and_one_event_may_be_of_any_size() {
        let (reply, mut messages) = reply();
        for _ in 0..5 {
            reply.event(event(2 * MAX_BURST_BYTES));
            assert!(matches!(messages.try_recv(), Ok(Message::Event(..))));
        }
        assert!(reply.is_wanted());
    }
}

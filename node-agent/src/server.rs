//! Hot path. Batches from upstreams over their links, and the answers back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_dispatch::custody::Loss;
use mosec_dispatch::{Credit, Dispatched, Home, Payload, Reply, Request, Stream, Target, Window};
use mosec_types::{ErrorCode, StageKey};
use mosec_wire::frame::FrameError;
use mosec_wire::{Answer, AnswerSink, Cancelled, Incoming, LinkError, LinkEvent, LinkServer};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::pool::PoolTarget;
use crate::reply::{GivenUp, LinkReply, Message};
pub use crate::windows::Upstream;
use crate::windows::changes;

/// Serves one upstream until its link ends, or until `stop`: then it is told to send nothing more, and what it has sent
/// is finished.
pub async fn serve_link(
    agent: Agent,
    link: Arc<dyn LinkServer>,
    upstream: Upstream,
    stop: CancellationToken,
) -> LinkError {
    let _present = agent.windows().enter(upstream);
    let batches = TaskTracker::new();
    let mut granted = agent.windows().subscribe();
    let mut told = tell_windows(
        &*link,
        &BTreeMap::new(),
        granted.borrow_and_update().shares(upstream),
    );
    let mut draining = false;
    // Batches that were sent before the upstream heard of the drain are still let in.
    let settled = tokio::time::sleep(Duration::MAX);
    tokio::pin!(settled);
    let error = loop {
        tokio::select! {
            incoming = link.accept() => match incoming {
                Ok(incoming) => {
                    batches.spawn(serve_batch(agent.clone(), incoming));
                }
                Err(error) => break error,
            },
            // A draining agent grants nothing any more.
            changed = granted.changed(), if !draining => match changed {
                Ok(()) => told = tell_windows(&*link, &told, granted.borrow_and_update().shares(upstream)),
                Err(_) => break LinkError::Closed,
            },
            () = stop.cancelled(), if !draining => {
                draining = true;
                link.tell(LinkEvent::Drain);
                batches.close();
                settled.as_mut().reset(Instant::now() + agent.config().quiet);
            }
            () = async { settled.as_mut().await; batches.wait().await }, if draining => break LinkError::Closed,
        }
    };
    link.close();
    error
}

/// Tells what has changed; gives back what the upstream knows now.
fn tell_windows(
    link: &dyn LinkServer,
    told: &BTreeMap<StageKey, Window>,
    shares: BTreeMap<StageKey, Window>,
) -> BTreeMap<StageKey, Window> {
    for (stage, window) in changes(told, &shares) {
        link.tell(LinkEvent::Window { stage, window });
    }
    shares
}

/// Sees one batch through, from its arrival to its last answer.
async fn serve_batch(agent: Agent, incoming: Incoming) {
    let Incoming { batch, mut answers } = incoming;
    let (sender, mut messages) = mpsc::unbounded_channel();
    let given_up = GivenUp::new(batch.items.len());
    let stage = batch.stage;
    let now = Instant::now();
    let pool = agent.pool(stage);
    let idle = pool.as_ref().map_or(Duration::ZERO, |pool| pool.spec.timeout);
    let requests: Vec<_> = batch
        .items
        .into_iter()
        .enumerate()
        .map(|(index, item)| Request {
            id: item.id,
            route: item.route,
            deadline: now + item.remaining,
            arrived: now,
            headers: item.headers,
            payload: Payload::Bytes(item.payload),
            losses: item.losses,
            traced: item.traced,
            spans: Vec::new(),
            stream: Stream::new(idle),
            reply: Reply::new(LinkReply::new(
                (u32::try_from(index).unwrap_or(u32::MAX), stage.stage),
                item.traced,
                now,
                given_up.clone(),
                sender.clone(),
            )),
        })
        .collect();
    let credit = Credit::new(move || drop(sender.send(Message::Credit)));
    match pool {
        Some(pool) => PoolTarget(pool).send(Dispatched {
            stage,
            requests,
            home: Arc::new(Upwards),
            credit,
            // The upstream knows, and a link does not tell.
            collected: None,
        }),
        // Its topology is older or newer than ours.
        None => requests
            .into_iter()
            .for_each(|request| request.give_back(Loss::Refused, ErrorCode::UnknownStage)),
    }
    let result = pass_on(&mut messages, &mut answers, &given_up).await;
    match result {
        Ok(()) => {
            if let Err(error) = answers.finish().await {
                tracing::debug!(%stage, %error, "answers could not be finished");
            }
        }
        Err(error) => {
            given_up.give_up();
            tracing::debug!(%stage, %error, "batch was given up by its upstream");
        }
    }
}

/// Events that are sent together, besides a batch's answers: a frame of them is still small.
const MAX_EVENTS: usize = 64;

/// Sends answers and events as they come, those that are there together in one group.
async fn pass_on(
    messages: &mut mpsc::UnboundedReceiver<Message>,
    answers: &mut Box<dyn AnswerSink>,
    given_up: &GivenUp,
) -> Result<(), LinkError> {
    let total = given_up.items();
    let mut buffer = Vec::new();
    let mut answered = 0;
    // Items that were ended by an event that no frame carries. What they still say goes nowhere.
    let mut cut = Vec::new();
    while answered < total {
        tokio::select! {
            // What is there is sent before the link is asked.
            biased;
            count = messages.recv_many(&mut buffer, total + MAX_EVENTS) => if count == 0 {
                // Every reply answers when it is dropped, so this is a bug of ours; the upstream sees a reset.
                return Err(LinkError::Reset);
            },
            cancelled = answers.cancelled() => match cancelled {
                Cancelled::Batch => return Err(LinkError::Cancelled),
                Cancelled::Items(items) => given_up.give_up_items(&items),
            },
        }
        let mut group = Vec::with_capacity(buffer.len());
        let mut credit = false;
        // What events take counts as waiting until they are sent.
        let mut waiting = Vec::new();
        for message in buffer.drain(..) {
            match message {
                Message::Answer(answer) if cut.contains(&answer.item) => {}
                Message::Answer(answer) => group.push(answer),
                Message::Event(event, _) if cut.contains(&event.item) => {}
                Message::Event(event, room) => {
                    waiting.push((event.item, room));
                    group.push(event);
                }
                Message::Credit => credit = true,
            }
        }
        if !group.is_empty() {
            let before = cut.len();
            answered += send_group(answers, group, &mut cut).await?;
            let cut = &cut[before..];
            for (_, room) in waiting.iter().filter(|(item, _)| cut.contains(item)) {
                room.end_stream();
            }
        }
        if credit && answered < total {
            answers.return_credit().await?;
        }
    }
    Ok(())
}

/// Sends answers in one frame, or one by one if that is too large; one that no frame carries becomes an error. Gives back
/// how many items have had their last, and adds to `cut` those that had it in place of an event.
async fn send_group(
    answers: &mut Box<dyn AnswerSink>,
    group: Vec<Answer>,
    cut: &mut Vec<u32>,
) -> Result<usize, LinkError> {
    let sent = answers.send(group.clone()).await;
    if !is_too_large(&sent) {
        return sent.map(|()| group.iter().filter(|answer| answer.last).count());
    }
    let mut ended = 0;
    for answer in group {
        if cut.contains(&answer.item) {
            continue;
        }
        let (item, last) = (answer.item, answer.last);
        let refused = Answer {
            code: ErrorCode::Worker,
            // Of an event that is too large, too: its stream cannot go on without it.
            last: true,
            payload: Bytes::from_static(b"internal error: the answer is larger than a link carries"),
            ..answer.clone()
        };
        let sent = answers.send(vec![answer]).await;
        if is_too_large(&sent) {
            answers.send(vec![refused]).await?;
            ended += 1;
            if !last {
                cut.push(item);
            }
        } else {
            sent?;
            ended += usize::from(last);
        }
    }
    Ok(ended)
}

fn is_too_large(sent: &Result<(), LinkError>) -> bool {
    matches!(sent, Err(LinkError::Protocol(FrameError::TooLarge { .. })))
}

/// Lost requests of a batch go back to its upstream, which has custody.
struct Upwards;

impl Home for Upwards {
    fn lost(&self, requests: Vec<Request>, loss: Loss) {
        let code = match loss {
            Loss::Worker | Loss::Link => ErrorCode::ReplicaLost,
            Loss::Refused => ErrorCode::NoReplica,
        };
        for request in requests {
            request.give_back(loss, code);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use mosec_dispatch::{Outcome, Respond};
    use mosec_types::StageIndex;
    use parking_lot::Mutex;

    use super::*;

    const LIMIT: usize = 100;

    /// Item, whether it was its last, and bytes, of what a link of small frames was sent.
    #[derive(Clone, Default)]
    struct Small(Arc<Mutex<Vec<(u32, bool, usize)>>>);

    impl AnswerSink for Small {
        fn send(&mut self, answers: Vec<Answer>) -> BoxFuture<'_, Result<(), LinkError>> {
            let bytes: usize = answers.iter().map(|answer| answer.payload.len()).sum();
            let result = if bytes > LIMIT {
                let bytes = bytes as u64;
                Err(LinkError::Protocol(FrameError::TooLarge { bytes, limit: LIMIT }))
            } else {
                let rows = answers.iter().map(|a| (a.item, a.last, a.payload.len()));
                self.0.lock().extend(rows);
                Ok(())
            };
            std::future::ready(result).boxed()
        }

        fn return_credit(&mut self) -> BoxFuture<'_, Result<(), LinkError>> {
            std::future::ready(Ok(())).boxed()
        }

        fn finish(self: Box<Self>) -> BoxFuture<'static, Result<(), LinkError>> {
            std::future::ready(Ok(())).boxed()
        }

        fn cancelled(&mut self) -> BoxFuture<'_, Cancelled> {
            std::future::pending().boxed()
        }
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
    async fn an_event_that_no_frame_carries_ends_its_item_alone() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let given_up = GivenUp::new(3);
        let reply = |item| {
            LinkReply::new(
                (item, StageIndex(0)),
                false,
                Instant::now(),
                given_up.clone(),
                sender.clone(),
            )
        };
        let [cut, late, other] = [0, 1, 2].map(reply);
        let event = |bytes| Payload::Bytes(Bytes::from(vec![b'x'; bytes]));
        cut.event(event(1));
        cut.event(event(LIMIT + 1));
        late.event(event(LIMIT + 1));
        respond(late);
        let small = Small::default();
        let mut sink: Box<dyn AnswerSink> = Box::new(small.clone());
        {
            let mut passing = std::pin::pin!(pass_on(&mut messages, &mut sink, &given_up));
            assert!(passing.as_mut().now_or_never().is_none(), "one item is open");
            assert!(!cut.is_wanted(), "so that its worker stops");
            respond(cut);
            assert!(passing.as_mut().now_or_never().is_none());
            respond(other);
            passing.await.unwrap();
        }
        let refused = small.0.lock()[1].2;
        let expected = [
            (0, false, 1),
            (0, true, refused),
            (1, true, refused),
            (2, true, 0),
        ];
        assert_eq!(*small.0.lock(), expected);
    }
}

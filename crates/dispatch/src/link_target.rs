//! Hot path. A node agent at the other end of a link, as a target of batches.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::{ErrorCode, Span, SpanKind, StageIndex, StageKey};
use mosec_wire::frame::FrameError;
use mosec_wire::{Answer, Answers, Batch, Custody, Item, Link, LinkError, Returned};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::custody::Loss;
use crate::{Credit, Dispatched, Payload, Request, Target};

/// How often a batch that is out is looked at, to cancel it when nobody waits for it any more.
const LOOK: Duration = Duration::from_millis(100);

/// Sends batches over a link, one task for each while it is out.
#[derive(Debug, Clone)]
pub struct LinkTarget {
    link: Arc<dyn Link>,
    flights: TaskTracker,
}

impl LinkTarget {
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self {
            link,
            flights: TaskTracker::new(),
        }
    }

    /// Whether nothing is out, answers of later stages included.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }
}

impl Target for LinkTarget {
    fn send(&self, batch: Dispatched) {
        // The task ends when the batch is answered, its link breaks, or nobody waits for it any more.
        self.flights.spawn(run(self.link.clone(), batch));
    }
}

async fn run(link: Arc<dyn Link>, batch: Dispatched) {
    let Dispatched {
        stage,
        requests,
        home,
        credit,
    } = batch;
    let frame = to_wire(stage, &requests, Instant::now());
    let mut flight = Flight {
        requests: requests.into_iter().map(Some).collect(),
        refused: Vec::new(),
        crashed: Vec::new(),
        credit: Some(credit),
        sent: Instant::now(),
    };
    let mut loss = Loss::Link;
    let result = match flight.while_wanted(link.send(frame)).await {
        Some(Ok(mut answers)) => flight.collect(&mut *answers).await,
        Some(Err(error)) => {
            if is_down(&error) {
                // It has not arrived whole, so nothing of it can have started.
                loss = Loss::Refused;
            }
            Err(error)
        }
        None => Ok(()),
    };
    if let Err(error) = &result {
        tracing::debug!(%stage, %error, "batch was lost on its link");
    }
    let rest: Vec<_> = flight.requests.into_iter().flatten().collect();
    if let Err(LinkError::Protocol(FrameError::TooLarge { .. })) = result {
        // Not a loss: a request that no frame carries is refused wherever it is sent.
        return rest
            .into_iter()
            .for_each(|request| request.fail(ErrorCode::BodyTooLarge));
    }
    for (requests, loss) in [
        (flight.refused, Loss::Refused),
        (flight.crashed, Loss::Worker),
        (rest, loss),
    ] {
        if !requests.is_empty() {
            home.lost(requests, loss);
        }
    }
}

/// Whether the link itself is the reason, which is about to be known to the dispatchers too. What is wrong with one batch is
/// counted as a loss, or it would be sent for ever.
fn is_down(error: &LinkError) -> bool {
    matches!(
        error,
        LinkError::Lost(_) | LinkError::Silent(_) | LinkError::Closed
    )
}

/// A batch that is out.
struct Flight {
    /// By position, what has not been answered.
    requests: Vec<Option<Request>>,
    /// What the far side turned away.
    refused: Vec<Request>,
    /// What the far side lost a worker under.
    crashed: Vec<Request>,
    credit: Option<Credit>,
    sent: Instant,
}

impl Flight {
    /// Takes answers until all are there or the stream ends.
    async fn collect(&mut self, answers: &mut dyn Answers) -> Result<(), LinkError> {
        while self.requests.iter().any(Option::is_some) {
            match self.while_wanted(answers.next()).await {
                None => return Ok(()),
                Some(Ok(Some(Returned::Answers(group)))) => {
                    group.into_iter().for_each(|answer| self.answer(answer))
                }
                Some(Ok(Some(Returned::Credit))) => self.credit = None,
                // Finished without an answer for each: the peer's fault, and as good as a reset.
                Some(Ok(None)) => return Err(LinkError::Reset),
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn answer(&mut self, answer: Answer) {
        if !answer.last {
            return self.event(answer);
        }
        let Some(request) = self.requests.get_mut(answer.item as usize).and_then(Option::take) else {
            tracing::warn!(item = answer.item, "an answer names no open item of its batch");
            return;
        };
        let mut request = request;
        match answer.custody {
            Custody::Lost { losses } => {
                request.note_losses(losses);
                return self.crashed.push(request);
            }
            Custody::Refused { losses } => {
                request.note_losses(losses);
                return self.refused.push(request);
            }
            Custody::Done => {}
        }
        if request.traced {
            add_spans(&mut request, &answer.spans, self.sent);
        }
        request.respond(answer.code, Payload::Bytes(answer.payload));
    }

    fn event(&mut self, event: Answer) {
        match self.requests.get_mut(event.item as usize) {
            Some(Some(request)) => {
                request.event(Payload::Bytes(event.payload), Instant::now());
            }
            _ => tracing::warn!(item = event.item, "an event names no open item of its batch"),
        }
    }

    /// Awaits `future` while anybody waits for the batch; `None` when nobody does any more.
    async fn while_wanted<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                // An answer that is there comes first.
                biased;
                done = &mut future => return Some(done),
                () = tokio::time::sleep(LOOK) => {
                    let now = Instant::now();
                    if !self.requests.iter().flatten().any(|request| request.is_live(now)) {
                        return None;
                    }
                }
            }
        }
    }
}

/// Adds where the time went on the far side, and what is left of the round trip for the link itself.
fn add_spans(request: &mut Request, far: &[Span], sent: Instant) {
    let round_trip = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
    let accounted = far.iter().fold(0u32, |sum, span| sum.saturating_add(span.micros));
    let stage = far.first().map_or(StageIndex(0), |span| span.stage);
    request.spans.push(Span {
        kind: SpanKind::Link,
        stage,
        micros: round_trip.saturating_sub(accounted),
    });
    request.spans.extend_from_slice(far);
}

fn to_wire(stage: StageKey, requests: &[Request], now: Instant) -> Batch {
    let items = requests
        .iter()
        .map(|request| Item {
            id: request.id,
            route: request.route,
            remaining: request.deadline.saturating_duration_since(now),
            losses: request.losses,
            traced: request.traced,
            payload: request.payload.to_bytes(),
        })
        .collect();
    Batch { stage, items }
}

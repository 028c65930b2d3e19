//! Hot path. A node agent at the other end of a link, as a target of batches.

use std::sync::Arc;
use std::time::Duration;

use mosec_types::{ErrorCode, Span, SpanKind, StageIndex, StageKey};
use mosec_wire::frame::FrameError;
use mosec_wire::{Answer, Answers, Batch, Custody, Item, Link, LinkError, LinkStats, Returned};
use prometheus::IntCounter;
use tokio::time::{Instant, Interval};
use tokio_util::task::TaskTracker;

use crate::custody::Loss;
use crate::{Credit, Dispatched, Home, Payload, Request, Target};

/// How often a batch that is out is looked at, to cancel it, or those of its requests that nobody waits for any more.
const LOOK: Duration = Duration::from_millis(100);

/// How long the end of a stream may take to arrive after the last answer: it is on its way.
const END: Duration = Duration::from_secs(1);

/// Sends batches over a link, one task for each while it is out.
#[derive(Debug, Clone)]
pub struct LinkTarget {
    link: Arc<dyn Link>,
    flights: TaskTracker,
    /// Counts the batches that are called back.
    resets: Option<IntCounter>,
}

impl LinkTarget {
    pub fn new(link: Arc<dyn Link>) -> Self {
        Self {
            link,
            flights: TaskTracker::new(),
            resets: None,
        }
    }

    /// The same, which counts the batches that are called back as nobody waits for them.
    pub(crate) fn counting(link: Arc<dyn Link>, resets: IntCounter) -> Self {
        Self {
            resets: Some(resets),
            ..Self::new(link)
        }
    }

    pub(crate) fn stats(&self) -> Option<LinkStats> {
        self.link.stats()
    }

    /// Batches that are out, those of which only later stages' answers are missing included.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether nothing is out, answers of later stages included.
    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }
}

impl Target for LinkTarget {
    fn send(&self, batch: Dispatched) {
        // The task ends when the batch is answered, its link breaks, or nobody waits for it any more.
        self.flights.spawn(run(self.clone(), batch));
    }
}

async fn run(target: LinkTarget, batch: Dispatched) {
    let LinkTarget { link, resets, .. } = target;
    let frame = to_wire(batch.stage, &batch.requests, Instant::now());
    let mut flight = Flight::new(batch);
    let mut loss = Loss::Link;
    let result = match flight.while_wanted(link.send(frame)).await {
        Some(Ok(answers)) => flight.collect(answers).await,
        Some(Err(error)) => {
            if is_down(&error) {
                // It has not arrived whole, so nothing of it can have started.
                loss = Loss::Refused;
            }
            Err(error)
        }
        None => Ok(None),
    };
    if let Err(error) = &result {
        tracing::debug!(stage = %flight.stage, %error, "batch was lost on its link");
    }
    let too_large = matches!(result, Err(LinkError::Protocol(FrameError::TooLarge { .. })));
    flight.end(loss, too_large);
    match result {
        Ok(Some(answers)) => read_end(answers).await,
        Ok(None) => resets.iter().for_each(IntCounter::inc),
        Err(_) => {}
    }
}

/// Reads on to the end of a stream whose answers are all there. To leave it would tell the agent that they are not wanted.
async fn read_end(mut answers: Box<dyn Answers>) {
    let end = async { while let Ok(Some(_)) = answers.next().await {} };
    let _ = tokio::time::timeout(END, end).await;
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
    stage: StageKey,
    /// By position, what has not been answered.
    requests: Vec<Option<Request>>,
    /// How many those are.
    open: usize,
    home: Arc<dyn Home>,
    credit: Option<Credit>,
    sent: Instant,
    /// When to look whether anybody waits. One for the whole flight: answers must not put it off.
    look: Interval,
}

impl Flight {
    fn new(batch: Dispatched) -> Self {
        let Dispatched {
            stage,
            requests,
            home,
            credit,
            ..
        } = batch;
        let now = Instant::now();
        Self {
            stage,
            open: requests.len(),
            requests: requests.into_iter().map(Some).collect(),
            home,
            credit: Some(credit),
            sent: now,
            look: tokio::time::interval_at(now + LOOK, LOOK),
        }
    }

    /// Takes answers until all are there or the stream ends. The stream comes back where it has more to say than answers;
    /// `None` where nobody waits for them any more.
    async fn collect(
        &mut self,
        mut answers: Box<dyn Answers>,
    ) -> Result<Option<Box<dyn Answers>>, LinkError> {
        while self.open > 0 {
            tokio::select! {
                // An answer that is there comes first.
                biased;
                returned = answers.next() => match returned? {
                    Some(Returned::Answers(group)) => self.take(group),
                    Some(Returned::Credit) => self.credit = None,
                    // Finished without an answer for each: the peer's fault, and as good as a reset.
                    None => return Err(LinkError::Reset),
                },
                now = self.look.tick() => {
                    let over = self.over(now);
                    if over.len() == self.open {
                        return Ok(None);
                    }
                    // Whatever was said before may have been lost.
                    answers.cancel(&over);
                }
            }
        }
        Ok(Some(answers))
    }

    /// Passes answers on, and gives back at once what goes back: the rest of the batch may take long.
    fn take(&mut self, group: Vec<Answer>) {
        let (mut refused, mut crashed) = (Vec::new(), Vec::new());
        for answer in group {
            if !answer.last {
                self.event(answer);
                continue;
            }
            let Some(mut request) = self.close(answer.item) else {
                tracing::warn!(item = answer.item, "an answer names no open item of its batch");
                continue;
            };
            match answer.custody {
                Custody::Lost { losses } => {
                    request.note_losses(losses);
                    crashed.push(request);
                }
                Custody::Refused { losses } => {
                    request.note_losses(losses);
                    refused.push(request);
                }
                Custody::Done => self.answer(request, answer),
            }
        }
        self.give_back(refused, Loss::Refused);
        self.give_back(crashed, Loss::Worker);
    }

    fn close(&mut self, item: u32) -> Option<Request> {
        let request = self.requests.get_mut(item as usize)?.take()?;
        self.open -= 1;
        Some(request)
    }

    fn answer(&self, mut request: Request, answer: Answer) {
        if request.traced {
            add_spans(&mut request, &answer.spans, self.sent);
        }
        request.respond(answer.code, Payload::Bytes(answer.payload));
    }

    fn give_back(&self, requests: Vec<Request>, loss: Loss) {
        if !requests.is_empty() {
            self.home.lost(requests, loss);
        }
    }

    /// Ends what is not answered. The credit goes last: by then the dispatcher knows what became of the batch.
    fn end(mut self, loss: Loss, too_large: bool) {
        let rest: Vec<_> = self.requests.drain(..).flatten().collect();
        if too_large {
            // Not a loss: a request that no frame carries is refused wherever it is sent.
            rest.into_iter()
                .for_each(|request| request.fail(ErrorCode::BodyTooLarge));
        } else {
            self.give_back(rest, loss);
        }
    }

    fn event(&mut self, event: Answer) {
        match self.requests.get_mut(event.item as usize) {
            Some(Some(request)) => {
                request.event(Payload::Bytes(event.payload), Instant::now());
            }
            _ => tracing::warn!(item = event.item, "an event names no open item of its batch"),
        }
    }

    /// Awaits `future`, which brings no answers, while anybody waits for the batch; `None` when nobody does any more.
    async fn while_wanted<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                // An answer that is there comes first.
                biased;
                done = &mut future => return Some(done),
                now = self.look.tick() => {
                    if self.over(now).len() == self.open {
                        return None;
                    }
                }
            }
        }
    }

    /// The items that have not been answered and that nobody waits for.
    fn over(&self, now: Instant) -> Vec<u32> {
        let open = (0..)
            .zip(&self.requests)
            .filter_map(|(item, request)| Some((item, request.as_ref()?)));
        open.filter(|(_, request)| !request.is_live(now))
            .map(|(item, _)| item)
            .collect()
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
            headers: request.headers.clone(),
            payload: request.payload.to_bytes(),
        })
        .collect();
    Batch { stage, items }
}

//! Hot path. Where a worker's answer goes: to the next stage of its route, or back to whoever asked.

use std::sync::Arc;

use bytes::Bytes;
use mosec_dispatch::{Payload, Registry, Request};
use mosec_shm_ring::{ITEM_EGRESS, ITEM_INGRESS, ResponseItem};
use mosec_types::{ErrorCode, PipelineSpec, RouteIndex, StageKey};
use tokio::time::Instant;

use crate::pool::Slot;
use crate::waits;

/// What a stage's pool knows of the routes through it.
pub(crate) struct Deliver {
    pub(crate) stage: StageKey,
    pub(crate) spec: Arc<PipelineSpec>,
    /// Dispatchers of this process, those of later stages among them.
    pub(crate) registry: Registry,
    /// By route: whether to wait for room at the next stage.
    waits: Vec<bool>,
}

impl Deliver {
    pub(crate) fn new(stage: StageKey, spec: Arc<PipelineSpec>, registry: Registry) -> Self {
        let waits = waits::by_route(&spec, stage.stage);
        Self {
            stage,
            spec,
            registry,
            waits,
        }
    }

    /// Which codecs apply to a request of this route: clients' at either end, the stages' own in between.
    pub(crate) fn item_flags(&self, route: RouteIndex) -> u32 {
        let Some(route) = self.spec.route(route) else {
            return ITEM_INGRESS | ITEM_EGRESS;
        };
        let ingress = if route.first() == Some(self.stage.stage) {
            ITEM_INGRESS
        } else {
            0
        };
        let egress = if route.last() == Some(self.stage.stage) {
            ITEM_EGRESS
        } else {
            0
        };
        ingress | egress
    }

    /// Passes one event on. Those of a stage that is not its route's last go nowhere: clients hear of the result alone.
    pub(crate) fn event(&self, request: &mut Request, event: Bytes) -> bool {
        self.item_flags(request.route) & ITEM_EGRESS != 0
            && request.event(Payload::Bytes(event), Instant::now())
    }

    /// Passes one answer on. `slot` is held while the next stage's queue has no room, unless that stage may wait for this one.
    pub(crate) fn deliver(&self, mut request: Request, item: ResponseItem, slot: &Arc<Slot>) {
        let code = ErrorCode::from_wire(item.code).unwrap_or(ErrorCode::Internal);
        let next = self
            .spec
            .route(request.route)
            .and_then(|route| route.next(self.stage.stage));
        match next {
            Some(stage) if code.is_ok() => {
                let key = StageKey {
                    revision: self.stage.revision,
                    stage,
                };
                let Some(dispatcher) = self.registry.dispatcher(key) else {
                    return request.fail(ErrorCode::UnknownStage);
                };
                request.arrived = Instant::now();
                request.losses = 0;
                request.payload = Payload::Slice(item.payload);
                if self.waits.get(usize::from(request.route.0)) == Some(&true) {
                    dispatcher.submit_held(request, slot.clone());
                } else {
                    dispatcher.submit_unheld(request);
                }
            }
            // As where there was no memory for the worker's own words.
            _ if !code.is_ok() && item.payload.is_empty() => request.fail(code),
            // The one copy out of shared memory: what follows is a socket.
            _ => request.respond(code, Payload::Bytes(item.payload.to_bytes())),
        }
    }
}

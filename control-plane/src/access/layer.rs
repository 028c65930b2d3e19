//! Checks every request against the table before anything of it is read.

use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::future::Either;
use http_body_util::Limited;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{Caller, table};

/// Largest message of a stranger: a signing request, a token and names. Others may send whole pipelines.
const MAX_STRANGERS_BYTES: usize = 8 * 1024;

/// Puts [`Checked`] around the services of a port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccessLayer;

impl<S> Layer<S> for AccessLayer {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Checked<S> {
        Checked { inner }
    }
}

/// Passes on what the table allows.
#[derive(Debug, Clone)]
pub(crate) struct Checked<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Checked<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<Caller>().unwrap_or(&Caller::Stranger);
        let is_stranger = *caller == Caller::Stranger;
        let call = request.uri().path();
        match table::check(caller, call, SystemTime::now()) {
            Ok(()) if is_stranger => {
                let bounded = request.map(|body| Body::new(Limited::new(body, MAX_STRANGERS_BYTES)));
                Either::Left(self.inner.call(bounded))
            }
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => {
                // Strangers come as often as they like.
                if is_stranger {
                    tracing::debug!(%caller, call, "call refused");
                } else {
                    tracing::info!(%caller, call, "call refused");
                }
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

//! Checks every request against the table before anything of it is read.

use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::future::Either;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use super::{Caller, table};

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
        match table::check(caller, request.uri().path(), SystemTime::now()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => {
                tracing::info!(%caller, call = request.uri().path(), "call refused");
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

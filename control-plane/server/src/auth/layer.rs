//! What every call goes through before its service sees it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use longship_proto::{Failure, FailureExt, now_us};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::caller::{Caller, Who};
use super::rules::{Rule, rule};
use super::tokens::Tokens;
use super::unauthenticated;
use crate::listen::Peer;

/// Puts the [`Caller`] into each request, or refuses it: without reading its body, and
/// without asking anybody.
#[derive(Clone)]
pub(crate) struct AuthLayer {
    pub(crate) tokens: Arc<Tokens>,
    /// Who says nothing of themselves may do everything.
    pub(crate) open: bool,
}

impl AuthLayer {
    /// Who calls, and whether they may.
    fn admit<B>(&self, request: &Request<B>) -> Result<Caller, Status> {
        let path = request.uri().path();
        let Some(rule) = rule(path) else {
            return Err(Status::unimplemented("there is no such call"));
        };
        if rule == Rule::Everybody {
            return Ok(Caller::new(Who::Anybody));
        }
        let peer = request.extensions().get::<Peer>();
        let caller = self.authenticate(request, peer)?;
        if let Some(peer) = peer {
            peer.set_known();
        }
        if !rule.allows(&caller.who) {
            let whom = rule.whom();
            return Err(Failure::denied(format!("this is for {whom} only")).into_status());
        }
        Ok(caller)
    }

    fn authenticate<B>(&self, request: &Request<B>, peer: Option<&Peer>) -> Result<Caller, Status> {
        // Whoever sends a token is taken at their word, on an open server too.
        if request.headers().contains_key(AUTHORIZATION) {
            let token = bearer(request.headers()).ok_or_else(|| {
                unauthenticated("`authorization` must be given once, as `Bearer TOKEN`")
            })?;
            let caller = self.tokens.check(token, now_us());
            return caller.map_err(|error| unauthenticated(error.to_string()));
        }
        if let Some(who) = peer.and_then(|peer| peer.who.clone()) {
            return Ok(Caller::new(who));
        }
        if self.open {
            return Ok(Caller::new(Who::Anybody));
        }
        Err(unauthenticated(
            "say who you are: with a token (`authorization: Bearer …`), or a certificate",
        ))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (first, None) = (all.next()?, all.next()) else {
        return None;
    };
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

impl<S> Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded {
            auth: self.clone(),
            inner,
        }
    }
}

/// Services behind the [`AuthLayer`].
#[derive(Clone)]
pub(crate) struct Guarded<S> {
    auth: AuthLayer,
    inner: S,
}

type Answered<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answered<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match self.auth.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

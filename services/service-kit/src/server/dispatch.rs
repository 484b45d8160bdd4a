//! Calls go straight to the service that their path names. tonic's own way leads through a web framework's router, which boxes each
//! request and each part of its answer anew: that costs more than many an answer.

use std::convert::Infallible;
use std::fmt;

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;
use tower::Service;

/// The services of a server.
#[derive(Debug, Default)]
pub(super) struct Services(Vec<Named>);

struct Named {
    name: &'static str,
    service: Box<dyn Answer>,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A service that is always ready, as those are that tonic generates.
pub(super) trait Answer: Send + Sync {
    fn answer(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible>;
}

impl<S> Answer for S
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        > + Clone
        + Send
        + Sync,
{
    fn answer(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible> {
        self.clone().call(request)
    }
}

impl Services {
    /// Adds a service under its name.
    pub(super) fn add<S: Answer + NamedService + 'static>(&mut self, service: S) {
        self.0.push(Named { name: S::NAME, service: Box::new(service) });
    }

    /// The names of all, in the order in which they were added.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|named| named.name)
    }

    /// The answer of the service that the request's path, `/package.Service/Method`, names; that of `otherwise`, if none is.
    pub(super) fn call(
        &self,
        request: Request<Body>,
        otherwise: impl FnOnce(Request<Body>) -> BoxFuture<Response<Body>, Infallible>,
    ) -> BoxFuture<Response<Body>, Infallible> {
        let name = request.uri().path().strip_prefix('/').and_then(|path| path.split_once('/')).map(|(name, _)| name);
        // There are a handful: looking at each is cheaper than hashing.
        match self.0.iter().find(|named| name == Some(named.name)) {
            Some(named) => named.service.answer(request),
            None => otherwise(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;

    /// Answers with its status code.
    #[derive(Clone)]
    struct Teapot;

    impl NamedService for Teapot {
        const NAME: &'static str = "test.Teapot";
    }

    impl Service<Request<Body>> for Teapot {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<Response<Body>, Infallible>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            Box::pin(async {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
                Ok(response)
            })
        }
    }

    #[tokio::test]
    async fn a_call_reaches_the_service_that_its_path_names_and_no_other() {
        let mut services = Services::default();
        services.add(Teapot);
        assert_eq!(services.names().collect::<Vec<_>>(), ["test.Teapot"]);
        for (path, reached) in [
            ("/test.Teapot/Brew", true),
            ("/test.Teapot/", true),
            ("/test.Teapot", false),
            ("/test.Teapots/Brew", false),
            ("/Teapot/Brew", false),
            ("//test.Teapot/Brew", false),
            ("/", false),
        ] {
            let request = Request::builder().uri(format!("http://localhost{path}")).body(Body::empty());
            let other = |_| -> BoxFuture<_, _> { Box::pin(async { Ok(Response::new(Body::empty())) }) };
            let answer = services.call(request.expect("a request"), other).await.expect("infallible");
            assert_eq!(answer.status() == http::StatusCode::IM_A_TEAPOT, reached, "{path}");
        }
    }
}

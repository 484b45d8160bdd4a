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
pub(super) struct Services {
    named: Vec<Named>,
    /// Methods, by their paths, that another service answers than the one that their path names.
    methods: Vec<(String, AnyService)>,
}

/// Some service, as what answers.
struct AnyService(Box<dyn Fn(Request<Body>) -> Answer + Send + Sync>);

/// What comes of a call.
type Answer = BoxFuture<Response<Body>, Infallible>;

impl AnyService {
    fn new(service: impl GrpcService) -> Self {
        Self(Box::new(move |request| service.answer(request)))
    }
}

impl fmt::Debug for AnyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyService")
    }
}

#[derive(Debug)]
struct Named {
    name: &'static str,
    service: AnyService,
}

/// A service as tonic generates them: it has a name, and is always ready.
pub trait GrpcService: NamedService + Send + Sync + 'static {
    /// Answers a call.
    fn answer(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible>;
}

impl<S> GrpcService for S
where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future = BoxFuture<Response<Body>, Infallible>,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn answer(&self, request: Request<Body>) -> BoxFuture<Response<Body>, Infallible> {
        self.clone().call(request)
    }
}

impl Services {
    /// Adds a service under its name.
    pub(super) fn add<S: GrpcService>(&mut self, service: S) {
        self.named.push(Named { name: S::NAME, service: AnyService::new(service) });
    }

    /// Lets `service` answer one method of its name.
    pub(super) fn add_method<S: GrpcService>(&mut self, method: &str, service: S) {
        self.methods.push((format!("/{}/{method}", S::NAME), AnyService::new(service)));
    }

    /// The names of all, in the order in which they were added.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.named.iter().map(|named| named.name)
    }

    /// The answer of the service that the request's path, `/package.Service/Method`, names; that of `otherwise`, if none is.
    pub(super) fn call(
        &self,
        request: Request<Body>,
        otherwise: impl FnOnce(Request<Body>) -> BoxFuture<Response<Body>, Infallible>,
    ) -> BoxFuture<Response<Body>, Infallible> {
        match self.find(request.uri().path()) {
            Some(service) => (service.0)(request),
            None => otherwise(request),
        }
    }

    fn find(&self, path: &str) -> Option<&AnyService> {
        // There are a handful: looking at each is cheaper than hashing.
        if let Some((_, service)) = self.methods.iter().find(|(own, _)| own == path) {
            return Some(service);
        }
        let (name, _) = path.strip_prefix('/')?.split_once('/')?;
        self.named.iter().find(|named| named.name == name).map(|named| &named.service)
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use super::*;

    /// Answers with this status code.
    #[derive(Clone)]
    struct Teapot(http::StatusCode);

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
            let mut response = Response::new(Body::empty());
            *response.status_mut() = self.0;
            Box::pin(std::future::ready(Ok(response)))
        }
    }

    #[tokio::test]
    async fn a_call_reaches_the_service_that_its_path_names_and_no_other() {
        let mut services = Services::default();
        services.add(Teapot(http::StatusCode::IM_A_TEAPOT));
        services.add_method("Pour", Teapot(http::StatusCode::FOUND));
        assert_eq!(services.names().collect::<Vec<_>>(), ["test.Teapot"]);
        let [service, method, neither] = [http::StatusCode::IM_A_TEAPOT, http::StatusCode::FOUND, http::StatusCode::OK];
        for (path, reached) in [
            ("/test.Teapot/Brew", service),
            ("/test.Teapot/", service),
            ("/test.Teapot/Pour", method),
            ("/test.Teapot/Pour/", service),
            ("/test.Teapots/Pour", neither),
            ("/test.Teapot", neither),
            ("/test.Teapots/Brew", neither),
            ("/Teapot/Brew", neither),
            ("//test.Teapot/Brew", neither),
            ("/", neither),
        ] {
            let request = Request::builder().uri(format!("http://localhost{path}")).body(Body::empty());
            let other = |_| -> BoxFuture<_, _> { Box::pin(async { Ok(Response::new(Body::empty())) }) };
            let answer = services.call(request.expect("a request"), other).await.expect("infallible");
            assert_eq!(answer.status(), reached, "{path}");
        }
    }
}

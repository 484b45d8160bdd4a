//! A service to call.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::convert::Infallible;
use std::future::ready;
use std::task::{Context, Poll};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto};
use service_kit::auth::Surface;
use service_kit::context::RequestContext;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::BoxFuture;
use tonic::server::NamedService;

/// What a server with a [`Mirror`] serves.
pub fn surface(policy: &'static str) -> Surface {
    let method = MethodDescriptorProto { name: Some("WhoAmI".into()), ..Default::default() };
    let service = ServiceDescriptorProto { name: Some("Mirror".into()), method: vec![method], ..Default::default() };
    let file = FileDescriptorProto {
        name: Some("test.proto".into()),
        package: Some("test".into()),
        service: vec![service],
        ..Default::default()
    };
    let descriptors = FileDescriptorSet { file: vec![file] }.encode_to_vec().leak();
    Surface { descriptors, services: &[Mirror::NAME], policy }
}

/// Answers ABORTED, and in its message its own name, or else who it was called for.
#[derive(Clone)]
pub struct Mirror(Option<String>);

impl Mirror {
    /// Says its own name.
    pub fn named(name: String) -> Self {
        Self(Some(name))
    }

    /// Says who it was called for.
    pub fn of_actors() -> Self {
        Self(None)
    }
}

impl NamedService for Mirror {
    const NAME: &'static str = "test.Mirror";
}

impl tower::Service<http::Request<Body>> for Mirror {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let actor = request.extensions().get::<RequestContext>().and_then(|context| context.actor.clone());
        let actor = || actor.map_or_else(|| "nobody".to_owned(), |actor| actor.to_string());
        Box::pin(ready(Ok(Status::aborted(self.0.clone().unwrap_or_else(actor)).into_http())))
    }
}

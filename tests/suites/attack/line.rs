//! Calls that are well-formed HTTP/2, whatever they carry.

use std::time::Duration;

use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use keysweep_e2e::wait;
use prost::bytes::Bytes;
use tokio::task::JoinHandle;
use tonic::Code;

use crate::wire::Wire;

/// A connection.
pub(crate) struct Line {
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Line {
    /// Begins to speak HTTP/2.
    pub(crate) async fn open(wire: Wire) -> Self {
        let (send, connection) = h2::client::handshake(wire).await.expect("HTTP/2");
        // How it ended is seen by its calls.
        let driver = tokio::spawn(async { connection.await.unwrap_or_default() });
        Self { send, driver }
    }

    /// What a call with these headers and this body is answered, or why it is not.
    pub(crate) async fn call(&self, path: &str, headers: &[(&str, &[u8])], body: Vec<u8>) -> Result<Code, h2::Error> {
        let (answer, mut out) = self.begin(path, headers).await?;
        // It may have been refused already, before anything of its body was heard.
        let _refused = out.send_data(body.into(), true);
        tokio::time::timeout(wait::PATIENCE, read(answer)).await.expect("an answer in time")
    }

    /// What a call is answered of whose body this comes, and not the rest.
    pub(crate) async fn leave_unfinished(&self, path: &str, body: Vec<u8>) -> Result<Code, h2::Error> {
        let (answer, mut out) = self.begin(path, &[]).await?;
        let _refused = out.send_data(body.into(), false);
        tokio::time::timeout(wait::PATIENCE, read(answer)).await.expect("an answer in time")
    }

    async fn begin(
        &self,
        path: &str,
        headers: &[(&str, &[u8])],
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut request = http::Request::post(format!("http://localhost{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send.clone().ready().await?.send_request(request.body(()).expect("a request"), false)
    }

    /// Hangs up.
    pub(crate) async fn end(self) {
        drop(self.send);
        tokio::time::timeout(Duration::from_secs(5), self.driver).await.expect("it ends").expect("no panic");
    }
}

async fn read(answer: ResponseFuture) -> Result<Code, h2::Error> {
    let (head, mut body) = answer.await?.into_parts();
    let mut status = head.headers.get("grpc-status").cloned();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    if status.is_none() {
        status = body.trailers().await?.and_then(|trailers| trailers.get("grpc-status").cloned());
    }
    Ok(status.map_or(Code::Unknown, |status| Code::from_bytes(status.as_bytes())))
}

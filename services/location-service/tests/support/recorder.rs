//! A key-service over real gRPC that generates keys as the real one promises to, and records every call.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use keysweep_proto::key::v1::key_service_server::{KeyService, KeyServiceServer};
use keysweep_proto::key::v1::*;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

/// One call of any method.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: &'static str,
    pub actor: String,
    pub request: GenerateApiKeyRequest,
}

/// What happens to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is sent.
    Sent,
    /// The key is generated, and the answer lost.
    Lost,
    /// The key is generated, and the answer never comes.
    Hangs,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    keys: HashMap<(String, String), (GenerateApiKeyRequest, GenerateApiKeyResponse)>,
    lose: usize,
    hang: bool,
}

#[derive(Clone)]
pub struct Recorder {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    stop: Arc<Mutex<CancellationToken>>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let recorder = Self { state: Arc::default(), address, stop: Arc::default() };
        recorder.serve(listener);
        recorder
    }

    fn serve(&self, listener: TcpListener) {
        let stop = CancellationToken::new();
        *self.stop.lock().expect("lock") = stop.clone();
        let server = tonic::transport::Server::builder().add_service(KeyServiceServer::new(self.clone()));
        // Dropped when stopped: open connections break, as when the process dies.
        tokio::spawn(async move {
            tokio::select! {
                _ = server.serve_with_incoming(TcpIncoming::from(listener)) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Stops answering: its port refuses connections.
    pub async fn go_down(&self) {
        self.stop.lock().expect("lock").cancel();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    pub async fn come_up(&self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(self.address).expect("the old port");
        self.serve(socket.listen(64).expect("listens"));
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// How many keys exist.
    pub fn generated(&self) -> usize {
        self.state().keys.len()
    }

    /// All secrets there are.
    pub fn secrets(&self) -> Vec<String> {
        self.state().keys.values().map(|(_, response)| response.secret.clone()).collect()
    }

    /// Loses the next answers.
    pub fn lose(&self, answers: usize) {
        self.state().lose = answers;
    }

    /// Whether answers never come.
    pub fn hang(&self, hang: bool) {
        self.state().hang = hang;
    }

    fn unexpected<T>(&self, method: &'static str) -> Result<Response<T>, Status> {
        self.state().seen.push(Seen { method, actor: String::new(), request: GenerateApiKeyRequest::default() });
        Err(Status::unimplemented(method))
    }

    fn generate(
        &self,
        actor: String,
        request: GenerateApiKeyRequest,
    ) -> (Answer, Result<GenerateApiKeyResponse, Status>) {
        let mut state = self.state();
        state.seen.push(Seen { method: "GenerateApiKey", actor, request: request.clone() });
        let mut faults = service_kit::violations::Violations::default();
        faults.check_text("display_name", &request.display_name, 100);
        if !faults.is_empty() {
            return (Answer::Sent, Err(service_kit::status::invalid_fields(&faults)));
        }
        let agency_id = match request.owner.clone().and_then(|owner| owner.account) {
            Some(owner::Account::AgencyId(id)) => id,
            Some(owner::Account::Location(location)) => location.agency_id,
            None => return (Answer::Sent, Err(Status::invalid_argument("no owner"))),
        };
        let number = state.keys.len() + 1;
        let fresh = || {
            let api_key = ApiKey {
                key_id: format!("key_{number:032x}"),
                owner: request.owner.clone(),
                display_name: request.display_name.clone(),
                display_prefix: "ksw_test".into(),
                scopes: request.scopes.clone(),
                create_time: Some(prost_types::Timestamp { seconds: 1_768_000_000, nanos: 0 }),
                expire_time: request.expire_time,
                ..ApiKey::default()
            };
            GenerateApiKeyResponse { api_key: Some(api_key), secret: format!("ksw_test_canary_{number:08}_secret") }
        };
        let entry =
            state.keys.entry((agency_id, request.request_id.clone())).or_insert_with(|| (request.clone(), fresh()));
        if entry.0 != request {
            let reused =
                service_kit::status::StatusBuilder::new(Code::AlreadyExists, "REQUEST_ID_REUSED", "reused").build();
            return (Answer::Sent, Err(reused));
        }
        let response = entry.1.clone();
        let answer = if state.hang {
            Answer::Hangs
        } else if state.lose > 0 {
            state.lose -= 1;
            Answer::Lost
        } else {
            Answer::Sent
        };
        (answer, Ok(response))
    }
}

type Answered<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl KeyService for Recorder {
    async fn generate_api_key(&self, request: Request<GenerateApiKeyRequest>) -> Answered<GenerateApiKeyResponse> {
        let actor = request
            .metadata()
            .get("x-keysweep-actor")
            .and_then(|actor| actor.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let (answer, response) = self.generate(actor, request.into_inner());
        match answer {
            Answer::Sent => response.map(Response::new),
            Answer::Lost => Err(Status::unavailable("the answer was lost")),
            Answer::Hangs => {
                let never: Pin<Box<dyn Future<Output = Answered<GenerateApiKeyResponse>> + Send>> =
                    Box::pin(std::future::pending());
                never.await
            }
        }
    }

    async fn verify_key(&self, _: Request<VerifyKeyRequest>) -> Answered<VerifyKeyResponse> {
        self.unexpected("VerifyKey")
    }

    async fn get_api_key(&self, _: Request<GetApiKeyRequest>) -> Answered<ApiKey> {
        self.unexpected("GetApiKey")
    }

    async fn list_api_keys(&self, _: Request<ListApiKeysRequest>) -> Answered<ListApiKeysResponse> {
        self.unexpected("ListApiKeys")
    }

    async fn update_api_key(&self, _: Request<UpdateApiKeyRequest>) -> Answered<ApiKey> {
        self.unexpected("UpdateApiKey")
    }

    async fn reveal_key(&self, _: Request<RevealKeyRequest>) -> Answered<RevealKeyResponse> {
        self.unexpected("RevealKey")
    }

    async fn rotate_api_key(&self, _: Request<RotateApiKeyRequest>) -> Answered<RotateApiKeyResponse> {
        self.unexpected("RotateApiKey")
    }

    async fn revoke_api_key(&self, _: Request<RevokeApiKeyRequest>) -> Answered<ApiKey> {
        self.unexpected("RevokeApiKey")
    }

    async fn import_api_keys(&self, _: Request<Streaming<ImportApiKeysRequest>>) -> Answered<ImportApiKeysResponse> {
        self.unexpected("ImportApiKeys")
    }

    async fn list_audit_events(&self, _: Request<ListAuditEventsRequest>) -> Answered<ListAuditEventsResponse> {
        self.unexpected("ListAuditEvents")
    }

    async fn verify_audit_chain(&self, _: Request<VerifyAuditChainRequest>) -> Answered<VerifyAuditChainResponse> {
        self.unexpected("VerifyAuditChain")
    }
}

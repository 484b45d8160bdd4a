//! Clients of the three services, as any platform would generate them from the contracts.

use anyhow::Context;
use keysweep_proto::key::v1::key_service_client::KeyServiceClient;
use keysweep_proto::key::v1::sweep_service_client::SweepServiceClient;
use keysweep_proto::location::v2::agency_service_client::AgencyServiceClient;
use keysweep_proto::location::v2::location_service_client::LocationServiceClient;
use keysweep_proto::location::v2::user_service_client::UserServiceClient;
use keysweep_proto::notification::v1::notification_service_client::NotificationServiceClient;
use service_kit::actor;
use service_kit::auth::Trust;
use service_kit::client::{ClientConfig, channel};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

/// One client for each service of the contracts that people call.
#[derive(Clone, Debug)]
pub struct Clients {
    /// `keysweep.key.v1.KeyService`.
    pub keys: KeyServiceClient<Channel>,
    /// `keysweep.key.v1.SweepService`.
    pub sweeps: SweepServiceClient<Channel>,
    /// `keysweep.location.v2.AgencyService`.
    pub agencies: AgencyServiceClient<Channel>,
    /// `keysweep.location.v2.LocationService`.
    pub locations: LocationServiceClient<Channel>,
    /// `keysweep.location.v2.UserService`.
    pub users: UserServiceClient<Channel>,
    /// `keysweep.notification.v1.NotificationService`.
    pub notifications: NotificationServiceClient<Channel>,
}

impl Clients {
    /// Clients of the servers at these endpoints, such as `http://127.0.0.1:50051`; they connect when first used.
    ///
    /// # Errors
    /// When an endpoint is no URL.
    pub fn new(key: &str, location: &str, notification: &str) -> anyhow::Result<Self> {
        let connect = |endpoint: &str| {
            let config =
                ClientConfig { endpoint: endpoint.to_owned(), connect_timeout_ms: 5_000, request_timeout_ms: 60_000 };
            channel(&config, &Trust::plaintext()).with_context(|| format!("{endpoint} is no endpoint"))
        };
        Ok(Self::over(connect(key)?, connect(location)?, connect(notification)?))
    }

    /// Clients over these channels, one to each service.
    pub fn over(key: Channel, location: Channel, notification: Channel) -> Self {
        Self {
            keys: KeyServiceClient::new(key.clone()),
            sweeps: SweepServiceClient::new(key),
            agencies: AgencyServiceClient::new(location.clone()),
            locations: LocationServiceClient::new(location.clone()),
            users: UserServiceClient::new(location),
            notifications: NotificationServiceClient::new(notification),
        }
    }
}

/// A request made for `actor`, such as `user/usr_…`.
///
/// # Errors
/// When the actor cannot stand in metadata.
pub fn made_for<T>(actor: &str, message: T) -> anyhow::Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(message);
    let value: MetadataValue<Ascii> = actor.parse().context("an actor is visible ASCII")?;
    request.metadata_mut().insert(actor::METADATA_KEY, value);
    Ok(request)
}

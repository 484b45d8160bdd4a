//! Identifiers as types of their own, so that an agency is never taken for a plan.

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The id as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id)
            }
        }

        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

ids! {
    /// A quarterly plan, `plan_…`.
    PlanId,
    /// An agency, `agy_…`.
    AgencyId,
    /// A location, `loc_…`.
    LocationId,
    /// A user, `usr_…`.
    UserId,
    /// A key, `key_…`.
    KeyId,
    /// A notification, `ntf_…`.
    NotificationId,
    /// An email, `dlv_…`.
    DeliveryId,
}

/// What the ids of notifications begin with.
pub const NOTIFICATION_PREFIX: &str = "ntf_";
/// What the ids of deliveries begin with.
pub const DELIVERY_PREFIX: &str = "dlv_";

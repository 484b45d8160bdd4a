//! The methods that a server knows, with their metrics at hand: finding those by their labels costs more than many a call.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::Histogram;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::Code;

use crate::status::code_name;
use crate::telemetry::metrics::SERVER_CALLS;

/// What OpenTelemetry calls a method that is not known.
const OTHER: &str = "_OTHER";
/// Answered however much there is to do: who is told nothing takes the process for dead.
const VITAL: &str = "grpc.health.v1.Health/Check";

/// One method.
pub(super) struct Method {
    /// `package.Service/Method`; [`OTHER`] for all that is not known, since paths come from outside and as labels would grow
    /// without bound.
    pub(super) name: String,
    /// Whether it is answered however much there is to do.
    pub(super) vital: bool,
    durations: [OnceLock<Histogram>; CODES],
}

/// Status codes, 0 to 16.
const CODES: usize = 17;

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Method").field(&self.name).finish()
    }
}

impl Method {
    fn new(name: String) -> Self {
        Self { vital: name == VITAL, name, durations: [const { OnceLock::new() }; CODES] }
    }

    /// Counts a call that ended.
    pub(super) fn ended(&self, code: Code, elapsed: Duration) {
        let Some(duration) = self.durations.get(code as usize) else { return };
        let histogram = duration.get_or_init(|| {
            metrics::histogram!(
                SERVER_CALLS.name,
                "rpc_system_name" => "grpc",
                "rpc_method" => self.name.clone(),
                "rpc_response_status_code" => code_name(code)
            )
        });
        histogram.record(elapsed.as_secs_f64());
    }
}

/// All methods of a server.
#[derive(Debug)]
pub(super) struct Methods {
    /// By path, `/package.Service/Method`.
    known: HashMap<String, Method>,
    unknown: Method,
}

impl Methods {
    /// The methods of encoded descriptor sets.
    ///
    /// # Errors
    /// When a set is malformed.
    pub(super) fn of(sets: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut known = HashMap::new();
        for set in sets {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                        known.insert(format!("/{name}"), Method::new(name));
                    }
                }
            }
        }
        Ok(Self { known, unknown: Method::new(OTHER.to_owned()) })
    }

    /// The method at a path.
    pub(super) fn find(&self, path: &str) -> &Method {
        self.known.get(path).unwrap_or(&self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_their_paths() {
        let methods = Methods::of(&[tonic_health::pb::FILE_DESCRIPTOR_SET]).expect("descriptors");
        assert_eq!(methods.find("/grpc.health.v1.Health/Check").name, "grpc.health.v1.Health/Check");
        for path in ["/grpc.health.v1.Health/Chuck", "grpc.health.v1.Health/Check", "/", ""] {
            assert_eq!(methods.find(path).name, OTHER);
        }
        assert!(Methods::of(&[b"\xff"]).is_err());
    }
}

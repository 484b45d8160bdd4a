//! What a service serves, before it is told to whom.

use prost::Message;
use prost_types::FileDescriptorSet;

/// The services of a server, and who may call them unless it is told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Surface {
    /// The encoded descriptor set that names the services; reflection shows it.
    pub descriptors: &'static [u8],
    /// Full names of the services, such as `package.Service`. Health and reflection come by themselves.
    pub services: &'static [&'static str],
    /// The policy, where the configuration names no other.
    pub policy: &'static str,
}

/// What every server serves besides its own.
pub(crate) const BUILT_IN: [&[u8]; 3] = [
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

impl Surface {
    /// The full names of all methods, `package.Service/Method`.
    ///
    /// # Errors
    /// In words, when the descriptors are malformed or lack one of the services.
    pub fn methods(&self) -> Result<Vec<String>, String> {
        let mut methods = methods_of(self.descriptors)?;
        for service in self.services {
            if !methods.iter().any(|(name, _)| name == service) {
                return Err(format!("the descriptors lack the service {service}"));
            }
        }
        methods.retain(|(service, _)| self.services.contains(&service.as_str()));
        for set in BUILT_IN {
            methods.extend(methods_of(set)?);
        }
        let mut names: Vec<_> = methods.into_iter().map(|(service, method)| format!("{service}/{method}")).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// Service and method, of every file of an encoded descriptor set.
fn methods_of(set: &[u8]) -> Result<Vec<(String, String)>, String> {
    let set = FileDescriptorSet::decode(set).map_err(|error| format!("the descriptors are malformed: {error}"))?;
    let mut methods = Vec::new();
    for file in set.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            methods.extend(service.method.iter().map(|method| (name.clone(), method.name().to_owned())));
        }
    }
    Ok(methods)
}

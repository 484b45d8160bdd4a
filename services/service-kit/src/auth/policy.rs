//! Who may call what: identities and the methods that are open to them. What is not listed is refused.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use toml::{Table, Value};
use tonic::Status;

use super::identity::Identity;
use super::surface::Surface;
use crate::actor::Actor;
use crate::status::{caller_may_not_name_actor, caller_not_allowed};

/// Stands for every method of a service, as in `package.Service/*`.
const EVERY_METHOD: &str = "*";
/// What a policy may name as kinds of actors.
const KINDS: [&str; 3] = ["user", "api-key", "service"];

/// Who may call what. The default one lets nobody call anything.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    callers: HashMap<Identity, Arc<Grant>>,
    /// What every caller may, whoever it is.
    everybody: Arc<Grant>,
}

/// What is open to one caller.
#[derive(Debug, Default)]
struct Grant {
    /// Paths, `/package.Service/Method`.
    paths: HashSet<String>,
    /// The kinds of actors that it may make calls for.
    actors: HashSet<String>,
}

/// Who is at the other end of a connection, and what it may.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    identity: Identity,
    /// Who it acts as unless it names somebody.
    itself: Actor,
    grant: Arc<Grant>,
}

impl Caller {
    /// The identity of its certificate.
    pub(crate) fn name(&self) -> &str {
        self.identity.as_str()
    }

    /// Whether the method at `path` is open to it.
    ///
    /// # Errors
    /// PERMISSION_DENIED, `CALLER_NOT_ALLOWED`.
    pub(crate) fn may_call(&self, path: &str) -> Result<(), Status> {
        if self.grant.paths.contains(path) { Ok(()) } else { Err(caller_not_allowed(self.identity.as_str(), path)) }
    }

    /// Who its call is made for, `named` being who it says.
    ///
    /// # Errors
    /// PERMISSION_DENIED, `CALLER_MAY_NOT_NAME_ACTOR`.
    pub(crate) fn acts_for(&self, named: Option<Actor>) -> Result<Actor, Status> {
        match named {
            None => Ok(self.itself.clone()),
            Some(actor) if actor == self.itself || self.grant.actors.contains(actor.kind()) => Ok(actor),
            Some(actor) => Err(caller_may_not_name_actor(self.identity.as_str(), &actor)),
        }
    }
}

impl Policy {
    /// Reads a policy and matches it against the methods that there are.
    ///
    /// # Errors
    /// Every fault: text that is no TOML, settings and methods that there are not, identities that are none or come twice.
    pub(crate) fn parse(text: &str, surface: &Surface) -> Result<Self, Vec<String>> {
        let mut table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return Err(vec![format!("is no valid TOML: {}", error.message())]),
        };
        let mut reader = Reader { methods: surface.methods().map_err(|error| vec![error])?, faults: Vec::new() };
        let everybody = Grant { paths: reader.paths("everybody", table.remove("everybody")), actors: HashSet::new() };
        let mut callers = HashMap::new();
        let listed = match table.remove("callers") {
            None => Vec::new(),
            Some(Value::Array(listed)) => listed,
            Some(_) => {
                reader.fault("callers", "must be tables, each under [[callers]]");
                Vec::new()
            }
        };
        for (place, one) in listed.into_iter().enumerate() {
            let at = format!("callers[{place}]");
            let Some((identity, mut grant)) = reader.caller(&at, one) else { continue };
            grant.paths.extend(everybody.paths.iter().cloned());
            if callers.insert(identity.clone(), Arc::new(grant)).is_some() {
                reader.fault(&at, &format!("{identity} is listed twice"));
            }
        }
        reader.nothing_left("", &table);
        if reader.faults.is_empty() { Ok(Self { callers, everybody: Arc::new(everybody) }) } else { Err(reader.faults) }
    }

    /// What `identity` may.
    pub(crate) fn caller(&self, identity: Identity) -> Caller {
        let grant = self.callers.get(&identity).unwrap_or(&self.everybody).clone();
        Caller { itself: identity.actor(), identity, grant }
    }

    /// The methods that are open to no caller of the policy, in alphabetical order.
    pub(crate) fn closed(&self, surface: &Surface) -> Vec<String> {
        let open = |name: &String| {
            let path = format!("/{name}");
            self.everybody.paths.contains(&path) || self.callers.values().any(|grant| grant.paths.contains(&path))
        };
        let mut closed: Vec<_> = surface.methods().unwrap_or_default().into_iter().filter(|name| !open(name)).collect();
        closed.sort();
        closed
    }
}

/// Reads the parts of a policy and notes what is wrong with them.
struct Reader {
    /// `package.Service/Method`
    methods: Vec<String>,
    faults: Vec<String>,
}

impl Reader {
    fn fault(&mut self, at: &str, fault: &str) {
        self.faults.push(format!("{at}: {fault}"));
    }

    fn nothing_left(&mut self, at: &str, table: &Table) {
        for name in table.keys() {
            self.fault(&format!("{at}{name}"), "there is no such setting");
        }
    }

    fn caller(&mut self, at: &str, value: Value) -> Option<(Identity, Grant)> {
        let Value::Table(mut table) = value else {
            self.fault(at, "must be a table");
            return None;
        };
        let grant = Grant {
            paths: self.paths(&format!("{at}.methods"), table.remove("methods")),
            actors: self.actors(&format!("{at}.actors"), table.remove("actors")),
        };
        let identity = table.remove("identity");
        self.nothing_left(&format!("{at}."), &table);
        match identity.as_ref().and_then(Value::as_str).map(Identity::parse) {
            Some(Ok(identity)) => Some((identity, grant)),
            Some(Err(error)) => {
                self.fault(&format!("{at}.identity"), &error.to_string());
                None
            }
            None => {
                self.fault(&format!("{at}.identity"), "is required, as text");
                None
            }
        }
    }

    fn texts(&mut self, at: &str, value: Option<Value>) -> Vec<String> {
        let Some(value) = value else { return Vec::new() };
        let texts = value
            .as_array()
            .and_then(|values| values.iter().map(|one| one.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        texts.unwrap_or_else(|| {
            self.fault(at, "must be a list of texts");
            Vec::new()
        })
    }

    fn actors(&mut self, at: &str, value: Option<Value>) -> HashSet<String> {
        let kinds = self.texts(at, value);
        for kind in kinds.iter().filter(|kind| !KINDS.contains(&kind.as_str())) {
            self.fault(at, &format!("{kind} is none of {}", KINDS.join(", ")));
        }
        kinds.into_iter().collect()
    }

    fn paths(&mut self, at: &str, value: Option<Value>) -> HashSet<String> {
        let mut paths = HashSet::new();
        for text in self.texts(at, value) {
            let service = text.strip_suffix(EVERY_METHOD);
            let meant = |name: &&String| match service {
                // The slash is part of the prefix, so that no service stands for one whose name begins alike.
                Some(service) => service.ends_with('/') && name.starts_with(service),
                None => **name == text,
            };
            let found: Vec<_> = self.methods.iter().filter(meant).map(|name| format!("/{name}")).collect();
            if found.is_empty() {
                self.fault(at, &format!("this service has no method {text}"));
            }
            paths.extend(found);
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    const SURFACE: Surface = Surface {
        descriptors: tonic_health::pb::FILE_DESCRIPTOR_SET,
        services: &["grpc.health.v1.Health"],
        policy: "",
    };
    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const WATCH: &str = "/grpc.health.v1.Health/Watch";

    fn policy(text: &str) -> Policy {
        Policy::parse(text, &SURFACE).expect("a policy")
    }

    fn caller(policy: &Policy, identity: &str) -> Caller {
        policy.caller(Identity::parse(identity).expect("an identity"))
    }

    fn reason(result: Result<impl std::fmt::Debug, Status>) -> String {
        let status = result.expect_err("a refusal");
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
    }

    #[test]
    fn what_is_not_listed_is_refused() {
        let policy = policy(
            r#"
            everybody = ["grpc.health.v1.Health/Check"]
            [[callers]]
            identity = "spiffe://keysweep/ui"
            methods = ["grpc.health.v1.Health/Watch"]
            [[callers]]
            identity = "ops.example.com"
            methods = ["grpc.reflection.v1.ServerReflection/*"]
            "#,
        );
        let ui = caller(&policy, "spiffe://keysweep/ui");
        assert!(ui.may_call(CHECK).is_ok() && ui.may_call(WATCH).is_ok());
        let operator = caller(&policy, "OPS.example.com");
        assert!(operator.may_call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").is_ok());
        assert_eq!(reason(operator.may_call(WATCH)), "CALLER_NOT_ALLOWED");
        for stranger in ["spiffe://keysweep/UI", "spiffe://keysweep/ui/", "spiffe://other/ui", "ui"] {
            let Ok(identity) = Identity::parse(stranger) else { continue };
            let stranger = policy.caller(identity);
            assert!(stranger.may_call(CHECK).is_ok(), "{stranger:?}");
            assert_eq!(reason(stranger.may_call(WATCH)), "CALLER_NOT_ALLOWED", "{stranger:?}");
        }
        for path in ["", "/", "/grpc.health.v1.Health/check", "grpc.health.v1.Health/Check", "/grpc.health.v1.Health/*"]
        {
            assert_eq!(reason(ui.may_call(path)), "CALLER_NOT_ALLOWED", "{path}");
        }
        assert_eq!(reason(caller(&Policy::default(), "spiffe://keysweep/ui").may_call(CHECK)), "CALLER_NOT_ALLOWED");
    }

    #[test]
    fn an_actor_is_named_by_who_may() {
        let policy = policy(
            r#"
            [[callers]]
            identity = "spiffe://keysweep/ui"
            actors = ["user"]
            "#,
        );
        let actor = |text: &str| Some(text.parse::<Actor>().expect("an actor"));
        let ui = caller(&policy, "spiffe://keysweep/ui");
        assert_eq!(ui.acts_for(None).expect("itself").to_string(), "service/ui");
        assert_eq!(ui.acts_for(actor("user/usr_1")).expect("a user").to_string(), "user/usr_1");
        assert_eq!(ui.acts_for(actor("service/ui")).expect("itself").to_string(), "service/ui");
        for forged in ["api-key/key_1", "service/location-service"] {
            assert_eq!(reason(ui.acts_for(actor(forged))), "CALLER_MAY_NOT_NAME_ACTOR", "{forged}");
        }
        let stranger = caller(&policy, "host.example.com");
        assert_eq!(stranger.acts_for(None).expect("itself").to_string(), "service/host.example.com");
        assert_eq!(reason(stranger.acts_for(actor("user/usr_1"))), "CALLER_MAY_NOT_NAME_ACTOR");
    }

    #[test]
    fn every_fault_is_listed() {
        let faults = Policy::parse(
            r#"
            everybody = ["grpc.health.v1.Health/Chuck", "grpc.health.v1.Heal*", "keysweep.key.v1.KeyService/*", "*"]
            anybody = []
            [[callers]]
            identity = "spiffe://keysweep/ui"
            method = []
            actors = ["root"]
            [[callers]]
            identity = "spiffe://keysweep/ui"
            methods = "grpc.health.v1.Health/Check"
            [[callers]]
            identity = "no identity"
            [[callers]]
            methods = ["grpc.health.v1.Health/*"]
            "#,
            &SURFACE,
        )
        .expect_err("faults");
        let all = faults.join("\n");
        for expected in [
            "everybody: this service has no method grpc.health.v1.Health/Chuck",
            "everybody: this service has no method grpc.health.v1.Heal*",
            "everybody: this service has no method keysweep.key.v1.KeyService/*",
            "everybody: this service has no method *",
            "anybody: there is no such setting",
            "callers[0].method: there is no such setting",
            "callers[0].actors: root is none of user, api-key, service",
            "callers[1]: spiffe://keysweep/ui is listed twice",
            "callers[1].methods: must be a list of texts",
            "callers[2].identity: an identity is",
            "callers[3].identity: is required",
        ] {
            assert!(all.contains(expected), "{expected} is not in: {all}");
        }
        assert_eq!(faults.len(), 11, "{all}");
        assert_eq!(Policy::parse("everybody = [", &SURFACE).expect_err("a fault").len(), 1);
    }

    #[test]
    fn methods_that_nobody_may_call_are_told() {
        let policy = policy("everybody = [\"grpc.health.v1.Health/*\", \"grpc.reflection.v1.ServerReflection/*\"]");
        assert_eq!(policy.closed(&SURFACE), ["grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]);
    }
}

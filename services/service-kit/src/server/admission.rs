//! Whether a call is let in, and who it is made for. Nothing of its message has been read yet.

use std::net::SocketAddr;

use http::Request;
use tonic::Status;

use super::connections::{Peer, Who};
use crate::actor::Actor;
use crate::status::{caller_not_allowed, overloaded};

/// A call that is let in.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Who it is made for, if anybody said.
    pub(super) actor: Option<Actor>,
    /// The caller, as its certificate names it; `None`: it showed none.
    pub(super) caller: Option<String>,
    /// Where it came from.
    pub(super) peer: Option<SocketAddr>,
}

/// Lets a call in, `named` being the actor that its metadata names, or says why not. `vital`: it is let in however much there
/// is to do.
///
/// # Errors
/// PERMISSION_DENIED where the policy does not list it; what is wrong with `named`; UNAVAILABLE on a surplus connection.
pub(super) fn admit<B>(
    request: &Request<B>,
    named: Result<Option<Actor>, Status>,
    vital: bool,
) -> Result<Admitted, Status> {
    let path = request.uri().path();
    let Some(Peer { address, who, surplus }) = request.extensions().get::<Peer>() else {
        return Err(caller_not_allowed("an unknown caller", path));
    };
    let (actor, caller) = match who {
        // Every caller is trusted, else the server would not take plaintext.
        Who::Anybody => (named?, None),
        Who::Known(caller) => {
            caller.may_call(path)?;
            (Some(caller.acts_for(named?)?), Some(caller.name().to_owned()))
        }
    };
    if *surplus && !vital {
        return Err(overloaded());
    }
    Ok(Admitted { actor, caller, peer: *address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_came_over_no_connection_is_refused() {
        let status = admit(&Request::new(()), Ok(None), true).expect_err("nobody is known to have sent it");
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
    }
}

//! Whether a call is let in, and who it is made for. Nothing of its message has been read yet.

use std::net::SocketAddr;

use http::Request;
use tonic::Status;
use tonic::transport::server::TcpConnectInfo;

use super::tls::TlsPeer;
use crate::actor::Actor;
use crate::status::caller_not_allowed;

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

/// Lets a call in, `named` being the actor that its metadata names, or says why not.
///
/// # Errors
/// PERMISSION_DENIED where the policy does not list it; what is wrong with `named`.
pub(super) fn admit<B>(request: &Request<B>, named: Result<Option<Actor>, Status>) -> Result<Admitted, Status> {
    let extensions = request.extensions();
    if let Some(plaintext) = extensions.get::<TcpConnectInfo>() {
        // Every caller is trusted, else the server would not take plaintext.
        return Ok(Admitted { actor: named?, caller: None, peer: plaintext.remote_addr() });
    }
    let path = request.uri().path();
    let Some(TlsPeer { address, caller }) = extensions.get::<TlsPeer>() else {
        return Err(caller_not_allowed("an unknown caller", path));
    };
    caller.may_call(path)?;
    let actor = caller.acts_for(named?)?;
    Ok(Admitted { actor: Some(actor), caller: Some(caller.name().to_owned()), peer: Some(*address) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_came_over_no_connection_is_refused() {
        let status = admit(&Request::new(()), Ok(None)).expect_err("nobody is known to have sent it");
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
    }
}

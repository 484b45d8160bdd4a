//! Enhanced Account Security: what holds, and choosing otherwise.

use serde_json::json;
use service_kit::violations::Violations;

use super::error::AppError;
use super::policy::Action;
use super::ports::AuditEvent;
use super::{App, Call, mutation_key, retrying, written};
use crate::domain::security::{Choice, SecuritySetting};

const AUDIT_ID: &str = "aud_";

/// An agency admin's choice.
#[derive(Clone, Debug)]
pub struct ChooseSecurity {
    /// Whose.
    pub agency_id: String,
    /// On or off.
    pub enabled: bool,
    /// Whether the admin takes the risk of off.
    pub acknowledge_risk: bool,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

impl App {
    /// What holds for an agency now.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn security_setting(&self, call: &Call, agency_id: &str) -> Result<SecuritySetting, AppError> {
        self.permitted_agency(call, Action::Read, agency_id, &mut Violations::default()).await?;
        self.effective_setting(agency_id).await
    }

    /// Makes a choice for an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn choose_security(&self, call: &Call, choose: &ChooseSecurity) -> Result<SecuritySetting, AppError> {
        retrying(|| Box::pin(self.try_choose_security(call, choose))).await
    }

    async fn try_choose_security(&self, call: &Call, choose: &ChooseSecurity) -> Result<SecuritySetting, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        faults.check_request_id("request_id", &choose.request_id);
        let agency = self.permitted_agency(call, Action::ActAsAgencyAdmin, &choose.agency_id, &mut faults).await?;
        faults.into_result()?;
        if !choose.enabled && !choose.acknowledge_risk {
            return Err(AppError::RiskNotAcknowledged { agency_id: agency.id });
        }
        let contents = (&agency.id, choose.enabled, choose.acknowledge_risk);
        let key = mutation_key("UpdateSecuritySettings", &agency.id, &choose.request_id, &contents)?;
        let choice = Choice { enabled: choose.enabled, actor: call.actor(), chosen_at: now };
        let audit = AuditEvent {
            id: self.ids.next(AUDIT_ID, now),
            occurred_at: now,
            actor: call.actor(),
            action: if choose.enabled { "security.opted_in" } else { "security.opted_out" },
            agency_id: agency.id.clone(),
            location_id: None,
            call_id: call.call_id.clone(),
            detail: json!({ "enhanced_account_security": choose.enabled, "acknowledge_risk": choose.acknowledge_risk }),
        };
        match written(self.store.choose(&agency.id, &choice, &audit, key.as_ref()).await?)? {
            None => {
                tracing::info!(agency_id = agency.id, enabled = choose.enabled, actor = %choice.actor, "enhanced account security was chosen");
                Ok(SecuritySetting::effective(Some(choice), now))
            }
            Some(_) => self.effective_setting(&agency.id).await,
        }
    }

    /// What holds for an agency now, whoever asks.
    pub(super) async fn effective_setting(&self, agency_id: &str) -> Result<SecuritySetting, AppError> {
        Ok(SecuritySetting::effective(self.store.choice(agency_id).await?, self.now()))
    }
}

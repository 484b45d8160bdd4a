//! Taking in, showing and changing agencies.

use service_kit::page::Page;
use service_kit::violations::Violations;

use super::error::{AppError, Resource};
use super::listing::Window;
use super::policy::{Action, Caller};
use super::{App, Call, Listed, check_etag, check_required, listed, masked, mutation_key, retrying, written};
use crate::domain::AGENCY_ID;
use crate::domain::profile::{Profile, ProfileField};
use crate::domain::resources::Agency;

/// The zone of an agency that names none.
const DEFAULT_TIME_ZONE: &str = "UTC";

/// Which agencies to list.
#[derive(Clone, Debug)]
pub struct ListAgencies {
    /// Whose name begins with this. Empty: all.
    pub name_prefix: String,
    /// In which order. Empty: as they were created.
    pub order_by: String,
}

/// A change of one agency.
#[derive(Clone, Debug)]
pub struct UpdateAgency {
    /// Which.
    pub agency_id: String,
    /// The new values.
    pub profile: Profile,
    /// The fields to change. Empty: those that are set.
    pub mask: Vec<String>,
    /// The revision that was read. Empty: whatever it is.
    pub etag: String,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

impl App {
    /// Takes in an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn create_agency(&self, call: &Call, mut profile: Profile, request_id: &str) -> Result<Agency, AppError> {
        let now = self.now();
        self.permit(call, Action::Installation, "", (Resource::Agency, "")).await?;
        if profile.time_zone.is_empty() {
            DEFAULT_TIME_ZONE.clone_into(&mut profile.time_zone);
        }
        let mut faults = Violations::default();
        profile.check("agency", &mut faults);
        faults.check_request_id("request_id", request_id);
        faults.into_result()?;
        let key = mutation_key("CreateAgency", "", request_id, &profile)?;
        let agency =
            Agency { id: self.ids.next(AGENCY_ID, now), profile, created_at: now, updated_at: now, revision: 1 };
        let (agency, key) = (&agency, key.as_ref());
        retrying(|| {
            Box::pin(async move {
                match written(self.store.insert_agency(agency, key).await?)? {
                    None => Ok(agency.clone()),
                    Some(id) => self.agency(&id).await,
                }
            })
        })
        .await
    }

    /// One agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn get_agency(&self, call: &Call, id: &str) -> Result<Agency, AppError> {
        self.permitted_agency(call, Action::Read, id).await
    }

    /// Agencies; for a person, its own alone.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn list_agencies(
        &self,
        call: &Call,
        list: &ListAgencies,
        page: &Page,
    ) -> Result<Listed<Agency>, AppError> {
        let mut faults = Violations::default();
        let window = Window::parse(page, AGENCY_ID, &list.name_prefix, &list.order_by, &mut faults)?;
        match self.caller(call).await? {
            Caller::Person(user) => {
                Ok(Listed { items: vec![self.get_agency(call, &user.agency_id).await?], next: None })
            }
            Caller::Stranger(actor) => Err(AppError::not_found(Resource::User, actor.id())),
            Caller::Nobody | Caller::Service(_) | Caller::ApiClient(_) => {
                self.permit(call, Action::Installation, "", (Resource::Agency, "")).await?;
                faults.into_result()?;
                let items = self.store.agencies(&window).await?;
                let cursor = |agency: &Agency| window.order.cursor(&agency.id, &agency.profile.name);
                Ok(listed(items, page, cursor, |agency| agency.profile.text_bytes()))
            }
        }
    }

    /// Changes an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn update_agency(&self, call: &Call, change: &UpdateAgency) -> Result<Agency, AppError> {
        retrying(|| Box::pin(self.try_update_agency(call, change))).await
    }

    async fn try_update_agency(&self, call: &Call, change: &UpdateAgency) -> Result<Agency, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        check_required(&mut faults, "agency.agency_id", &change.agency_id);
        faults.into_result()?;
        let mut agency = self.agency(&change.agency_id).await?;
        self.permit(call, Action::Write, &agency.id, (Resource::Agency, &change.agency_id)).await?;
        let mut faults = Violations::default();
        let fields = profile_fields(&change.profile, &change.mask, &mut faults);
        agency.profile.merge(&change.profile, &fields);
        if agency.profile.time_zone.is_empty() {
            DEFAULT_TIME_ZONE.clone_into(&mut agency.profile.time_zone);
        }
        agency.profile.check("agency", &mut faults);
        faults.check_request_id("request_id", &change.request_id);
        faults.into_result()?;
        let key = mutation_key(
            "UpdateAgency",
            &agency.id,
            &change.request_id,
            &(&agency.id, &change.profile, &change.mask, &change.etag),
        )?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.agency(&id).await;
        }
        check_etag(&change.etag, agency.revision, Resource::Agency, &agency.id)?;
        agency.revision += 1;
        agency.updated_at = now;
        match written(self.store.update_agency(&agency, key.as_ref()).await?)? {
            None => Ok(agency),
            Some(id) => self.agency(&id).await,
        }
    }

    /// One agency, whoever asks.
    pub(super) async fn agency(&self, id: &str) -> Result<Agency, AppError> {
        let agency = if service_kit::ids::is_id(AGENCY_ID, id) { self.store.agency(id).await? } else { None };
        agency.ok_or_else(|| AppError::not_found(Resource::Agency, id))
    }

    /// The agency in which something is to be done, named by the field `agency_id`.
    pub(super) async fn permitted_agency(&self, call: &Call, action: Action<'_>, id: &str) -> Result<Agency, AppError> {
        let mut faults = Violations::default();
        check_required(&mut faults, "agency_id", id);
        faults.into_result()?;
        let agency = self.agency(id).await?;
        self.permit(call, action, &agency.id, (Resource::Agency, id)).await?;
        Ok(agency)
    }
}

/// The fields of a profile that a change is about.
pub(super) fn profile_fields(profile: &Profile, mask: &[String], faults: &mut Violations) -> Vec<ProfileField> {
    if mask.is_empty() { profile.set_fields() } else { masked(mask, &ProfileField::ALL, ProfileField::named, faults) }
}

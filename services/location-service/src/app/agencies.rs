//! Taking in, showing and changing agencies.

use service_kit::violations::Violations;

use super::error::{AppError, Resource};
use super::listing::{AGENCIES, Asked, CreatedRange, Window};
use super::policy::{Action, Caller};
use super::{App, Call, Listed, check_etag, listed, masked, mutation_key, named, permit, retrying, written};
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
    /// Created when.
    pub created: CreatedRange,
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
        permit(&self.caller(call).await?, call, Action::Installation, "", (Resource::Agency, ""))?;
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
        self.permitted_agency(call, Action::Read, id, &mut Violations::default()).await
    }

    /// Agencies; for a person, its own alone.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn list_agencies(
        &self,
        call: &Call,
        list: &ListAgencies,
        mut asked: Asked,
    ) -> Result<Listed<Agency>, AppError> {
        let window = Window::parse(AGENCIES, &list.name_prefix, &list.order_by, list.created, &mut asked.faults);
        match self.caller(call).await? {
            Caller::Person(user) => {
                asked.checked()?;
                Ok(Listed { items: vec![self.get_agency(call, &user.agency_id).await?], next: None })
            }
            Caller::Stranger(actor) => Err(AppError::not_found(Resource::User, actor.id())),
            caller @ (Caller::Nobody | Caller::Service(_) | Caller::ApiClient(_)) => {
                permit(&caller, call, Action::Installation, "", (Resource::Agency, ""))?;
                let page = asked.checked()?;
                let window = window.at(AGENCIES, &page)?;
                let items = self.store.agencies(&window).await?;
                let cursor = |agency: &Agency| {
                    window.order.cursor(AGENCIES, &agency.id, agency.created_at, &agency.profile.name)
                };
                Ok(listed(items, &page, cursor, |agency| agency.profile.text_bytes()))
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
        let fields = profile_fields(&change.profile, &change.mask, &mut faults);
        change.profile.check_fields("agency", &fields, &mut faults);
        faults.check_request_id("request_id", &change.request_id);
        named(&change.agency_id, "agency.agency_id", &mut faults)?;
        let mut agency = self.permitted_agency(call, Action::Write, &change.agency_id, &mut faults).await?;
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
        let before = agency.profile.clone();
        agency.profile.merge(&change.profile, &fields);
        if agency.profile.time_zone.is_empty() {
            DEFAULT_TIME_ZONE.clone_into(&mut agency.profile.time_zone);
        }
        if agency.profile == before {
            self.remember(key.as_ref(), &agency.id, now).await?;
            return Ok(agency);
        }
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

    /// The agency in which something is to be done, named by the field `agency_id`. `faults` are those that the request
    /// has in itself: they are told here where it names no agency, and else by the use case, once the caller may make it.
    pub(super) async fn permitted_agency(
        &self,
        call: &Call,
        action: Action<'_>,
        id: &str,
        faults: &mut Violations,
    ) -> Result<Agency, AppError> {
        named(id, "agency_id", faults)?;
        let caller = self.caller(call).await?;
        let agency = self.agency(id).await?;
        permit(&caller, call, action, &agency.id, (Resource::Agency, id))?;
        Ok(agency)
    }
}

/// The fields of a profile that a change is about.
pub(super) fn profile_fields(profile: &Profile, mask: &[String], faults: &mut Violations) -> Vec<ProfileField> {
    if mask.is_empty() { profile.set_fields() } else { masked(mask, &ProfileField::ALL, ProfileField::named, faults) }
}

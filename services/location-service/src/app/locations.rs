//! Taking in, showing, changing and deleting locations; for agencies that opted out, with their keys.

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use service_kit::keyring::Sealed;
use service_kit::violations::Violations;

use super::agencies::profile_fields;
use super::error::{AppError, Resource};
use super::generation::generation_event;
use super::listing::{Asked, CreatedRange, LOCATIONS, Window};
use super::policy::Action;
use super::ports::{AuditEvent, KeyOrder, LocationFilter, MutationKey, Recalled, StoredLocation};
use super::{App, Call, Listed, check_etag, listed, mutation_key, named, permit, retrying, written};
use crate::domain::LOCATION_ID;
use crate::domain::contact::check_country;
use crate::domain::profile::{PLACE_MAX, Profile};
use crate::domain::resources::{Location, seal_binding};

/// The location to take in.
#[derive(Clone, Debug)]
pub struct CreateLocation {
    /// The agency that will own it.
    pub agency_id: String,
    /// Its business.
    pub profile: Profile,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

/// Which locations to list.
#[derive(Clone, Debug)]
pub struct ListLocations {
    /// The agency that owns them.
    pub agency_id: String,
    /// Whether deleted ones are listed too.
    pub show_deleted: bool,
    /// Whose name begins with this. Empty: all.
    pub name_prefix: String,
    /// In this country. Empty: all.
    pub country: String,
    /// In this state. Empty: all.
    pub state: String,
    /// Created when.
    pub created: CreatedRange,
    /// In which order. Empty: as they were created.
    pub order_by: String,
}

/// A change of one location.
#[derive(Clone, Debug)]
pub struct UpdateLocation {
    /// Which.
    pub location_id: String,
    /// The new values.
    pub profile: Profile,
    /// The fields to change. Empty: those that are set.
    pub mask: Vec<String>,
    /// The revision that was read. Empty: whatever it is.
    pub etag: String,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

/// A location as it is shown.
#[derive(Clone, Debug)]
pub struct LocationView {
    /// The location.
    pub location: Location,
    /// Its key. Only while the agency has opted out.
    pub api_key: Option<SecretString>,
}

impl App {
    /// Takes in a location. For an agency that opted out its key comes into being first: if that fails, nothing is stored.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn create_location(&self, call: &Call, create: &CreateLocation) -> Result<LocationView, AppError> {
        // One id for every attempt: also without a request id they ask for one key.
        let fresh = self.ids.next(LOCATION_ID, self.now());
        let fresh = fresh.as_str();
        retrying(|| Box::pin(self.try_create_location(call, create, fresh))).await
    }

    async fn try_create_location(
        &self,
        call: &Call,
        create: &CreateLocation,
        fresh: &str,
    ) -> Result<LocationView, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        create.profile.check("location", &mut faults);
        faults.check_request_id("request_id", &create.request_id);
        let agency = self.permitted_agency(call, Action::Write, &create.agency_id, &mut faults).await?;
        faults.into_result()?;
        let mut profile = create.profile.clone();
        if profile.time_zone.is_empty() {
            profile.time_zone.clone_from(&agency.profile.time_zone);
        }
        let key = mutation_key("CreateLocation", &agency.id, &create.request_id, &create.profile)?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.view_of(&id).await;
        }
        let setting = self.effective_setting(&agency.id).await?;
        let standing = setting.standing_request();
        let location = Location {
            id: self.reserved_id(key.as_ref(), fresh, standing.is_some(), now).await?,
            agency_id: agency.id,
            profile,
            created_at: now,
            updated_at: now,
            deleted_at: None,
            revision: 1,
        };
        let (mut sealed_key, mut audit) = (None, None);
        if let Some(person) = standing {
            let order = standing_order(person.clone(), &location);
            let (sealed, event) = self.generate_sealed(call, &order, &location).await?;
            (sealed_key, audit) = (Some(sealed), Some(event));
        }
        let stored = StoredLocation { location, sealed_key };
        let id = match written(self.store.insert_location(&stored, audit.as_ref(), key.as_ref()).await?)? {
            None => stored.location.id,
            Some(id) => id,
        };
        self.view_of(&id).await
    }

    /// The id that an earlier try of the same call chose, so that all tries generate one key of one location. It holds also
    /// where the agency has opted in since: the key that a try may have generated is to have its location.
    async fn reserved_id(
        &self,
        key: Option<&MutationKey>,
        fresh: &str,
        generates: bool,
        now: DateTime<Utc>,
    ) -> Result<String, AppError> {
        let Some(key) = key else { return Ok(fresh.to_owned()) };
        let key = MutationKey { method: "CreateLocation.id", ..key.clone() };
        let known =
            if generates { self.store.reserve(&key, fresh, now).await? } else { self.store.recall(&key, now).await? };
        match known {
            Recalled::New => Ok(fresh.to_owned()),
            Recalled::Replay(id) => Ok(id),
            Recalled::Reused => Err(AppError::RequestIdReused),
        }
    }

    async fn generate_sealed(
        &self,
        call: &Call,
        order: &KeyOrder,
        location: &Location,
    ) -> Result<(Sealed, AuditEvent), AppError> {
        let key = self.keys.generate(call, order).await?;
        let binding = seal_binding(&location.agency_id, &location.id);
        let sealed = self
            .ring
            .seal(key.secret.expose_secret().as_bytes(), &binding, &*self.entropy)
            .map_err(|e| AppError::Internal(format!("cannot seal the key of {}: {e}", location.id)))?;
        Ok((sealed, generation_event(call, order, &key, self.now())))
    }

    /// One location, also a deleted one.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn get_location(&self, call: &Call, id: &str) -> Result<LocationView, AppError> {
        let stored = self.permitted_location(call, Action::Read, id, &mut Violations::default()).await?;
        self.view(stored).await
    }

    /// Locations of an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn list_locations(
        &self,
        call: &Call,
        list: &ListLocations,
        mut asked: Asked,
    ) -> Result<Listed<LocationView>, AppError> {
        let faults = &mut asked.faults;
        let window = Window::parse(LOCATIONS, &list.name_prefix, &list.order_by, list.created, faults);
        if let Some(Err(fault)) = (!list.country.is_empty()).then(|| check_country(&list.country)) {
            faults.push("country", fault);
        }
        faults.check_text("state", &list.state, PLACE_MAX);
        let agency = self.permitted_agency(call, Action::Read, &list.agency_id, faults).await?;
        let page = asked.checked()?;
        let window = window.at(LOCATIONS, &page)?;
        let filter = LocationFilter {
            agency_id: &agency.id,
            show_deleted: list.show_deleted,
            country: &list.country,
            state: &list.state,
        };
        let rows = self.store.locations(filter, &window).await?;
        let cursor = |stored: &StoredLocation| {
            let location = &stored.location;
            window.order.cursor(LOCATIONS, &location.id, location.created_at, &location.profile.name)
        };
        let rows = listed(rows, &page, cursor, |stored| stored.location.profile.text_bytes());
        // Read after the rows: a choice made in between hides their keys.
        let shown =
            rows.items.iter().any(|row| row.sealed_key.is_some()) && !self.effective_setting(&agency.id).await?.enabled;
        let items = rows.items.into_iter().map(|row| self.open(row, shown)).collect::<Result<_, _>>()?;
        Ok(Listed { items, next: rows.next })
    }

    /// Changes a location.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn update_location(&self, call: &Call, change: &UpdateLocation) -> Result<LocationView, AppError> {
        retrying(|| Box::pin(self.try_update_location(call, change))).await
    }

    async fn try_update_location(&self, call: &Call, change: &UpdateLocation) -> Result<LocationView, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        let fields = profile_fields(&change.profile, &change.mask, &mut faults);
        change.profile.check_fields("location", &fields, &mut faults);
        faults.check_request_id("request_id", &change.request_id);
        named(&change.location_id, "location.location_id", &mut faults)?;
        let stored = self.permitted_location(call, Action::Write, &change.location_id, &mut faults).await?;
        faults.into_result()?;
        let mut location = stored.location.clone();
        let contents = (&location.id, &change.profile, &change.mask, &change.etag);
        let key = mutation_key("UpdateLocation", &location.agency_id, &change.request_id, &contents)?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.view_of(&id).await;
        }
        if let Some(deleted_at) = location.deleted_at {
            return Err(AppError::LocationDeleted { location_id: location.id, deleted_at });
        }
        check_etag(&change.etag, location.revision, Resource::Location, &location.id)?;
        location.profile.merge(&change.profile, &fields);
        if location.profile.time_zone.is_empty() {
            location.profile.time_zone = self.agency(&location.agency_id).await?.profile.time_zone;
        }
        if location == stored.location {
            self.remember(key.as_ref(), &location.id, now).await?;
            return self.view(stored).await;
        }
        self.changed(location, key.as_ref(), now).await
    }

    /// Deletes a location softly; one that is deleted stays as it is.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn delete_location(
        &self,
        call: &Call,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<LocationView, AppError> {
        retrying(|| Box::pin(self.try_delete_location(call, id, etag, request_id))).await
    }

    async fn try_delete_location(
        &self,
        call: &Call,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<LocationView, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        faults.check_request_id("request_id", request_id);
        let mut location = self.permitted_location(call, Action::Write, id, &mut faults).await?.location;
        faults.into_result()?;
        let key = mutation_key("DeleteLocation", &location.agency_id, request_id, &(id, etag))?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.view_of(&id).await;
        }
        check_etag(etag, location.revision, Resource::Location, &location.id)?;
        if location.deleted_at.is_some() {
            self.remember(key.as_ref(), &location.id, now).await?;
            return Ok(LocationView { location, api_key: None });
        }
        location.deleted_at = Some(now);
        self.changed(location, key.as_ref(), now).await
    }

    /// Brings a deleted location back while it may be; one that is not deleted stays as it is.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn undelete_location(
        &self,
        call: &Call,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<LocationView, AppError> {
        retrying(|| Box::pin(self.try_undelete_location(call, id, etag, request_id))).await
    }

    async fn try_undelete_location(
        &self,
        call: &Call,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<LocationView, AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        faults.check_request_id("request_id", request_id);
        let stored = self.permitted_location(call, Action::Write, id, &mut faults).await?;
        faults.into_result()?;
        let key = mutation_key("UndeleteLocation", &stored.location.agency_id, request_id, &(id, etag))?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.view_of(&id).await;
        }
        check_etag(etag, stored.location.revision, Resource::Location, id)?;
        let Some(deleted_at) = stored.location.deleted_at else {
            self.remember(key.as_ref(), &stored.location.id, now).await?;
            return self.view(stored).await;
        };
        let mut location = stored.location;
        if !location.can_be_undeleted(now) {
            return Err(AppError::LocationDeleted { location_id: location.id, deleted_at });
        }
        location.deleted_at = None;
        self.changed(location, key.as_ref(), now).await
    }

    /// Stores a changed location and shows it as it then is.
    async fn changed(
        &self,
        mut location: Location,
        key: Option<&MutationKey>,
        now: DateTime<Utc>,
    ) -> Result<LocationView, AppError> {
        location.revision += 1;
        location.updated_at = now;
        let outcome = self.store.update_location(&location, key).await?;
        let id = written(outcome)?.unwrap_or(location.id);
        self.view_of(&id).await
    }

    /// The location with which something is to be done, named by the field `location_id`; `faults` as those of
    /// [`App::permitted_agency`].
    pub(super) async fn permitted_location(
        &self,
        call: &Call,
        action: Action<'_>,
        id: &str,
        faults: &mut Violations,
    ) -> Result<StoredLocation, AppError> {
        named(id, "location_id", faults)?;
        let caller = self.caller(call).await?;
        let stored = self.stored_location(id).await?;
        permit(&caller, call, action, &stored.location.agency_id, (Resource::Location, id))?;
        Ok(stored)
    }

    /// One location, whoever asks.
    async fn stored_location(&self, id: &str) -> Result<StoredLocation, AppError> {
        let stored = if service_kit::ids::is_id(LOCATION_ID, id) { self.store.location(id).await? } else { None };
        stored.ok_or_else(|| AppError::not_found(Resource::Location, id))
    }

    async fn view_of(&self, id: &str) -> Result<LocationView, AppError> {
        let stored = self.stored_location(id).await?;
        self.view(stored).await
    }

    async fn view(&self, stored: StoredLocation) -> Result<LocationView, AppError> {
        let shown = stored.sealed_key.is_some() && !self.effective_setting(&stored.location.agency_id).await?.enabled;
        self.open(stored, shown)
    }

    fn open(&self, stored: StoredLocation, shown: bool) -> Result<LocationView, AppError> {
        let StoredLocation { location, sealed_key } = stored;
        let Some(sealed) = sealed_key.filter(|_| shown) else {
            return Ok(LocationView { location, api_key: None });
        };
        let broken =
            |cause: String| AppError::Internal(format!("the sealed key of {} cannot be shown: {cause}", location.id));
        let plain = self
            .ring
            .open(&sealed, &seal_binding(&location.agency_id, &location.id))
            .map_err(|e| broken(e.to_string()))?;
        let text = std::str::from_utf8(&plain).map_err(|e| broken(e.to_string()))?;
        let api_key = Some(SecretString::from(text));
        Ok(LocationView { location, api_key })
    }
}

/// The order of a location's first key, in the name of the person who opted its agency out. Its request id follows from the
/// location's, so that every try of one creation asks for one key.
fn standing_order(person: service_kit::actor::Actor, location: &Location) -> KeyOrder {
    KeyOrder {
        actor: person,
        agency_id: location.agency_id.clone(),
        location_id: Some(location.id.clone()),
        display_name: String::new(),
        scopes: Vec::new(),
        expires_at: None,
        allowed_cidrs: Vec::new(),
        request_id: format!("opt-out/{}", location.id),
    }
}

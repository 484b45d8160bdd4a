//! People: taking in, showing, changing, deleting, and who of them is to be told about keys.

use std::collections::HashSet;

use service_kit::ids;
use service_kit::violations::Violations;

use super::error::{AppError, Resource};
use super::listing::{Asked, CreatedRange, USERS, Window};
use super::policy::Action;
use super::ports::{Recipients, UserFilter};
use super::{
    App, Call, FAULTS_SHOWN, Listed, check_etag, listed, masked, mutation_key, named, permit, retrying, shown, written,
};
use crate::domain::user::{LOCATIONS_MAX, RoleLevel, RoleType, User, UserDetails, UserField};
use crate::domain::{LOCATION_ID, USER_ID};

/// As many locations as one question about recipients may name.
const RECIPIENT_LOCATIONS_MAX: usize = 10_000;
const EMAIL_FILTER_MAX: usize = 254;

/// Which API a call came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserApi {
    /// Version 2.
    Current,
    /// Version 1, which does not write while Enhanced Account Security is on and does not know of disabled users.
    Legacy,
}

/// The user to take in.
#[derive(Clone, Debug)]
pub struct CreateUser {
    /// The agency it will belong to.
    pub agency_id: String,
    /// What is chosen of it.
    pub details: UserDetails,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

/// Which users to list.
#[derive(Clone, Debug)]
pub struct ListUsers {
    /// Of this agency.
    pub agency_id: String,
    /// Who list this location. Empty: all.
    pub location_id: String,
    /// Who have this address. Empty: all.
    pub email: String,
    /// Who have this type of role. `None`: all.
    pub role_type: Option<RoleType>,
    /// Who have this level of role. `None`: all.
    pub role_level: Option<RoleLevel>,
    /// Created when.
    pub created: CreatedRange,
    /// In which order. Empty: as they were created.
    pub order_by: String,
}

/// A change of one user.
#[derive(Clone, Debug)]
pub struct UpdateUser {
    /// Which.
    pub user_id: String,
    /// The new values.
    pub details: UserDetails,
    /// The fields to change. Empty: those that are set.
    pub mask: Vec<String>,
    /// The revision that was read. Empty: whatever it is.
    pub etag: String,
    /// Makes the call repeatable. Empty: it is not.
    pub request_id: String,
}

impl App {
    /// Takes in a user.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn create_user(&self, call: &Call, api: UserApi, create: &CreateUser) -> Result<User, AppError> {
        retrying(|| Box::pin(self.try_create_user(call, api, create))).await
    }

    async fn try_create_user(&self, call: &Call, api: UserApi, create: &CreateUser) -> Result<User, AppError> {
        let now = self.now();
        let details = normal(create.details.clone());
        let mut faults = Violations::default();
        details.check(&mut faults);
        faults.check_request_id("request_id", &create.request_id);
        let action = Action::ManageUser(&[&details]);
        let agency = self.permitted_agency(call, action, &create.agency_id, &mut faults).await?;
        self.check_writable(api, &agency.id).await?;
        // A replay answers before the locations are looked at: they may have gone since.
        let key = mutation_key("CreateUser", &agency.id, &create.request_id, &details)?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.user_even_deleted(&id).await;
        }
        self.check_locations(&agency.id, &details.location_ids, &mut faults).await?;
        faults.into_result()?;
        let user = User {
            id: self.ids.next(USER_ID, now),
            agency_id: agency.id,
            details,
            created_at: now,
            updated_at: now,
            deleted_at: None,
            revision: 1,
        };
        match written(self.store.insert_user(&user, key.as_ref()).await?)? {
            None => Ok(user),
            Some(id) => self.user_even_deleted(&id).await,
        }
    }

    /// One user.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn get_user(&self, call: &Call, id: &str) -> Result<User, AppError> {
        named(id, "user_id", &mut Violations::default())?;
        let caller = self.caller(call).await?;
        let user = self.user_even_deleted(id).await?;
        permit(&caller, call, Action::Read, &user.agency_id, (Resource::User, id))?;
        present(user)
    }

    /// Users of an agency.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn list_users(&self, call: &Call, list: &ListUsers, mut asked: Asked) -> Result<Listed<User>, AppError> {
        let faults = &mut asked.faults;
        let window = Window::parse(USERS, "", &list.order_by, list.created, faults);
        if !list.location_id.is_empty() && !ids::is_id(LOCATION_ID, &list.location_id) {
            faults.push("location_id", "is no location's id");
        }
        faults.check_text("email", &list.email, EMAIL_FILTER_MAX);
        let agency = self.permitted_agency(call, Action::Read, &list.agency_id, faults).await?;
        let page = asked.checked()?;
        let window = window.at(USERS, &page)?;
        let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (location_id, email) = (set(&list.location_id), set(&list.email));
        let filter = UserFilter {
            agency_id: &agency.id,
            location_id: location_id.as_deref(),
            email: email.as_deref(),
            role_type: list.role_type,
            role_level: list.role_level,
        };
        let items = self.store.users(filter, &window).await?;
        let cursor = |user: &User| window.order.cursor(USERS, &user.id, user.created_at, &user.details.email);
        Ok(listed(items, &page, cursor, |user| user.details.text_bytes()))
    }

    /// Changes a user.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn update_user(&self, call: &Call, api: UserApi, change: &UpdateUser) -> Result<User, AppError> {
        retrying(|| Box::pin(self.try_update_user(call, api, change))).await
    }

    async fn try_update_user(&self, call: &Call, api: UserApi, change: &UpdateUser) -> Result<User, AppError> {
        let now = self.now();
        let (mut faults, new) = (Violations::default(), normal(change.details.clone()));
        faults.check_request_id("request_id", &change.request_id);
        let mut fields = if change.mask.is_empty() {
            new.set_fields()
        } else {
            masked(&change.mask, &UserField::ALL, UserField::named, &mut faults)
        };
        if api == UserApi::Legacy {
            fields.retain(|field| *field != UserField::Disabled);
        }
        if change.user_id.is_empty() {
            new.check_fields(&fields, &mut faults);
        }
        named(&change.user_id, "user.user_id", &mut faults)?;
        let caller = self.caller(call).await?;
        let mut user = self.user_even_deleted(&change.user_id).await?;
        let before = user.details.clone();
        user.details.merge(&new, &fields);
        let action = Action::ManageUser(&[&before, &user.details]);
        permit(&caller, call, action, &user.agency_id, (Resource::User, &change.user_id))?;
        let mut user = present(user)?;
        self.check_writable(api, &user.agency_id).await?;
        let key = mutation_key(
            "UpdateUser",
            &user.agency_id,
            &change.request_id,
            &(&user.id, &new, &change.mask, &change.etag),
        )?;
        if let Some(id) = self.recall(key.as_ref(), now).await? {
            return self.user_even_deleted(&id).await;
        }
        user.details.check(&mut faults);
        // A location that was deleted since may stay; a new one must be there.
        let added: Vec<_> = user.details.location_ids.iter().filter(|id| !before.works_in(id)).cloned().collect();
        self.check_locations(&user.agency_id, &added, &mut faults).await?;
        faults.into_result()?;
        check_etag(&change.etag, user.revision, Resource::User, &user.id)?;
        if user.details == before {
            self.remember(key.as_ref(), &user.id, now).await?;
            return Ok(user);
        }
        user.revision += 1;
        user.updated_at = now;
        match written(self.store.update_user(&user, key.as_ref()).await?)? {
            None => Ok(user),
            Some(id) => self.user_even_deleted(&id).await,
        }
    }

    /// Deletes a user.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn delete_user(
        &self,
        call: &Call,
        api: UserApi,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<(), AppError> {
        retrying(|| Box::pin(self.try_delete_user(call, api, id, etag, request_id))).await
    }

    async fn try_delete_user(
        &self,
        call: &Call,
        api: UserApi,
        id: &str,
        etag: &str,
        request_id: &str,
    ) -> Result<(), AppError> {
        let now = self.now();
        let mut faults = Violations::default();
        faults.check_request_id("request_id", request_id);
        named(id, "user_id", &mut faults)?;
        let caller = self.caller(call).await?;
        let user = self.user_even_deleted(id).await?;
        permit(&caller, call, Action::ManageUser(&[&user.details]), &user.agency_id, (Resource::User, id))?;
        faults.into_result()?;
        let key = mutation_key("DeleteUser", &user.agency_id, request_id, &(id, etag))?;
        if self.recall(key.as_ref(), now).await?.is_some() {
            return Ok(());
        }
        let mut user = present(user)?;
        self.check_writable(api, &user.agency_id).await?;
        check_etag(etag, user.revision, Resource::User, &user.id)?;
        user.revision += 1;
        user.updated_at = now;
        user.deleted_at = Some(now);
        written(self.store.update_user(&user, key.as_ref()).await?).map(drop)
    }

    /// Everybody to tell about keys of an agency and of some of its locations.
    ///
    /// # Errors
    /// See [`AppError`].
    pub async fn notice_recipients(
        &self,
        call: &Call,
        agency_id: &str,
        location_ids: Vec<String>,
    ) -> Result<Recipients, AppError> {
        let mut faults = Violations::default();
        if location_ids.len() > RECIPIENT_LOCATIONS_MAX {
            faults.push("location_ids", format!("must be at most {RECIPIENT_LOCATIONS_MAX}"));
        }
        let agency = self.permitted_agency(call, Action::ListRecipients, agency_id, &mut faults).await?;
        faults.into_result()?;
        let mut known: Vec<_> = location_ids.into_iter().filter(|id| ids::is_id(LOCATION_ID, id)).collect();
        known.sort_unstable();
        known.dedup();
        let recipients = self.store.recipients(&agency.id, &known).await?;
        recipients.ok_or_else(|| AppError::not_found(Resource::Agency, agency_id))
    }

    async fn user_even_deleted(&self, id: &str) -> Result<User, AppError> {
        let user = if ids::is_id(USER_ID, id) { self.store.user(id).await? } else { None };
        user.ok_or_else(|| AppError::not_found(Resource::User, id))
    }

    async fn check_writable(&self, api: UserApi, agency_id: &str) -> Result<(), AppError> {
        if api == UserApi::Legacy && self.effective_setting(agency_id).await?.enabled {
            return Err(AppError::LegacyUsersDisabled { agency_id: agency_id.to_owned() });
        }
        Ok(())
    }

    /// Notes each location that is not a living one of the agency.
    async fn check_locations(
        &self,
        agency_id: &str,
        wanted: &[String],
        faults: &mut Violations,
    ) -> Result<(), AppError> {
        // Too many are a fault already, and not worth the question.
        if wanted.len() > LOCATIONS_MAX {
            return Ok(());
        }
        let (known, strange): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|id| ids::is_id(LOCATION_ID, id));
        let live: HashSet<_> = if known.is_empty() {
            HashSet::new()
        } else {
            self.store.live_locations(agency_id, &known).await?.into_iter().collect()
        };
        for id in known.iter().filter(|id| !live.contains(*id)).chain(&strange).take(FAULTS_SHOWN) {
            faults.push("user.location_ids", format!("names no location of the agency: {}", shown(id)));
        }
        Ok(())
    }
}

/// The user, unless it is deleted.
fn present(user: User) -> Result<User, AppError> {
    if user.deleted_at.is_none() { Ok(user) } else { Err(AppError::not_found(Resource::User, &user.id)) }
}

/// Sorts the locations, without repeats.
fn normal(mut details: UserDetails) -> UserDetails {
    details.location_ids.sort_unstable();
    details.location_ids.dedup();
    details
}

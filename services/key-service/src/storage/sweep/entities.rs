//! One entity per table of migrations 2 to 4.

/// Table `sweep_plans`: one row per quarterly deletion.
pub mod plans {
    use sea_orm::entity::prelude::*;

    /// A plan.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_plans")]
    pub struct Model {
        /// `plan_…`.
        #[sea_orm(primary_key, auto_increment = false)]
        pub plan_id: String,
        /// D, unique; unix microseconds, as all instants here.
        pub delete_at: i64,
        /// Keys last used at or before it were listed.
        pub idle_since_at: i64,
        /// After it nothing is deleted any more.
        pub last_delete_at: i64,
        /// How long before its mark a stage's notices may begin.
        pub stage_window_ms: i64,
        /// 1 AWAITING_CONFIRMATION, 2 OPEN, 3 COMPLETED, 4 CANCELLED.
        pub state: i16,
        /// What it waits for or why it ended.
        pub state_reason: String,
        /// When it was made.
        pub created_at: i64,
        /// When an operator let it go ahead.
        pub confirmed_at: Option<i64>,
        /// When it was published.
        pub published_at: Option<i64>,
        /// When its last lot was closed.
        pub completed_at: Option<i64>,
        /// Keys listed.
        pub entry_count: i64,
        /// Impacted agencies.
        pub lot_count: i64,
        /// All ACTIVE keys when it was made.
        pub active_key_count: i64,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_lots`: one row per plan and impacted agency.
pub mod lots {
    use sea_orm::entity::prelude::*;

    /// A lot.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_lots")]
    pub struct Model {
        /// The plan.
        #[sea_orm(primary_key, auto_increment = false)]
        pub plan_id: String,
        /// The agency.
        #[sea_orm(primary_key, auto_increment = false)]
        pub agency_id: String,
        /// 1 OPEN, 2 HELD, 3 EXECUTED, 4 DEFERRED, 5 CANCELLED.
        pub state: i16,
        /// When it will be deleted.
        pub delete_at: i64,
        /// The plan's last date.
        pub last_delete_at: i64,
        /// Keys listed.
        pub entry_count: i64,
        /// 1 OPERATOR, 2 NO_AGENCY_ADMIN, 3 ALL_ADDRESSES_REFUSED; set exactly while HELD.
        pub hold_reason: Option<i16>,
        /// The hold, deferral or cancellation in words.
        pub state_reason: String,
        /// Up to this key no entry is PLANNED any more; empty: not begun.
        pub swept_through: String,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_receipts`: one row per lot and acknowledged stage.
pub mod receipts {
    use sea_orm::entity::prelude::*;

    /// A receipt.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_receipts")]
    pub struct Model {
        /// The plan.
        #[sea_orm(primary_key, auto_increment = false)]
        pub plan_id: String,
        /// The agency.
        #[sea_orm(primary_key, auto_increment = false)]
        pub agency_id: String,
        /// 1 D15, 2 D7, 3 D1.
        #[sea_orm(primary_key, auto_increment = false)]
        pub stage: i16,
        /// When the last notice was delivered.
        pub delivered_at: i64,
        /// When the receipt was recorded.
        pub acknowledged_at: i64,
        /// In-app notifications made.
        pub in_app_count: i64,
        /// Emails accepted.
        pub emails_accepted: i64,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_entries`: one row per listed key. All but the last three columns never change.
pub mod entries {
    use sea_orm::entity::prelude::*;

    /// An entry.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_entries")]
    pub struct Model {
        /// The plan.
        #[sea_orm(primary_key, auto_increment = false)]
        pub plan_id: String,
        /// The agency.
        #[sea_orm(primary_key, auto_increment = false)]
        pub agency_id: String,
        /// The key.
        #[sea_orm(primary_key, auto_increment = false)]
        pub key_id: String,
        /// The owning location; `None`: the agency itself.
        pub location_id: Option<String>,
        /// The key's name.
        pub display_name: String,
        /// The first characters of its secret.
        pub display_prefix: String,
        /// When the key was created.
        pub created_at: i64,
        /// Its last use when the plan was made.
        pub last_used_at: Option<i64>,
        /// 1 PLANNED, 2 RESCUED, 3 DELETED, 4 SPARED.
        pub state: i16,
        /// 1 USED, 2 REVOKED, 3 ROTATED; set exactly while RESCUED.
        pub cause: Option<i16>,
        /// When it left PLANNED.
        pub ended_at: Option<i64>,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_events`: the history, one row per event.
pub mod events {
    use sea_orm::entity::prelude::*;

    /// An event.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_events")]
    pub struct Model {
        /// From 1, without gaps.
        #[sea_orm(primary_key, auto_increment = false)]
        pub sequence: i64,
        /// When it happened.
        pub occurred_at: i64,
        /// The plan it belongs to.
        pub plan_id: String,
        /// What happened, as JSON.
        pub payload: String,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_head`: one row, where the history begins and ends, locked by whoever appends.
pub mod head {
    use sea_orm::entity::prelude::*;

    /// The ends of the history.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_head")]
    pub struct Model {
        /// Always 1.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i16,
        /// Of the last event; 0: there is none.
        pub sequence: i64,
        /// Of the first event that is to be had; those before it have been removed, or are about to be.
        pub first_sequence: i64,
        /// Which history this is: another database has another.
        pub history_id: String,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_subscribers`: one row per subscriber's name.
pub mod subscribers {
    use sea_orm::entity::prelude::*;

    /// A subscriber.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_subscribers")]
    pub struct Model {
        /// Its name.
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
        /// It has applied every event up to this one.
        pub sequence: i64,
        /// When it last subscribed.
        pub seen_at: i64,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Table `sweep_lease`: one row, who sweeps.
pub mod lease {
    use sea_orm::entity::prelude::*;

    /// The lease.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "sweep_lease")]
    pub struct Model {
        /// Always 1.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i16,
        /// The replica that holds it; empty: none.
        pub owner: String,
        /// Grows with each change of the holder and never falls.
        pub token: i64,
        /// Its last renewal, by the database's clock.
        pub renewed_at: i64,
        /// When it runs out, by the database's clock.
        pub expires_at: i64,
    }

    /// No relations.
    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

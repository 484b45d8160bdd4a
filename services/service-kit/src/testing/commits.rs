//! A say over every commit of a SQLite database: where a process may die between what it does and what it knows.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use sea_orm::sqlx::sqlite::SqlitePoolOptions;

/// Who is asked before each commit.
pub trait CommitJudge: Send + Sync + Debug {
    /// Whether what is about to be committed may be; `false` rolls it back. Called on the connection's own thread, which may be
    /// kept waiting: nobody hears of the commit before.
    fn allows(&self) -> bool;
}

thread_local! {
    static JUDGE: RefCell<Option<Arc<dyn CommitJudge>>> = const { RefCell::new(None) };
}

/// From now on the connections of every SQLite pool that this thread opens ask `judge`.
pub fn judge_commits(judge: Arc<dyn CommitJudge>) {
    JUDGE.set(Some(judge));
}

/// The thread's judge, if it has one.
pub(crate) fn judge_of_this_thread() -> Option<Arc<dyn CommitJudge>> {
    JUDGE.with_borrow(Clone::clone)
}

/// Lets a judge into the connections of a pool.
pub(crate) fn watch(pool: SqlitePoolOptions, judge: Option<Arc<dyn CommitJudge>>) -> SqlitePoolOptions {
    let Some(judge) = judge else { return pool };
    pool.after_connect(move |connection, _| {
        let judge = judge.clone();
        Box::pin(async move {
            connection.lock_handle().await?.set_commit_hook(move || judge.allows());
            Ok(())
        })
    })
}

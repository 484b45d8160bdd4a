//! Calls that may arrive twice are made again where one did not come through.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::calling;
use crate::status::deadline_exceeded;

/// Five attempts within some two seconds: a replica that restarts is replaced by another at once, and who is down for longer is not to
/// be flooded when it comes back.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(1))
    .with_max_times(4)
    .with_jitter();

/// Makes a call to `method`, and makes it again while it is answered UNAVAILABLE, after growing, random pauses, all `within` the time
/// that it may take. Each `attempt` is told what is left of that. Only for calls that may arrive twice.
///
/// # Errors
/// That of the last attempt; DEADLINE_EXCEEDED where it was under way when the time was over.
pub async fn retrying<T, F>(
    method: &'static str,
    within: Duration,
    attempt: impl Fn(Duration) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + within;
    let left = || end.saturating_duration_since(Instant::now());
    let once = async || {
        let left = left();
        let call = calling(method, || attempt(left));
        tokio::time::timeout(left, call).await.unwrap_or_else(|_| Err(deadline_exceeded()))
    };
    (|| once())
        .retry(PAUSES)
        .when(|status: &Status| status.code() == Code::Unavailable)
        // Who would wait past the end is told why, not that time is over.
        .adjust(|_, pause| pause.filter(|pause| *pause < left()))
        .notify(|status, pause| {
            let (pause_ms, reason) = (pause.as_millis(), status.message());
            tracing::info!(method, pause_ms, reason, "the call is made again");
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const METHOD: &str = "test.Mirror/WhoAmI";
    const WITHIN: Duration = Duration::from_secs(60);

    /// How a call ends whose attempts end so, one after the other, and how many there were.
    async fn ends(within: Duration, codes: &[Code]) -> (Code, usize) {
        let made = Cell::new(0);
        let attempt = |_| {
            let code = codes[made.replace(made.get() + 1)];
            async move { if code == Code::Ok { Ok(()) } else { Err(Status::new(code, "")) } }
        };
        let answer = retrying(METHOD, within, attempt).await;
        (answer.map_or_else(|status| status.code(), |()| Code::Ok), made.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_made_again_while_it_is_unavailable_and_no_more_than_five_times() {
        use Code::{DeadlineExceeded, Ok, Unavailable, Unknown};
        assert_eq!(ends(WITHIN, &[Unavailable, Unavailable, Ok]).await, (Ok, 3));
        assert_eq!(ends(WITHIN, &[Unavailable; 6]).await, (Unavailable, 5));
        for code in [DeadlineExceeded, Unknown, Code::Internal, Code::ResourceExhausted] {
            assert_eq!(ends(WITHIN, &[Unavailable, code]).await, (code, 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_outlasts_the_time_of_all() {
        let within = Duration::from_millis(300);
        let started = Instant::now();
        assert_eq!(ends(within, &[Code::Unavailable; 6]).await.0, Code::Unavailable);
        assert!(started.elapsed() < within, "what is told is why, not that time is over: {:?}", started.elapsed());

        let started = Instant::now();
        let told = Cell::new(Duration::ZERO);
        let silent = |left| {
            told.set(left);
            std::future::pending::<Result<(), Status>>()
        };
        let answer = retrying(METHOD, within, silent).await;
        assert_eq!(answer.expect_err("nobody answers").code(), Code::DeadlineExceeded);
        assert_eq!((started.elapsed(), told.get()), (within, within));
    }
}

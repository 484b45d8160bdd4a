//! Calls that may arrive twice are made again where one did not come through.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
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
    mut attempt: impl FnMut(Duration) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + within;
    let mut pauses = PAUSES.build();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let call = calling(method, || attempt(left));
        let answer = tokio::time::timeout(left, call).await.unwrap_or_else(|_| Err(deadline_exceeded()));
        let Some(status) = answer.as_ref().err().filter(|status| status.code() == Code::Unavailable) else {
            return answer;
        };
        let left = end.saturating_duration_since(Instant::now());
        let Some(pause) = pauses.next().filter(|pause| *pause < left) else { return answer };
        tracing::info!(method, pause_ms = pause.as_millis(), reason = status.message(), "the call is made again");
        tokio::time::sleep(pause).await;
    }
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

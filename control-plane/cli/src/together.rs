//! Several calls at once, their outcomes in the order of what they were for.

use std::future::Future;

use tokio::task::JoinSet;

use crate::error::CliError;

/// Calls under way at once: enough that the server writes many together.
const AT_ONCE: usize = 64;

/// Runs `call` for each of `all`, [`AT_ONCE`] at a time, and gives each result to
/// `done` in order. What follows a failure in the same group is done all the same.
///
/// # Errors
/// The first failure, of a call or of `done`; later groups are not begun then.
pub(crate) async fn together<T, R, F>(
    all: Vec<T>,
    call: impl Fn(T) -> F,
    mut done: impl FnMut(R) -> Result<(), CliError>,
) -> Result<(), CliError>
where
    F: Future<Output = Result<R, CliError>> + Send + 'static,
    R: Send + 'static,
{
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() {
        let mut calls = JoinSet::new();
        for (at, one) in all.by_ref().take(AT_ONCE).enumerate() {
            let call = call(one);
            calls.spawn(async move { (at, call.await) });
        }
        let mut results = calls.join_all().await;
        results.sort_by_key(|(at, _)| *at);
        let mut first = Ok(());
        for (_, result) in results {
            first = first.and(result.and_then(&mut done));
        }
        first?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_come_in_order_and_a_failure_ends_what_follows_its_group() {
        let call = |n: u32| async move {
            // The first of a group are the last to be done.
            for _ in 0..(200 - n) {
                tokio::task::yield_now().await;
            }
            match n {
                70 => Err(CliError::Other("no 70".to_owned())),
                n => Ok(n),
            }
        };
        let mut seen = Vec::new();
        let outcome = together((0..200).collect(), call, |n| {
            seen.push(n);
            Ok(())
        });
        assert_eq!(outcome.await.unwrap_err().to_string(), "no 70");
        let wanted: Vec<u32> = (0..128).filter(|n| *n != 70).collect();
        assert_eq!(seen, wanted);
    }
}

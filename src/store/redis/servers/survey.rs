//! Asks several servers the same question at once, without waiting long for one that hangs.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// How long to wait for the answers to a survey.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The longest time to wait.
    pub(crate) bound: Duration,
    /// How long to wait for more once there are enough answers. Without this time, the first
    /// answers would decide, and those may be outdated. A healthy server should answer within it.
    pub(crate) linger: Duration,
}

/// Gives each answer to `take`, which returns whether there are enough answers by now. Ends when
/// all servers have answered or the patience is over. The questions that are still open are then
/// cancelled, as they are if this is dropped.
pub(crate) async fn survey<T: Send + 'static>(
    questions: impl IntoIterator<Item: Future<Output = T> + Send + 'static>,
    Patience { bound, linger }: Patience,
    mut take: impl FnMut(T) -> bool,
) {
    let mut asked: JoinSet<T> = questions.into_iter().collect();
    let mut end = Instant::now() + bound;
    while let Ok(Some(answer)) = timeout_at(end, asked.join_next()).await {
        // An error means that the question panicked. That is no answer.
        if answer.is_ok_and(&mut take) {
            end = end.min(Instant::now() + linger);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const BOUND: Duration = Duration::from_secs(1);
    const LINGER: Duration = Duration::from_millis(150);

    /// Asks servers that take this many milliseconds. Returns which answered, and how long it took.
    async fn ask(millis: &[u64], enough: usize) -> (Vec<u64>, Duration) {
        let start = Instant::now();
        let mut answers = Vec::new();
        let questions = millis.iter().copied().map(async |millis| {
            sleep(Duration::from_millis(millis)).await;
            millis
        });
        let questions: Vec<_> = questions.map(Box::pin).collect();
        let patience = Patience {
            bound: BOUND,
            linger: LINGER,
        };
        survey(questions, patience, |answer| {
            answers.push(answer);
            answers.len() >= enough
        })
        .await;
        (answers, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_answer_are_heard_and_one_that_hangs_is_left_out() {
        let (answers, time) = ask(&[20, 10, 30], 1).await;
        assert_eq!(answers, [10, 20, 30]);
        assert!(time < Duration::from_millis(40), "{time:?}");

        let (answers, time) = ask(&[10, 60_000, 100], 1).await;
        assert_eq!(answers, [10, 100]);
        assert!(time < 2 * LINGER, "{time:?}");

        let (answers, time) = ask(&[10, 60_000, 60_000], 2).await;
        assert_eq!(answers, [10]);
        assert!((BOUND..2 * BOUND).contains(&time), "{time:?}");
    }
}

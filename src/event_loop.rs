//! Ends event loops without waiting for a name lookup that hangs.

use tokio::runtime::Runtime;

/// Runs `work` to its end, and then ends the event loop. Remaining tasks are dropped. A thread that
/// blocks, for example in a name lookup without an answer, is left behind: it ends by itself, or
/// with the process. Dropping the runtime would wait for it.
pub fn run<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    /// Longer than the test takes, even if it fails.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn ending_an_event_loop_drops_its_tasks_and_does_not_wait_for_a_blocked_thread() {
        let (release, released) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
        let (owner, owned) = mpsc::channel::<()>();
        let running = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let (begin, begun) = tokio::sync::oneshot::channel();
            run(runtime.expect("a runtime"), async {
                tokio::task::spawn_blocking(move || {
                    _ = begin.send(());
                    _ = released.recv_timeout(LONG);
                });
                tokio::spawn(async move {
                    let _owner = owner;
                    std::future::pending::<()>().await;
                });
                begun.await.expect("it blocks");
            });
            _ = end.send(());
        });
        let result = ended.recv_timeout(LONG / 2);
        drop(release);
        assert_eq!(result, Ok(()), "the event loop waits for the thread");
        let task = owned.recv_timeout(LONG);
        assert_eq!(task, Err(mpsc::RecvTimeoutError::Disconnected));
        running.join().expect("ends");
    }
}

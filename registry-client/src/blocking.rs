//! Work that blocks, on the runtime's threads for that: the one door.

/// Runs `work` on a blocking thread and gives its result. A panic in it goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends and took the work from its queue; whoever waits here is about to be dropped.
        Err(_) => std::future::pending().await,
    }
}

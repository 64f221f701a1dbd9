//! Work that falls due: done when it is, one task for each piece, until shutdown.

use std::time::Instant;

use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Does what `due` names, and asks it again at the time that it gives, when `wake` is notified, and when a piece is done.
/// What is under way at shutdown is broken off.
///
/// `due` bounds what is under way: it names no piece that has to wait for another to end, nor gives the time of such
/// a one, because it is asked again at that end.
pub(super) async fn keep_up<W>(
    what: &'static str,
    wake: &Notify,
    shutdown: CancellationToken,
    mut due: impl FnMut(Instant) -> (Vec<W>, Option<Instant>),
) where
    W: Future<Output = ()> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    loop {
        let (pieces, next) = due(Instant::now());
        for piece in pieces {
            under_way.spawn(piece);
        }
        let pause = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = pause => {}
            () = wake.notified() => {}
            Some(joined) = under_way.join_next() => {
                if let Err(error) = joined {
                    tracing::error!(%error, what, "a piece of work broke off");
                }
            }
        }
    }
}

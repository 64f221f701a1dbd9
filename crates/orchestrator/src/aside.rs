//! What blocks for a moment, done so that the runtime goes on.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does what blocks for a moment; the runtime goes on without this thread, where it has others.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    let can = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if can {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

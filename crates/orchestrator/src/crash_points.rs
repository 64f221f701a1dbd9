//! Places at which this process can be made to die, as a crash would have it die there.
//!
//! A test names one of [`POINTS`] on the daemon's command line, drives the daemon there, and looks at what the next start
//! makes of it. In a release build there is neither the option nor the check: `crash_point` is empty.

/// Every point, in the order of an agent's life. Those of a container's own steps are passed in the midst of others: a
/// container is brought up beside the launch that waits for it.
pub const POINTS: &[&str] = &[
    "slot.container-made",
    "slot.container-started",
    "slot.waits",
    "spawn.recorded",
    "spawn.tree-ready",
    "slot.taken",
    "slot.assigned",
    "spawn.prepared",
    "spawn.launched",
    "container.made",
    "container.started",
    "container.renamed",
    "spawn.init-started",
    "spawn.running-stored",
    "spawn.let-go",
    "retry.over",
    "retry.cleaned",
    "retry.requeued",
    "retry.pausing",
    "end.told",
    "end.work-home",
    "end.stored",
    "clean-up.salvaged",
    "clean-up.salvage-stored",
    "clean-up.container-gone",
    "clean-up.slot-gone",
    "clean-up.sandbox-gone",
    "clean-up.tree-aside",
    "clean-up.tree-gone",
    "clean-up.stored",
    "kill.shut",
    "kill.struck",
    "kill.proven",
    "kill.before-word",
    "kill.word-left",
    "kill.recording",
    "kill.killing-stored",
    "kill.killed-stored",
    "hold.set",
    "hold.before-durable",
    "hold.durable",
    "take-over.listed",
    "take-over.read",
    "take-over.examined",
    "take-over.handed-on",
];

#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<&'static str> = std::sync::OnceLock::new();

/// Makes this process die at a point. The first one stays.
#[cfg(debug_assertions)]
pub fn arm(point: &'static str) {
    let _ = ARMED.set(point);
}

/// Reads the name of a point.
///
/// # Errors
/// There is none of this name.
#[cfg(debug_assertions)]
pub fn parse(name: &str) -> Result<&'static str, String> {
    POINTS
        .iter()
        .find(|point| **point == name)
        .copied()
        .ok_or_else(|| format!("there is no crash point {name:?}"))
}

/// Dies here, by SIGKILL, if this is the point that is armed.
#[inline]
pub(crate) fn crash_point(point: &'static str) {
    #[cfg(debug_assertions)]
    if ARMED.get() == Some(&point) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The kernel may take another thread first: nothing is done from here on.
        loop {
            std::thread::park();
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = point;
}

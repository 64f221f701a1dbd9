//! What agents do in a storm: each writes the file by which its work is known again, and notes that it began.

use mosaic_types::AgentId;

use super::plan::Life;

/// The name of the file that an agent writes before anything else.
pub(super) fn work_file(agent: AgentId) -> String {
    format!("work-{agent}")
}

/// The file that gets a line for each time the agent was started.
pub(super) const STARTS: &str = "starts";

/// The script of an agent.
pub(super) fn script(agent: AgentId, life: Life) -> String {
    let work = work_file(agent);
    let then = match life {
        Life::Quick => "git add -A; git commit -qm done",
        Life::Long => "exec sleep 100000",
        Life::Commits => "git add -A; git commit -qm half; echo more > more; exec sleep 100000",
        Life::Forks => {
            "for n in 1 2 3; do setsid sh -c 'sleep 100000 & sleep 100000' & done; \
             (nohup sleep 100000 > nohup 2>&1 &); exec sleep 100000"
        }
        Life::Daemonises => "setsid sh -c 'sleep 100000 & exec sleep 100000' & exit 0",
        Life::Ignores => "trap '' HUP INT QUIT TERM USR1 USR2; while :; do sleep 1; done",
        Life::Breeds => "while :; do (sleep 0.3 & sleep 0.3 &) ; sleep 0.2; done",
        Life::Fails => "sleep 0.1; exit 3",
        Life::Hides => "exec env -i sleep 100000",
        Life::Talks => "seq 1 3000; git add -A; git commit -qm said",
    };
    format!("echo {agent} > {work}; echo start >> {STARTS}; echo at-work; {then}")
}

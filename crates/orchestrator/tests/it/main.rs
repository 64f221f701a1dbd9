//! The orchestrator's rooms against the real host: real sandboxes, real git.

#[cfg(test)]
mod budgets;
#[cfg(test)]
mod clocks;
#[cfg(debug_assertions)]
#[cfg(test)]
mod crash_points;
#[cfg(test)]
mod docker;
#[cfg(test)]
mod egress;
#[cfg(test)]
mod git_server;
#[cfg(test)]
mod https;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod offline;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod pushing;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod scope;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod spoke;
#[cfg(test)]
mod stopping;
#[cfg(test)]
mod worktree;

//! Whole systems, and the real programs they start.

#[cfg(test)]
mod answers;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod broken;
#[cfg(test)]
mod budgets;
#[cfg(test)]
mod claude_cli;
#[cfg(test)]
mod claude_remote;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod docker;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod leases;
#[cfg(test)]
mod peers;
#[cfg(test)]
mod pending;
#[cfg(test)]
mod salvaged;
#[cfg(test)]
mod signals;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod support;

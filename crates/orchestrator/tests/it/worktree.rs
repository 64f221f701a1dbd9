//! Working trees: real repositories, the real git CLI as the agent.

mod aside;
mod bundle;
mod harvest;
mod hostile;
mod https;
mod ignored;
mod odd;
mod patch;
mod preparing;
mod pushing;
mod remotes;
mod removal;
mod support;
mod untold;
mod wrecks;

//! Real sandboxes: real namespaces, real cgroups, real kills. Every test runs on both engines, where
//! they are installed.

mod adoption;
mod confinement;
mod dying;
pub(crate) mod egress;
mod launching;
mod output;
mod program;
pub(crate) mod rig;

//! Which launches are refused before anything is made of them.

use super::ProcessSandbox;
use crate::sandbox::{LaunchSpec, Network, SandboxError};

impl ProcessSandbox {
    pub(super) fn check(&self, spec: &LaunchSpec) -> Result<(), SandboxError> {
        spec.check()?;
        let refuse = |reason: String| Err(SandboxError::InvalidLaunch { reason });
        if matches!(spec.network, Network::Allow(_)) && !self.containment.egress {
            return refuse("this host keeps no agent to an allow-list".into());
        }
        let can = self.containment.limits;
        let wants = &spec.limits;
        for (wanted, can, name) in [
            (wants.memory_mb.is_some(), can.memory, "memory"),
            (wants.cpus.is_some(), can.cpu, "processor"),
            (wants.pids.is_some(), can.pids, "process"),
        ] {
            if wanted && !can {
                return refuse(format!("this host enforces no {name} limit"));
            }
        }
        if wants
            .cpus
            .is_some_and(|cpus| !cpus.is_finite() || cpus <= 0.0)
        {
            return refuse("the processor limit is not above zero".into());
        }
        Ok(())
    }
}

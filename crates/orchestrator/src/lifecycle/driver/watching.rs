//! One attempt from its go to its proven death, and what came of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mosaic_store::AttemptStart;
use mosaic_types::{
    Timestamp,
    agent::{DeathProof, Usage},
};
use tracing::warn;

use super::{Attempt, AttemptEnd, Driver, outcome};
use crate::{
    killswitch,
    lifecycle::{
        state::left_until,
        supervise::{self, Noticed, OutputReader},
    },
    runtime::{Ending, Outcome, PriceTable, RuntimeConfig, StreamReader, Watchdog},
    sandbox::{ExitStatus, SandboxHandle},
};

impl Driver {
    /// Watches the attempt to its end, and proves the end, unless a kill was ordered: that one proves itself.
    pub(super) async fn supervise(&mut self, handle: Arc<dyn SandboxHandle>) -> Attempt {
        let timeout = Duration::from_secs(
            self.record
                .options
                .timeout_secs
                .unwrap_or(self.around.limits.default_timeout_secs),
        );
        // By the wall clock, so that a restart does not give it more; nor does a clock that was set back meanwhile.
        let deadline = self.attempt_start().at.saturating_add(timeout);
        let left = left_until(deadline, timeout, Timestamp::now());
        let watchdog = Watchdog::new(&self.runtime_config(), Instant::now());
        let mut output = self.output();
        let tail = self.around.tails.watch(&self.layout.run_dir());
        let noticed = supervise::watch(
            &self.cell,
            handle.as_ref(),
            &mut output,
            watchdog,
            left,
            &tail,
            self.meter.as_ref(),
        )
        .await;
        if let Noticed::OverBudget(why) = &noticed {
            self.stop_for(why).await;
        }
        if self.cell.gate.ordered().is_some() {
            return Attempt::Ordered;
        }
        let proof = killswitch::kill_and_prove(handle.as_ref()).await;
        Attempt::Over(self.evaluate(noticed, proof, output).await)
    }

    fn attempt_start(&self) -> AttemptStart {
        self.record.attempt_start.unwrap_or(AttemptStart {
            at: self.record.status.queued_at,
            spool_offset: 0,
            usage_before: Usage::default(),
        })
    }

    /// The runtime's configuration. One that was taken out of it while its agent ran is read as plain output.
    fn runtime_config(&self) -> Arc<RuntimeConfig> {
        let config = self.around.runtimes.config(&self.record.status.runtime);
        config
            .cloned()
            .unwrap_or_else(|_| Arc::new(RuntimeConfig::shell()))
    }

    /// A reader of what the current attempt writes.
    pub(super) fn output(&self) -> OutputReader {
        let config = self.runtime_config();
        let prices = Arc::new(PriceTable::new(&config.prices));
        let start = self.attempt_start();
        OutputReader::new(
            self.layout.spool(),
            start.spool_offset,
            StreamReader::with_prices(config.output, prices),
            start.usage_before,
        )
    }

    /// Reads what an agent that was killed has used, if this daemon has not read any of it: it was killed while no
    /// daemon was there, or before it was found.
    pub(super) async fn read_if_nobody_did(&self) {
        let is_unread = self.cell.publisher.view().live.is_none();
        if !is_unread || self.meter.is_none() || self.record.attempt_start.is_none() {
            return;
        }
        let mut output = self.output();
        let read = tokio::task::spawn_blocking(move || {
            let read = output.read_rest();
            (output.live(), read)
        });
        match read.await {
            Ok((live, Ok(()))) => self.cell.publisher.live(live),
            Ok((_, Err(error))) => {
                warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "failed to read what a killed agent used");
            }
            Err(_) => {}
        }
    }

    /// Reads the rest of the output and says how the attempt came out.
    pub(super) async fn evaluate(
        &mut self,
        noticed: Noticed,
        proof: DeathProof,
        mut output: OutputReader,
    ) -> AttemptEnd {
        let mut never = None;
        let (ending, exit) = match noticed {
            Noticed::Exited(status) => (outcome::ending_of(status), Some(status)),
            Noticed::GaveUp(ending) => (ending, None),
            Noticed::Killed | Noticed::OverBudget(_) => (Ending::Killed, None),
            Noticed::NeverStarted(why) => {
                never = Some(outcome::never_started(why));
                (Ending::Unknown, Some(ExitStatus::NotStarted))
            }
        };
        let read = tokio::task::spawn_blocking(move || {
            let read = output.read_rest();
            (output, read)
        })
        .await;
        let outcome = match read {
            Ok((output, read)) => {
                if let Err(error) = read {
                    warn!(agent = %self.cell.agent_id, error = &error as &dyn std::error::Error, "failed to read the rest of the output");
                }
                let live = output.live();
                self.record.status.progress = live.progress.clone();
                self.record.status.usage = live.usage;
                self.cell.publisher.live(live);
                Outcome::of(ending, output.stream())
            }
            Err(_) => outcome::unread(ending),
        };
        self.cell.publisher.output_grew();
        AttemptEnd {
            outcome: outcome::attempt_outcome(never.unwrap_or(outcome), exit),
            exit,
            proof,
        }
    }
}

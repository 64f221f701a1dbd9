//! A short storm with a fixed seed; `just storm` has the long ones.

use mosaic_e2e::storm::{Containers, Orders, pass};

use crate::support;

const SEED: u64 = 20_261_128;

/// A5, A6, A8, A9, A11, A14, A22, A27, A29: whatever comes together, the killswitch wins and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_storm_breaks_nothing_that_must_hold() {
    println!("seed {SEED}");
    let containers = Containers::best().await;
    if !matches!(containers, Containers::AtItsOwn(_)) {
        support::skip("a Docker engine of the storm's own");
    }
    let report = pass(Orders {
        seed: SEED,
        operations: 120,
        containers,
        progress: false,
    })
    .await;
    assert!(report.violations.is_empty(), "{report:#?}");
    assert!(
        report.counts.crashes > 0 && report.counts.deaths > 0,
        "{report:#?}"
    );
    println!("{:?} in {:?}", report.counts, report.took);
}

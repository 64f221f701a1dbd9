//! What every backend must do, as named cases.
//!
//! A backend implements [`Backend`] and joins with one line in its tests, which makes one test of each case:
//!
//! ```ignore
//! mosaic_store::contract_suite!(MyBackend::fresh());
//! ```
//!
//! A case gets a backend that nobody else uses and that is empty.

pub mod agents;
pub mod audit;
pub mod claims;
pub mod connections;
pub mod hub;
pub mod kills;
pub mod samples;
pub mod spending;

use async_trait::async_trait;

use crate::{Limits, SharedStore, StoreError};

/// A place where a store can be opened again and again, like a data folder or a database of its own.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Opens the store. Whoever opens again has closed before.
    async fn open(&self, limits: Limits) -> Result<SharedStore, StoreError>;
}

/// How a case ends; a broken promise is a failed assertion.
pub type Outcome = Result<(), StoreError>;

/// Makes one test of each case of the contract. The argument makes a fresh [`Backend`], once for each test.
#[macro_export]
macro_rules! contract_suite {
    ($backend:expr) => {
        $crate::contract_suite!(@modules $backend;
            claims: a_claim_is_fresh_once_and_repeats_its_response,
                    the_same_id_with_another_digest_conflicts,
                    the_same_id_of_two_peers_is_two_messages,
                    claims_and_responses_survive_a_restart,
                    a_full_table_refuses_and_evicts_nothing,
                    a_peer_has_its_share_and_no_more,
                    unexpired_claims_are_told_after_a_restart,
                    a_sweep_forgets_only_what_expired,
                    a_message_whose_claim_was_swept_is_never_fresh_again,
                    one_of_many_concurrent_claims_is_fresh,
                    the_first_kept_response_stays,
                    a_response_needs_a_claim_and_has_a_bound;
            connections: a_connection_is_saved_at_its_next_version_only,
                    one_of_two_racing_changes_wins,
                    a_disconnected_connection_stays_so,
                    a_full_table_forgets_disconnected_ones_only,
                    a_full_table_keeps_the_connections_of_agents_that_have_not_ended,
                    an_invite_is_used_once_by_one_of_many,
                    an_expired_invite_makes_no_connection,
                    an_invite_survives_a_redemption_that_failed,
                    tokens_are_unique_by_name_and_can_be_deleted;
            agents: inserting_twice_answers_with_the_first,
                    no_agent_comes_by_a_connection_that_is_not_on_record,
                    every_move_is_as_the_table_says,
                    a_stale_version_moves_nothing,
                    an_ended_agent_takes_notes_and_stays_ended,
                    restart_finds_the_active_and_those_to_clean,
                    pages_are_newest_first_without_gaps,
                    retention_takes_the_oldest_cleaned_up_ones,
                    only_ended_and_cleaned_up_agents_are_forgotten,
                    a_full_table_refuses_agents;
            spending: a_total_counts_once_however_often_it_is_noted,
                    each_day_gets_what_is_new_on_it,
                    a_total_that_came_down_takes_back_what_it_added,
                    connections_and_the_operator_have_sums_of_their_own,
                    totals_and_sums_survive_a_restart,
                    what_is_not_on_record_is_passed_over,
                    a_forgotten_agent_leaves_its_days_sum,
                    a_sweep_forgets_old_days_only;
            hub: a_remote_agent_is_at_one_connection,
                    an_end_once_seen_stands,
                    a_refused_remote_agent_is_over_until_more_is_seen,
                    remote_pages_are_newest_first,
                    a_full_table_forgets_ended_remote_agents_only,
                    the_newest_commands_are_kept,
                    witnessed_heads_are_kept,
                    a_rewritten_or_cut_trail_is_a_contradiction;
            kills: leases_are_of_active_agents_and_survive_a_restart,
                    a_kept_kill_survives_a_restart_and_stays_settled,
                    a_full_table_keeps_the_connection_of_a_kept_kill,
                    a_full_table_of_kept_kills_refuses_and_evicts_nothing;
            audit: concurrent_appends_make_one_sound_chain,
                    the_head_is_that_of_the_last_entry_and_survives_a_restart,
                    what_was_refused_leaves_no_entry,
                    a_cut_trail_is_found_by_its_witness,
                    events_are_appended_together_in_order,
                    no_verb_is_refused_for_the_size_of_its_entry,
                    a_closed_store_refuses,
                    a_healthy_store_checks_out;
        );
    };
    (@modules $backend:expr; $($module:ident: $($case:ident),+;)+) => {
        $($crate::contract_suite!(@cases $backend; $module; $($case),+);)+
    };
    (@cases $backend:expr; $module:ident; $($case:ident),+) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let outcome = $crate::contract::$module::$case(&$backend).await;
                    outcome.expect("the case runs to its end");
                }
            )+
        }
    };
}

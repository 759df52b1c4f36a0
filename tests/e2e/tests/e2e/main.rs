//! cryo end to end: a real containerd, real containers, the real CRIU.
//!
//! `cargo test -p cryo-e2e --test e2e [FILTER]`, as root. See `tests/e2e/README.md`.
#![forbid(unsafe_code)]

mod apparmor;
mod checkpoint;
mod compat;
mod conformance;
mod cri;
mod crictl;
mod criu;
mod debug;
mod exec;
mod failures;
mod footprint;
mod hostile;
mod images;
mod inspect;
mod kubelet;
mod lazy;
mod lifecycle;
mod live;
mod memory;
mod metrics;
mod newer;
mod options;
mod parents;
mod podman;
mod pods;
mod podspec;
mod preflight;
mod restart;
mod restore;
mod screens;
mod spec;
mod stdio;
mod systemd;
mod transfer;
mod upgrade;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use cryo_e2e::conformance::TOOLS as CRITEST;
use cryo_e2e::context::Context;
use cryo_e2e::crictl::TOOLS as CRICTL;
use cryo_e2e::events::Events;
use cryo_e2e::runtime::Runtime;
use cryo_e2e::test;

/// Why a test of `SystemdCgroup` has no meaning with the Go shim.
const OWN_HANDLER: &str = "the handler with SystemdCgroup is one of cryo's";

/// For tests that run one program after the other, on a machine that does much besides.
const LONG: Duration = Duration::from_secs(180);

/// Why most tests of options have no meaning with the Go shim.
const NO_OPTIONS: &str =
    "the Go shim reads neither annotations nor a node's configuration for its options";
/// Why what cryo looks for has no meaning with the Go shim.
const NO_PREFLIGHT: &str =
    "the Go shim looks for nothing: criu finds it, with the container frozen, or never";

/// Why the live commands are not tried with the Go shim.
const NO_CRYOCTL: &str = "cryoctl is for containers of cryo, and says so";

/// Why the last event of a container is not waited for with the Go shim.
const DELETE_EVENT_LOST: &str =
    "the Go shim ends after Delete without waiting for its event to be taken: it is lost at times";

/// Why a container that waits for its restore does not outlive containerd with the Go shim.
const RESTORE_FORGOTTEN: &str =
    "the Go shim lists no pids of a task that waits for its restore: containerd throws it away";

/// Checks the events of a deleted container: `wanted`, then `delete`, and nothing else.
async fn ended_with(
    cx: &Context,
    events: &Events,
    id: &str,
    wanted: &[&str],
) -> anyhow::Result<()> {
    let mut wanted = wanted.to_vec();
    if cx.differs(DELETE_EVENT_LOST) {
        events.wait_for(id, "/tasks/exit").await?;
    } else {
        events.wait_for(id, "/tasks/delete").await?;
        wanted.push("delete");
    }
    let mut topics = events.topics(id);
    if cx.runtime() == Runtime::Runc && topics.last().is_some_and(|t| t == "delete") {
        topics.pop();
    }
    ensure!(topics == wanted, "{topics:?}, wanted {wanted:?}");
    Ok(())
}

fn main() -> ExitCode {
    let mut tests =
        vec![
        test!(lifecycle::exit_codes_come_through_ctr),
        test!(lifecycle::a_signal_is_128_and_its_number),
        test!(lifecycle::short_lived_processes_start_before_they_exit),
        test!(lifecycle::events_come_in_order),
        test!(lifecycle::twenty_containers_at_once),
        test!(lifecycle::kill_ends_a_container),
        test!(lifecycle::pause_stops_and_resume_goes_on),
        test!(lifecycle::a_paused_container_can_be_killed),
        test!(lifecycle::every_process_is_signalled_and_killed_when_paused),
        test!(lifecycle::pids_lists_every_process),
        test!(lifecycle::a_running_task_is_not_deleted),
        test!(lifecycle::start_answers_once_the_program_runs)
            .not_on_runc("runc's start does not wait until its init has become the program"),
        test!(lifecycle::start_twice_is_refused),
        test!(lifecycle::create_twice_already_exists),
        test!(lifecycle::unknown_ids_are_not_found),
        test!(lifecycle::a_created_task_is_deleted_without_a_start),
        test!(lifecycle::wait_answers_until_the_delete),
        test!(lifecycle::a_resize_without_a_terminal_is_no_error),
        test!(lifecycle::a_command_that_does_not_exist_is_an_error),
        test!(lifecycle::the_bundle_names_the_shim),
        test!(lifecycle::orphans_end_with_their_container),
        test!(exec::output_and_exit_codes_come_through_ctr),
        test!(exec::environment_cwd_and_user),
        test!(exec::rights_and_places_are_the_containers),
        test!(exec::in_a_restored_container),
        test!(exec::failures_say_why_and_leave_nothing),
        test!(exec::ids_and_states_are_checked),
        test!(exec::their_exits_come_before_the_containers),
        test!(exec::terminals_have_their_clients_size),
        test!(exec::a_restored_terminal_goes_on),
        test!(exec::a_checkpoint_leaves_them_running),
        test!(spec::variations_are_as_with_runc),
        test!(spec::mounts_users_and_scheduling_are_as_with_runc),
        test!(spec::a_terminal_has_its_size_and_its_user),
        test!(spec::the_session_keyring_is_the_containers_own),
        test!(spec::a_root_shows_the_owners_of_a_user_namespace),
        test!(spec::info_claims_what_is_true).not_on_runc("it is about what cryo claims"),
        test!(spec::an_idmapped_mount_is_not_restored)
            .not_on_runc("runc's restore needs a checkpoint to get as far"),
        test!(stdio::a_mebibyte_of_output_is_complete),
        test!(stdio::stderr_is_apart_from_stdout),
        test!(stdio::piped_stdin_reaches_its_end_through_ctr),
        test!(stdio::close_io_ends_stdin),
        test!(stdio::close_io_ends_the_stdin_of_an_exec),
        test!(stdio::no_stdio_is_no_error),
        test!(stdio::a_hundred_mebibytes_are_unharmed),
        test!(stdio::a_slow_reader_gets_all),
        test!(stdio::a_stuck_reader_holds_its_own_container_only),
        test!(stdio::ctr_logs_to_a_file_and_to_a_logger),
        test!(stdio::a_restored_container_has_a_logger),
        test!(stdio::a_terminal_has_a_logger),
        test!(stdio::a_logger_that_does_not_start_is_an_error),
        test!(systemd::pods_live_in_scopes_of_their_slice)
            .with_systemd()
            .needs(CRICTL)
            .not_on_runc(OWN_HANDLER),
        test!(systemd::a_checkpoint_is_restored_into_a_new_scope)
            .with_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(systemd::an_archive_is_restored_into_the_slice_of_its_new_pod)
            .with_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(systemd::an_oom_kill_is_told)
            .with_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(systemd::a_shim_that_is_killed_leaves_no_scope)
            .with_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(systemd::paths_that_are_none_are_refused)
            .with_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(systemd::without_systemd_the_option_is_refused)
            .without_systemd()
            .not_on_runc(OWN_HANDLER),
        test!(apparmor::a_profile_is_kept).needs_here(apparmor::missing),
        test!(debug::the_state_is_told)
            .not_on_runc("the Go shim tells its stacks, and has a socket for Go's profiler"),
        test!(debug::the_option_root_moves_the_state)
            .not_on_runc("the Go shim refuses a ConfigPath; its Root is runc's"),
        test!(metrics::are_there_until_the_delete),
        test!(metrics::of_a_restored_container),
        test!(metrics::an_oom_kill_is_told_before_the_exit),
        test!(metrics::an_oom_kill_after_a_restore_is_told),
        test!(metrics::each_oom_kill_of_a_child_is_told_once),
        test!(metrics::cri_says_oom_killed),
        test!(metrics::limits_go_up_and_down),
        test!(metrics::an_update_keeps_what_it_does_not_name),
        test!(metrics::updates_that_cannot_be_are_refused),
        test!(pods::two_containers_share_one_shim),
        test!(pods::exit_codes_and_logs_reach_cri),
        test!(pods::every_bundle_of_a_pod_names_the_shim),
        test!(pods::the_own_runtime_name_runs_pods),
        test!(pods::a_pod_that_is_stopped_ends_its_containers),
        test!(pods::a_killed_shim_ends_its_pod).not_on_runc(
            "the app containers run on without a shim, and the pod can never be removed",
        ),
        test!(footprint::private_memory_is_a_part_of_the_go_shims)
            .not_on_runc("it runs both beside each other anyway"),
        test!(footprint::threads_are_few_at_rest_and_in_a_checkpoint)
            .fails_on_runc("Go has ten threads and more"),
        test!(checkpoint::from_running_leaves_running),
        test!(checkpoint::with_exit_stops),
        test!(checkpoint::of_a_paused_task_leaves_it_paused),
        test!(checkpoint::of_stopped_processes_leaves_them_stopped)
            .not_on_runc("criu waits for the stopped process, for ever, with the container frozen"),
        test!(checkpoint::through_ctr_leaves_running),
        test!(checkpoint::through_ctr_with_exit_stops),
        test!(checkpoint::folder_is_flat_and_logs_go_to_the_work_path),
        test!(checkpoint::ten_in_a_row_leak_nothing),
        test!(checkpoint::of_many_at_once),
        test!(restore::under_the_same_id_after_exit),
        test!(restore::under_a_new_id_through_ctr),
        test!(restore::create_runs_nothing_until_start),
        test!(restore::prepared_and_deleted_leaves_nothing),
        test!(restore::can_be_waited_for_and_killed),
        test!(restore::a_second_checkpoint_restores_too),
        test!(restore::a_cgroup_namespace_is_kept),
        test!(restore::memory_is_the_same),
        test!(restore::many_processes_come_back),
        test!(restore::on_another_node),
        test!(restore::twice_from_one_checkpoint),
        test!(restore::with_rights_of_all_kinds),
        test!(restore::of_other_users).needs_here(restore::no_cap_sys_resource),
        test!(restore::with_a_process_that_an_exec_left),
        test!(cri::archive_has_what_the_kubelet_wants),
        test!(cri::checkpointctl_reads_the_archive),
        test!(inspect::cryos_archives_are_shown_as_by_checkpointctl).within(LONG),
        test!(inspect::runcs_archives_are_shown_as_by_checkpointctl),
        test!(inspect::podmans_archives_are_shown_as_by_checkpointctl).within(LONG),
        test!(inspect::podmans_archives_with_crun_as_well).within(LONG),
        test!(memory::memparse_is_as_checkpointctls),
        test!(newer::cryos_archives).needs(newer::TOOLS).within(LONG),
        test!(newer::runcs_archives).needs(newer::TOOLS).within(LONG),
        test!(newer::podmans_archives_and_the_command_line)
            .needs(newer::TOOLS)
            .within(LONG),
        test!(newer::podmans_archives_with_crun)
            .needs(newer::TOOLS)
            .within(LONG),
        test!(memory::gdb_opens_a_core_file),
        test!(memory::diff_finds_the_pages_that_changed),
        test!(cri::restored_in_a_new_pod_goes_on),
        test!(cri::restored_on_another_node_goes_on),
        test!(cri::restored_is_checkpointed_again),
        test!(cri::the_own_runtime_name_checkpoints_and_restores),
        test!(images::cri_restores_from_a_registry),
        test!(images::each_runtime_restores_the_others)
            .not_on_runc("its containers are of both runtimes"),
        test!(images::containerds_store_keeps_and_gives_an_image),
        test!(images::a_killed_writer_leaves_nothing_half_made),
        test!(images::podman_restores_from_an_image),
        test!(images::converted_archives_are_read_and_restored),
        test!(crictl::a_life_from_runp_to_rmp).needs(CRICTL),
        test!(crictl::exec_and_attach).needs(CRICTL),
        test!(crictl::port_forward).needs(CRICTL),
        test!(crictl::stats_and_update).needs(CRICTL),
        test!(crictl::a_checkpoint_is_exported_and_created_from).needs(CRICTL),
        test!(crictl::inspect_says_oom_killed).needs(CRICTL),
        test!(crictl::events_tell_a_life).needs(CRICTL),
        test!(podspec::devices_have_their_rules).needs(CRICTL),
        test!(podspec::masked_and_read_only_paths).needs(CRICTL),
        test!(podspec::shared_memory_is_the_pods).needs(CRICTL),
        test!(podspec::own_cgroups_are_seen_in_each_pid_mode).needs(CRICTL),
        test!(podspec::cgroups_made_by_a_container_go_with_it).needs(CRICTL),
        test!(options::unknown_and_foreign_annotations_end_a_create).not_on_runc(NO_OPTIONS),
        test!(options::the_request_an_annotation_and_the_node_set_them)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(options::a_pods_annotations_reach_them).not_on_runc(NO_OPTIONS),
        test!(options::an_annotation_that_names_a_configuration_is_not_heard),
        test!(options::link_remap).not_on_runc(NO_OPTIONS),
        test!(options::ghost_limit).not_on_runc(NO_OPTIONS),
        test!(options::ext_unix_sk).not_on_runc(NO_OPTIONS),
        test!(options::tcp_established)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(options::tcp_close).alone().not_on_runc(NO_OPTIONS),
        test!(options::tcp_established_can_be_refused_by_a_restore).not_on_runc(NO_OPTIONS),
        test!(options::tcp_skip_in_flight).not_on_runc(NO_OPTIONS),
        test!(options::empty_ns).not_on_runc(NO_OPTIONS),
        test!(options::shell_job).not_on_runc(NO_OPTIONS),
        test!(options::memory_that_is_not_tracked_is_refused).not_on_runc(NO_OPTIONS),
        test!(options::auto_dedup_of_a_restore)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(lazy::it_runs_before_its_memory_is_there).within(LONG).not_on_runc(NO_OPTIONS),
        test!(lazy::forks_and_moves_find_their_memory).not_on_runc(NO_OPTIONS),
        test!(lazy::a_checkpoint_waits_for_the_memory).not_on_runc(NO_OPTIONS),
        test!(lazy::a_delete_ends_the_server).not_on_runc(NO_OPTIONS),
        test!(lazy::the_end_of_the_server_is_the_containers).not_on_runc(NO_OPTIONS),
        test!(lazy::the_shim_killed).not_on_runc(NO_OPTIONS),
        test!(lazy::a_memory_limit_ends_it).not_on_runc(NO_OPTIONS),
        test!(lazy::what_cannot_be_is_refused_at_once).not_on_runc(NO_OPTIONS),
        test!(parents::a_chain_restores_where_the_node_allows_it)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(parents::pre_dumps_and_what_changed_since)
            .alone()
            .needs_here(parents::no_soft_dirty)
            .not_on_runc(NO_OPTIONS),
        test!(options::page_server).alone().not_on_runc(NO_OPTIONS),
        test!(transfer::criu_fetches_it_on_the_other_node).not_on_runc(NO_CRYOCTL),
        test!(transfer::meanwhile_each_call_has_its_answer)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(transfer::what_ends_it_lets_the_container_go_on)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(options::manage_cgroups)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(options::an_lsm_that_is_not_in_use_is_named)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(options::timeout).not_on_runc(NO_OPTIONS),
        test!(kubelet::checkpoints_in_slices_of_systemd)
            .alone()
            .within(Duration::from_secs(600))
            .with_systemd()
            .needs(kubelet::TOOLS)
            .not_on_runc(OWN_HANDLER),
        test!(kubelet::runs_probes_checkpoints_and_restores)
            .alone()
            .within(Duration::from_secs(600))
            .needs(kubelet::TOOLS),
        test!(failures::checkpoint_of_a_created_task_is_refused),
        test!(failures::checkpoint_of_a_stopped_task_is_refused),
        test!(failures::restore_from_a_missing_folder),
        test!(failures::restore_from_a_truncated_inventory),
        test!(failures::restore_without_the_pages),
        test!(failures::restore_from_an_empty_folder),
        test!(failures::disk_full_during_a_dump),
        test!(failures::image_folder_that_cannot_be_made),
        test!(failures::a_deadline_does_not_leave_the_container_frozen).fails_on_runc(
            "containerd resumes with the context that has expired, and the Go shim does not \
             thaw by itself: the container stays frozen (reference/containerd.md 0, 14)",
        ),
        test!(failures::a_deadline_before_the_resume_thaws)
            .fails_on_runc("nobody resumes: the container stays frozen"),
        test!(failures::a_second_checkpoint_at_once_is_refused).alone(),
        test!(failures::the_client_killed_in_a_dump)
            .alone()
            .fails_on_runc("nobody resumes: the container stays frozen"),
        test!(failures::a_client_without_a_deadline_killed_before_its_resume).alone(),
        test!(failures::a_client_killed_in_a_dump_to_containerds_folder)
            .alone()
            .fails_on_runc("nobody resumes: the container stays frozen"),
        test!(failures::a_client_that_never_resumes_has_a_limit)
            .alone()
            .fails_on_runc("nobody resumes: the container stays frozen"),
        test!(preflight::obstacles_are_told_by_name).not_on_runc(NO_PREFLIGHT),
        test!(preflight::what_criu_can_save_is_not_refused).not_on_runc(NO_PREFLIGHT),
        test!(preflight::options_allow_what_they_name).not_on_runc(NO_PREFLIGHT),
        test!(preflight::the_lock_is_for_connections).not_on_runc(NO_PREFLIGHT),
        test!(preflight::a_user_whose_limits_are_secret).not_on_runc(NO_PREFLIGHT),
        test!(preflight::the_host_s_namespaces).not_on_runc(NO_PREFLIGHT),
        test!(preflight::cryoctl_says_what_it_cannot_check).not_on_runc(NO_PREFLIGHT),
        test!(failures::criu_missing).alone(),
        test!(failures::criu_too_old).alone(),
        test!(live::a_checkpoint_with_options_goes_on).not_on_runc(NO_CRYOCTL),
        test!(live::a_pod_by_its_name).not_on_runc(NO_CRYOCTL),
        test!(live::one_container_of_a_pods_archive).not_on_runc(NO_CRYOCTL),
        test!(live::a_checkpoint_that_asks_for_too_much_is_refused).not_on_runc(NO_CRYOCTL),
        test!(live::ps_tells_what_is_in_the_way).not_on_runc(NO_CRYOCTL),
        test!(live::verify_tells_what_is_in_the_way).not_on_runc(NO_CRYOCTL),
        test!(live::ctrl_c_and_the_deadline_give_it_up)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(live::a_copy_that_comes_too_late_is_refused)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(live::doctor_finds_what_is_wrong)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(live::installed_used_and_uninstalled)
            .alone()
            .not_on_runc(NO_CRYOCTL),
        test!(screens::of_live_commands_are_what_is_printed)
            .alone()
            .without_systemd()
            .not_on_runc(NO_CRYOCTL),
        test!(failures::criu_killed_in_a_dump).alone(),
        test!(failures::criu_killed_in_a_restore)
            .alone()
            .not_on_runc(
                "runc leaves the half-restored process, its cgroups and CRIU's mounts on the node, \
             and no later restore under that id works",
            ),
        test!(failures::the_shim_killed).alone(),
        test!(failures::the_shim_killed_while_frozen).alone(),
        test!(hostile::more_rights_are_refused),
        test!(hostile::the_nodes_namespaces_are_refused),
        test!(hostile::other_mounts_are_refused),
        test!(hostile::what_is_no_plain_file_is_refused),
        test!(hostile::filters_of_another_profile_are_for_the_node_to_accept)
            .alone()
            .not_on_runc(NO_OPTIONS),
        test!(hostile::root_for_a_user_is_refused),
        test!(restart::containers_live_through_sigterm).alone(),
        test!(restart::containers_live_through_sigkill).alone(),
        test!(restart::an_exit_while_containerd_is_away_is_seen).alone(),
        test!(restart::pods_live_through_sigkill).alone(),
        test!(restart::restored_containers_live_through_it).alone(),
        test!(restart::every_phase_outlives_a_killed_containerd)
            .alone()
            .fails_on_runc(RESTORE_FORGOTTEN),
        test!(restart::a_pause_that_nobody_waits_for_is_undone)
            .alone()
            .not_on_runc("the Go shim has no debug socket to see the Pause wait in"),
        test!(restart::what_never_ran_is_deleted_after_it)
            .alone()
            .fails_on_runc(RESTORE_FORGOTTEN),
        test!(upgrade::of_the_shim_under_running_pods)
            .alone()
            .not_on_runc("the Go shim is the node's own program, in a root that all nodes share"),
        test!(upgrade::options_need_a_shim_that_sees_them)
            .alone()
            .not_on_runc("the options are cryo's"),
        test!(conformance::critest)
            .alone()
            .within(Duration::from_secs(1200))
            .needs(CRITEST)
            .not_on_runc("`make conformance` runs critest against both"),
    ];
    tests.extend(compat::tests());
    cryo_e2e::runner::main(tests)
}

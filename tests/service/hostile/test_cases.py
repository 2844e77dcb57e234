"""What hostile clients do, and the tests that show what becomes of it. Each test that is named here exists."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests/service/hostile"

CASES = {
    "come without a token, or with one that nobody knows": (
        "tests/service/keys/test_grpc.py::test_every_secret_that_opens_nothing_hears_the_same_and_is_counted",
        "tests/service/http/test_guard.py::test_without_a_valid_key_nothing_answers",
    ),
    "guess tokens by the time that refusals take": (
        "tests/unit/core/test_tokens.py::test_every_wrong_secret_takes_the_same_way",
        "tests/unit/core/test_tokens.py::test_two_daemons_look_secrets_up_in_different_orders",
    ),
    "put a token into the URL": ("tests/service/keys/test_http.py::test_a_token_in_the_url_is_none_and_is_in_no_log",),
    "send ids with slashes, line ends, NUL or a megabyte": (
        f"{HERE}/test_names.py::test_no_call_takes_what_is_no_id_or_asks_the_engine_about_it",
        f"{HERE}/test_http.py::test_bytes_that_are_no_http_and_requests_made_at_random_are_never_our_fault",
    ),
    "ask for privilege, documented or not": (
        "tests/service/test_daemon_hostile.py::test_what_policy_does_not_grant_is_refused_by_rule",
        "tests/service/http/test_requests.py::test_what_may_not_be_had_is_refused_by_name",
        "tests/unit/runtime/test_docker_options_properties.py::test_every_other_plan_gets_the_profile_or_is_refused",
    ),
    "mount the root, the engine's socket or a link": (
        "tests/service/test_daemon_hostile.py::test_what_policy_does_not_grant_is_refused_by_rule",
        "tests/unit/core/test_host_paths.py::test_a_link_anywhere_on_the_way_is_refused_and_named",
    ),
    "name images that are not on the list, or addresses instead": (
        "tests/service/test_policy.py::test_images_are_pulled_by_who_may_and_from_the_list",
        "tests/integration/docker_runtime/test_images.py::test_what_is_no_image_name_reaches_no_engine",
    ),
    "name an image with hostile metadata": (
        "tests/integration/docker_runtime/test_images.py::test_an_image_whose_volume_would_hide_the_system_is_unusable",
        "tests/integration/docker_runtime/test_profile.py::test_a_hostile_images_metadata_is_without_effect",
    ),
    "set odd, reserved or huge environment variables": (
        "tests/unit/core/test_policy_texts.py::test_loader_and_reserved_variables_are_malformed",
        "tests/unit/core/test_policy_texts.py::test_values_that_no_environment_can_hold_are_malformed",
        "tests/unit/core/test_policy_texts.py::test_an_environment_has_a_bound_in_entries_and_bytes",
    ),
    "set labels that look like the daemon's": (
        f"{HERE}/test_names.py::test_labels_that_are_none_are_refused",
        "tests/unit/core/test_policy_texts.py::test_labels_in_our_namespace_or_out_of_bounds_are_malformed",
    ),
    "choose a working directory that hides the system": (
        "tests/unit/core/test_policy_texts.py::test_a_working_directory_that_is_odd_or_the_systems_is_malformed",
    ),
    "upload archives with links, devices, bombs or a cut end": (
        "tests/service/guest/test_archives.py::test_a_hostile_archive_is_refused_with_its_reason",
        "tests/service/guest/test_archives.py::test_a_bomb_is_held_by_the_sandboxs_limits",
        "tests/service/guest/test_archives.py::test_an_archive_that_is_cut_leaves_only_whole_files",
        "tests/service/http/test_requests.py::test_a_hostile_archive_is_refused",
    ),
    "name files by paths that lead out, block or are none": (
        "tests/service/test_daemon_hostile.py::test_paths_that_cannot_be_read_are_refused",
        "tests/service/guest/test_files.py::test_what_is_no_regular_file_is_refused_at_once",
    ),
    "flip links while files move": (
        "tests/service/guest/test_file_races.py::test_a_directory_that_becomes_a_link_meanwhile_is_not_followed",
    ),
    "upload without end, or stop in the middle": (
        f"{HERE}/test_memory.py::test_uploads_that_stall_cost_little_and_leave_no_file",
        f"{HERE}/test_http.py::test_a_body_that_comes_too_slowly_is_given_up_though_it_never_stops",
        "tests/service/test_edge_standard.py::test_an_upload_that_stalls_is_ended_and_writes_nothing",
        "tests/service/guest/test_files.py::test_a_file_larger_than_the_limit_is_no_space",
        "tests/service/http/test_wire.py::test_of_an_upload_that_is_cut_no_half_file_stays",
    ),
    "send messages that are too large": (
        "tests/service/test_edge_calls.py::test_a_message_of_more_than_4_mib_is_refused",
        "tests/service/http/test_requests.py::test_a_body_without_an_announced_size_is_bounded_too",
    ),
    "send messages or JSON with more entries than anybody can look at": (
        f"{HERE}/test_stalls.py::test_every_list_of_every_request_is_bounded",
        f"{HERE}/test_stalls.py::test_calls_with_crowded_lists_or_too_many_bytes_are_refused_whatever_they_are",
        f"{HERE}/test_stalls.py::test_a_json_text_of_too_many_parts_is_refused",
    ),
    "send headers that are too large or too many": (
        f"{HERE}/test_connections.py::test_headers_beyond_their_limit_are_refused",
        "tests/service/http/test_wire.py::test_a_large_head_is_refused",
    ),
    "send messages that are damaged, cut or nested deeply": (
        f"{HERE}/test_fuzz.py::test_no_message_breaks_the_daemon_or_makes_it_fail",
        "tests/service/test_daemon_hostile.py::test_mutated_messages_are_refused_and_break_nothing",
        "tests/service/http/test_openapi.py::test_no_request_is_answered_with_a_fault_of_ours",
    ),
    "send text that is none": (
        "tests/service/test_edge_calls.py::test_malformed_bytes_are_the_callers_fault",
        f"{HERE}/test_names.py::test_parameters_that_are_no_json_are_the_callers_fault",
    ),
    "ask for timeouts that are negative, infinite or no number": (
        "tests/service/test_daemon_hostile.py::test_malformed_sandboxes_are_refused_by_field",
        "tests/unit/core/test_policy.py::test_a_timeout_of_zero_asks_for_the_longest",
        "tests/unit/core/test_policy_any_request.py::test_any_timeout_is_within_the_sandboxs_maximum_or_a_typed_error",
    ),
    "ask for absurd limits": (
        "tests/service/test_daemon_hostile.py::test_malformed_sandboxes_are_refused_by_field",
        "tests/unit/core/test_policy.py::test_a_number_that_is_none_is_malformed_and_named",
    ),
    "open hundreds of connections and say nothing": (
        f"{HERE}/test_connections.py::test_five_hundred_silent_connections_are_closed_and_nobody_waits",
        "tests/service/http/test_wire.py::test_a_client_that_does_not_finish_its_request_is_cut_off",
        f"{HERE}/test_http.py::test_the_metrics_of_the_daemon_are_there_however_many_connections_say_nothing",
    ),
    "hold a thousand connections and streams": (
        f"{HERE}/test_memory.py::test_a_thousand_connections_and_a_thousand_idle_streams_are_shed_and_cost_little",
        f"{HERE}/test_connections.py::test_a_connection_too_many_is_closed_and_those_before_it_are_served",
        f"{HERE}/test_http.py::test_a_connection_too_many_is_closed_and_counted",
    ),
    "take every place for calls": (
        f"{HERE}/test_calls.py::test_calls_that_last_leave_places_for_calls_that_do_not",
        f"{HERE}/test_calls.py::test_calls_whose_message_never_comes_give_their_places_back",
        f"{HERE}/test_calls.py::test_one_connection_over_tcp_takes_its_share_and_another_one_is_served",
        f"{HERE}/test_http.py::test_requests_that_last_leave_places_for_those_that_do_not",
    ),
    "begin calls and take them back at once": (
        f"{HERE}/test_calls.py::test_calls_that_are_taken_back_at_once_leave_nothing",
    ),
    "flood the connection with frames": (
        f"{HERE}/test_connections.py::test_a_flood_of_pings_ends_its_connection",
        f"{HERE}/test_connections.py::test_a_flood_of_frames_costs_its_sender_and_nobody_else",
    ),
    "read nothing of endless output, or of whole answers": (
        f"{HERE}/test_memory.py::test_endless_output_that_nobody_reads_stays_where_it_is_made",
        f"{HERE}/test_memory.py::test_answers_that_nobody_takes_have_a_room_for_all_of_them",
        f"{HERE}/test_http.py::test_a_client_that_takes_no_answer_loses_its_connection",
        f"{HERE}/test_http.py::test_answers_that_nobody_takes_end_where_there_is_no_more_room",
    ),
    "cancel at any moment": (
        f"{HERE}/test_calls.py::test_calls_that_are_cancelled_at_any_moment_leave_nothing_behind",
        f"{HERE}/test_calls.py::test_creations_that_are_cancelled_at_any_moment_leave_no_sandbox_that_nobody_knows",
    ),
    "vanish": (
        "tests/service/test_edge_streams.py::test_a_client_that_vanishes_detaches_and_does_not_kill",
        "tests/service/http/test_wire.py::test_a_call_whose_client_left_is_ended",
    ),
    "set a deadline shorter than the program": (
        "tests/service/test_edge_streams.py::test_the_calls_deadline_ends_the_call_and_not_the_execution",
    ),
    "send one request many times at once": (
        f"{HERE}/test_calls.py::test_one_request_a_hundred_times_at_once_is_one_sandbox_and_one_run",
        "tests/service/test_life.py::test_a_request_that_is_sent_again_to_the_next_daemon_is_the_same_sandbox",
        "tests/service/http/test_requests.py::test_an_id_can_be_chosen_once",
    ),
    "ask for more than their share": (
        "tests/service/test_policy.py::test_sandboxes_and_their_rate_have_quotas_and_the_answer_says_when_again",
        "tests/unit/core/test_quotas.py::test_the_rate_of_creations_is_limited_for_each_identity_and_says_when_again",
    ),
    "send a browser": (
        "tests/service/http/test_guard.py::test_web_pages_of_others_are_refused_and_learn_nothing",
        "tests/service/http/test_guard.py::test_only_known_names_of_this_server_are_answered",
        "tests/service/http/test_requests.py::test_a_body_that_is_no_good_is_refused",
    ),
    "scrape metrics, and fill them with names": (
        "tests/service/keys/test_tls.py::test_metrics_beyond_loopback_need_a_token_of_who_may_watch",
        f"{HERE}/test_names.py::test_names_that_clients_make_up_are_no_labels_of_metrics",
    ),
    "forge lines of the log": (
        f"{HERE}/test_names.py::test_the_log_has_one_object_for_each_line_whatever_clients_write",
    ),
    "ask reflection and health without a token": (
        "tests/service/keys/test_grpc.py::test_strangers_learn_nothing_from_health_reflection_or_methods_that_are_not_there",
    ),
    "speak plaintext, old TLS, or with another's certificate": (
        "tests/service/keys/test_tls.py::test_plaintext_and_old_tls_are_refused_and_1_3_is_preferred",
        "tests/service/keys/test_tls.py::test_a_client_refuses_a_daemon_that_it_cannot_trust",
    ),
    "send input faster than it is read": (
        f"{HERE}/test_memory.py::test_input_that_no_program_reads_stays_at_its_client",
    ),
    "start a thousand executions in one sandbox": (
        f"{HERE}/test_calls.py::test_a_thousand_executions_in_one_sandbox_are_as_many_as_there_may_be",
    ),
    "start a second daemon beside the first": (
        "tests/service/test_daemon.py::test_a_second_daemon_is_refused_before_it_touches_anything",
        "tests/service/test_daemon.py::test_a_tcp_port_in_use_is_refused_with_a_hint",
        f"{HERE}/test_connections.py::test_a_port_is_never_shared_with_a_second_server",
    ),
    "send source that explodes its compiler": (
        f"{HERE}/test_names.py::test_code_that_explodes_its_compiler_ends_in_its_sandbox",
    ),
    "make listings too large for everybody": (
        f"{HERE}/test_names.py::test_however_much_there_is_to_show_a_page_fits_into_a_message",
        f"{HERE}/test_names.py::test_a_request_that_would_fill_everybodys_listing_is_refused",
        f"{HERE}/test_names.py::test_there_are_not_more_pools_than_one_answer_can_show",
    ),
    "are five hundred where there are few descriptors": (
        f"{HERE}/test_connections.py::test_with_few_descriptors_five_hundred_clients_are_shed_and_all_goes_on",
    ),
    "have the operator load a bad configuration": (
        "tests/service/test_daemon_reload.py::test_a_file_with_a_mistake_changes_nothing_and_is_counted",
        "tests/service/test_policy.py::test_a_bad_file_changes_nothing_is_logged_with_its_line_and_counted",
    ),
}


def names_in(path: str) -> set[str]:
    """The names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("case", CASES)
def test_what_clients_do_is_tested(case: str):
    for test in CASES[case]:
        path, _, name = test.partition("::")
        assert name in names_in(path)

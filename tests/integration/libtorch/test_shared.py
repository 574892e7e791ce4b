"""What both servers promise: the Python server's own tests, asked of the LibTorch server."""

from __future__ import annotations

import pytest

from integration.runtime import test_lifecycle, test_probes, test_protocol

pytestmark = [pytest.mark.nightly]

server = test_protocol.server

SHARED = {
    test_protocol: [
        "test_paths_and_codes",
        "test_metrics_are_those_of_the_design",
        "test_pipelined_answers_keep_the_order_of_the_requests",
        "test_chunked_body_and_expect_continue",
        "test_an_offer_to_upgrade_is_declined_by_answering",
        "test_limits",
        "test_http_1_0_and_connection_close_end_the_connection",
        "test_a_large_body_in_pieces",
        "test_images_and_labels",
        "test_a_full_queue_answers_429_and_recovers",
        "test_jobs_of_clients_that_left_are_skipped",
        "test_a_model_that_raises_is_a_500_that_says_so",
        "test_liveness_notices_a_stuck_model",
    ],
    test_lifecycle: [
        "test_live_but_not_ready_while_loading",
        "test_a_bad_artifact_is_never_ready",
        "test_sigterm_while_loading_ends_at_once",
        "test_sigterm_while_the_model_is_stuck_says_so",
        "test_sigterm_under_load_loses_no_request",
        "test_requests_in_flight_are_answered_and_idle_connections_closed",
    ],
    test_probes: ["test_an_artifact_without_golden_data_says_so", "test_names_of_experiments_that_a_client_makes_up_are_bounded"],
}
globals().update({name: getattr(module, name) for module, names in SHARED.items() for name in names})

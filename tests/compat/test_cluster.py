"""The same scripts with the services deployed on a cluster of two agents: what clients see does not change."""

import re

import test_batches
import test_errors
import test_http
import test_http2
import test_lifecycle
import test_mixins
import test_routes
import test_sse
from harness import Difference, on_cluster

test_paths = on_cluster(test_http.test_routes)
test_answers = on_cluster(test_http.test_answers)
test_transport = on_cluster(test_http.test_transport)
test_request_limit = on_cluster(test_http.test_request_limit)
test_mixins_codecs = on_cluster(test_mixins.test_codecs)
test_mixins_redis = on_cluster(test_mixins.test_redis)
test_appended_stages = on_cluster(test_routes.test_appended_stages)
test_stream_chain = on_cluster(test_sse.test_stream_chain)
test_stream_worker_dies = on_cluster(test_sse.test_stream_worker_dies)
test_search_path = on_cluster(test_lifecycle.test_search_path)
test_over_http2 = on_cluster(test_http2.test_http2)
test_error_texts = on_cluster(test_errors.test_texts)
OF_THE_NODE = Difference(
    "* / folder", "services", re.compile("[0-9a-f]{64}"), "announced: code runs where its node keeps it"
)
test_about = on_cluster(test_errors.test_about, differs=[OF_THE_NODE])
test_shared_stages = on_cluster(test_routes.test_shared_stages)
test_one_bad_among_32 = on_cluster(test_batches.test_one_bad_among_32)
test_results = on_cluster(test_batches.test_results)
test_events = on_cluster(test_sse.test_events)
test_stream_errors = on_cluster(test_sse.test_stream_errors)

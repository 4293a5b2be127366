"""How Gunicorn serves: its own settings, read by name."""

from __future__ import annotations

import os

bind = os.environ.get("BIND", "0.0.0.0:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# Uvicorn's own `uvicorn.workers` is deprecated; this is its successor, a package of its own.
worker_class = "uvicorn_worker.UvicornWorker"
# The application is made once and forked: nothing in it connects, or starts a thread, before that.
preload_app = True
# In a container whose file system is read-only; and never on a disk, where it would stall the workers.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
# Seconds for requests under way, less than the 30 after which Docker and systemd kill.
graceful_timeout = 20
# The application logs each request, with its id: see logs.py.
accesslog = None
# Whatever runs in front terminates TLS, and is the only one that reaches us.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
# From Gunicorn 25 on it would be made below a home folder, which nobody has here.
control_socket_disable = True

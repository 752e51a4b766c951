"""Files that say which endpoints' policy is in the kernel, for those who wait for them: Calico's endpoint status.

`ADD` answers only then anyway; the files are for programs that look at the directory, and are written where a network's
configuration names or implies it.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from tortie.agent.cni.identity import Workload, status_file
from tortie.model.workload import WorkloadEndpointSpec

log = logging.getLogger(__name__)


def write(directory: Path | None, workload: Workload, spec: WorkloadEndpointSpec) -> None:
    """Whole or not at all. The container is connected already: a file that cannot be written fails nothing."""
    if directory is None:
        return
    status = {
        "ifaceName": spec.interface_name,
        "mac": spec.mac,
        "ipv4Nets": [net for net in spec.ip_networks if ":" not in net],
        "ipv6Nets": [net for net in spec.ip_networks if ":" in net],
    }
    path = directory / status_file(workload)
    staged = path.with_name(f".{path.name}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(status), encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        log.warning("endpoint_status_dir: %s: %s", path, error.strerror)


def remove(directory: Path | None, workload: Workload) -> None:
    """A file that cannot be removed fails nothing: the endpoint is gone all the same."""
    if directory is not None:
        path = directory / status_file(workload)
        for each in (path, path.with_name(f".{path.name}")):  # the second was being written when an agent died
            with suppress(OSError):
                os.unlink(each)

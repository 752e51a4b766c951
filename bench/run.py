"""`python -m bench.run [NAME...]`: all measurements or some, and one table of what came out.

Exit status 1 when something could not be measured. A missed target is a figure, not a failure.
"""

from __future__ import annotations

import argparse
import sys

from bench.progress import run

SCRIPTS = (
    "cni_add", "add_steps", "throughput", "policy_throughput", "lab_up", "calc_scale", "policy_scale",
    "policy_scale_large", "ipam", "convergence", "bgp_scale", "encap", "plugins", "store", "kube_list",
    "agent_load", "fanout", "flannel", "flannel_udp", "services", "idle",
)  # fmt: skip


def main() -> int:
    about = "Figures against peers, as tables and JSON."
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=about)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SCRIPTS)}; none: all")
    names: list[str] = parser.parse_args().names
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(SCRIPTS)}")
    return run(names or SCRIPTS)


if __name__ == "__main__":
    sys.exit(main())

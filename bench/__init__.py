"""Measurements, one script per subject, each against a peer or a physical limit that is measured in the same run.

    sudo .venv/bin/python -m bench.run            all
    sudo .venv/bin/python -m bench.run cni_add    one

A script prints a table and writes `results/NAME.json`; the single samples are beside it, in `results/raw/`. Ours and
the peer take turns, so that whatever else the machine does meets both; what is reported are medians and their ratio.
Everything happens in network namespaces that the script makes and takes away again. A new script is a module with
`NAME`, `STEPS` and `measure(advance) -> Report`, and its name in `run.py`.
"""

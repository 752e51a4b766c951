"""IP address management: who holds which address, and how a node comes to hold the next one.

    pool  10.0.0.0/16                       what an operator gives
     └─ block  10.0.3.64/26                 cut from a pool; an IPAMBlock once it is in use
         │      ▲ BlockAffinity node1       the claim of a node; its pods get their addresses from here
         └─ 10.0.3.70 ◄── IPAMHandle        what a pod holds, by block, so that it can be released without knowing where

`owner`, `names`, `block`, `pools`, `check` and `usage` decide on values. `ledger`, `affinity`, `search`, `fill` and
`release` are the thin flows that read, decide and write by compare-and-swap; `assign` is where callers come in, with
`tunnel` for what nodes hold themselves, `vm` for virtual machines and `retire` for pools that go. Nothing depends on a
lock: any number of processes on any number of nodes may work at once, and any of them may die anywhere.
"""

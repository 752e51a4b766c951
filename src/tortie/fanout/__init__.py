"""The fan-out server, in Typha's place: one set of watches on the datastore, many agents that watch here.

    shelf.py     what is known of a kind: its objects, encoded once, and the log of what happened to it. Pure
    feed.py      keeps a shelf as the datastore has it: list, watch, and now and then a look whether all was told
    session.py   one client: what it asked for, and how far it has read in the logs
    server.py    listens, greets, counts, says goodbye
    observed.py  metrics and health
    main.py      the program

The client, and what the two say to each other, is `tortie.store.fanout`.
"""

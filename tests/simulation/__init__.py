"""Everything between `metadata.set()` and a subscriber on one event loop with a clock of its own, under faults that a seed draws.

Real are: the calls of the SDK and its buffer, the worker's link with its holding, outbox and channel, the client's transport and
subscriptions, the server's handlers, committer, engine, store (SQLite), hub and streams. Simulated are: time (`loop`), the network
(`network`), processes that are killed (`server`, `worker`), and the users (`users`). What they did and saw is judged against a
sequential model (`oracle`).

In half of the seeds two or three servers share the database (`server`), each with its own memory, clock and feed, and a balancer
(`network`) leads each request to one of them.

    PYTHONPATH=tests python -m simulation --seed 7 --trace    replays one seed and shows what happened
    PYTHONPATH=tests python -m simulation --seeds 0:100000    looks for a seed that fails; --servers 3: with so many servers
"""

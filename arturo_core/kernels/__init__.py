"""Fast forms of the pure functions: the same five passes over the parameters, each held to them by one parity test.

A step of the compact form is two passes (observe, apply), a step of the full form two and the evaluations of the
dual between them (observe, secular …, apply). ``reference`` writes them with the pure functions and nothing
else; ``eager`` does the same in place on cache-sized chunks; ``compiled`` sends ``reference`` through
``torch.compile``.
"""

"""A fleet's certificates, tokens and revocations.

``names``, ``private``, ``tokens`` and ``revoked`` need the standard library only. ``certificates`` and ``authority`` need
``cryptography``, which servers and developers' machines have and boards do not: a board hands its PEM files to gRPC as they
are (``transport/rpc/credentials.py``).
"""

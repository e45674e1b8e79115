"""HTTP server of any sandbox: a sessions API, and SandboxFusion's wire format for verl and ReTool users.

    app.py       the FastAPI application: sessions, leases, health, metrics
    sessions.py  live sessions, idle expiry, the bounded queue
    fusion.py    `/run_code`, `/run_jupyter`, `/v1/ping`
    program.py   what `/run_code` runs inside the session: stdin, files, return code
    peers.py     calls for the sessions of another worker
    guard.py     bearer token, web pages, body size, client disconnect
    connection.py  half-open connections
    workers.py   one or several processes behind one port

Protects: the token is compared in constant time, bodies and queues are bounded, what a client left behind is closed.
Does not: encrypt (put a TLS proxy in front of anything but loopback) or tell tenants apart (one token, one trust
domain).
"""

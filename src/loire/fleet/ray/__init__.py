"""Replicas kept alive by Ray Serve. All of Ray that Loire uses is in this folder, and nothing else
imports it until somebody asks for replicas: an extra, `pip install 'loire[ray]'`.

Ray places replicas, restarts them, scales and updates them. Requests do not pass through its
proxies or routers: each front has one stream to each replica.
"""

"""Hubs as processes of their own: killed, restarted, used as the README says."""

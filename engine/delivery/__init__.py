"""Delivering: pools of per-host tasks, SMTP sessions, mail transactions, and the verdict on every recipient."""

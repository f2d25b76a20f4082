"""Workloads, engines, worker process, runner, statistics, the profile."""

"""The deciding rooms in virtual time, workloads for them and for a live daemon, and one report for both."""

"""Things made with this repository that are not part of it: a policy, a workload, programs."""

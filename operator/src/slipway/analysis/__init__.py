"""Is the canary as good as it should be? Pure statistics and verdicts, and the sources that their numbers come from.

Only `sources` and `webhook` do I/O; everything else is plain functions over plain data, so that `decide` may use it.
The methods and their sources are in docs/design/0008-analysis.md.
"""

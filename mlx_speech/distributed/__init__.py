"""Several processes, on one machine or more, that work on the same: ranks of `mx.distributed`.

Nothing is imported here: every command line asks `launched` whether there are others.
"""

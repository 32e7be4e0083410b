"""The same work on a cluster: in pieces, each on any machine, into the same folders."""

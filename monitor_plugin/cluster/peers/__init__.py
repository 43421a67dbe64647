"""The other nodes of the cluster, and what this node publishes of itself."""

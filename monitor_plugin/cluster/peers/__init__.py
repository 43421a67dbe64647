"""Announces this node to its peers, and records their announcements."""

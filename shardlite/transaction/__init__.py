"""Transactions over shards: what they touched, how it is kept, and how it is made again."""

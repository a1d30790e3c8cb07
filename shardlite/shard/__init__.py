"""The seam: what the layers above may ask of one shard."""

from shardlite.shard.protocol import Session, Shard
from shardlite.shard.sqlite import SqliteShard

__all__ = ["Session", "Shard", "SqliteShard"]

"""Redis bus: wakes over pub/sub, one channel a stream. Nothing that matters is kept in Redis.

A server that is a cluster is found out by itself: wakes go by sharded pub/sub then, each channel at
the node that owns its slot, and every end has one connection to each node. What a node can't carry
now (it is gone, or its slots move) is lost, and doubted.

Origins beat on one channel more, which a cluster tells all its nodes, so that edges miss one that
is cut off. The two ends are used alone, by origins and by edges.
"""

from shared.redis_publisher import RedisPublisher
from shared.redis_subscriber import RedisSubscriber

__all__ = ["RedisPublisher", "RedisSubscriber"]

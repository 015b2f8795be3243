"""Building blocks that several components share: jagged operations, pooling, feed-forward, initialisation."""

"""One unit's queue: sequences, the pure scheduler, and its asynchronous driver."""

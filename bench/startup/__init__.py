"""Fresh processes that measure how long they take to start."""

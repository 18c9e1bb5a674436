"""Fresh processes that tell how long they take to start."""

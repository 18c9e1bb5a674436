"""The loss across ranks: what is compared, the processes that measure it, and a model of GPUs."""

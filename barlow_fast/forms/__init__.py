"""The algorithms of the losses, each written once over any kernel set."""

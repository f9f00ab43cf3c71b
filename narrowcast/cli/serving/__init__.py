"""Parts of ``narrowcast serve``: each has its options and makes what the server takes."""

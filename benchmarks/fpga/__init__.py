"""What the benchmark of the hls target is made of: models, the peer, and sparsity."""

"""What a network costs: multiply-adds, parameters, sparsity, bytes, latency. 1 MAC = one multiply-add; FLOPs = 2 x MACs."""

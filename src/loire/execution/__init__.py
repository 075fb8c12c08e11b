"""Computing a step: KV tensors, flat-batch inputs, the model runner, the sampler."""

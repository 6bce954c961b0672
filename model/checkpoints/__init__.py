"""Files to named tensors: where a model is, what its files hold, and how its tokenizer is written."""

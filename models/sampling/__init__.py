"""From logits to tokens: penalties, grammar masks, draws, logprobs, for a whole batch at once.

The parameters of a request are ``store.payloads.sampling_params``."""

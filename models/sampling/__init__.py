"""From logits to tokens, for a whole batch at once: penalties, grammar masks, sampling, logprobs.

The parameters of a request are in ``store.payloads.sampling_params``."""

"""The task ``image_zero_shot``: images and labels in words in. It has no models of its own."""

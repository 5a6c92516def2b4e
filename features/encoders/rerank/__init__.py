"""The task ``rerank``: a query and documents in, a relevance score for each document out."""

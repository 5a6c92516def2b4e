"""The contestants' applications. They run in environments of their own and import nothing of Headrace."""

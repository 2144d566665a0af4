"""Is a model any good: residuals and what chance makes of them."""

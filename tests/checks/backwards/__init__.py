"""Attention backwards written by hand, in the styles in which people write them: each right, and wrong in several ways."""

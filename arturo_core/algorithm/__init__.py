"""The algorithm: one file a form, and the trust region that both share."""

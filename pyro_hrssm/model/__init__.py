"""The generative model p and its guide q (Kim, Ahn and Bengio 2019)."""

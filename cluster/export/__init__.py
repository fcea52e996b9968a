"""Datasets in the forms that others read: a Hugging Face folder, WebDataset shards, and what evaluators look for."""

"""NUMINA, the method: count-accurate text-to-video generation without training (arXiv 2604.08546).

Pure functions on tensors and arrays: prompts -> tokens -> heads -> layout -> refine -> guidance. No model, no cluster.
"""

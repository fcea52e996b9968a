"""The fused reading: cross-attention says where a noun is, self-attention which tokens are one thing.

`responses.py` brings maps to one scale, `pieces.py` cuts a frame into instances, `links.py` follows them over the clip,
`reading.py` is the whole of it. Source: ours, after the published use of both kinds of
attention (arXiv 2604.08546 §3.2).
"""

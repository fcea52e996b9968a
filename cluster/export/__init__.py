"""Datasets in the forms that others read: a Hugging Face folder, WebDataset shards, and what evaluators look for."""

from cluster.export.config import FORMATS, ExportConfig, Exported
from cluster.export.job import export

__all__ = ["FORMATS", "ExportConfig", "Exported", "export"]

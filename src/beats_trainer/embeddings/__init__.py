"""Embeddings of many clips: computing them, and keeping them on disk."""

from beats_trainer.embeddings.store import EmbeddingStore, open_store

__all__ = ["EmbeddingStore", "open_store"]

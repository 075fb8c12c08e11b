"""Calling tools: how a family of models writes calls, how they are offered, read and enforced."""

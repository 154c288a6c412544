"""Composable parts: each answers one question about tokens and knows no neighbour."""

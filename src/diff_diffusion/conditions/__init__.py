"""Conditions: what a user may ask for, by kind. A new kind is one small file that registers itself as "condition/…"."""

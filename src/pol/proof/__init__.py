"""The world of bytes and decisions: no torch, no disk, no clock, no network."""

"""Attention: the processors that capture and guide, and the engines that give them their rows."""

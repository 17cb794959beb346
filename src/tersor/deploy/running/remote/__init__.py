"""Engines that are other servers: asked over HTTP, trusted with nothing, watched like those in processes of ours."""

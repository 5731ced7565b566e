"""The sample world: drawn phantoms, their captions, and a tiny BLIP-2 that has never read them."""

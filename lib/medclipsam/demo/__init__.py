"""The embedded demo: phantoms, and the trainers of the small CLIP and SAM that ship with the package."""

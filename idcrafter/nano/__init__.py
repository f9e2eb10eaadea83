"""The nano family: a small complete stack in the file formats of the real one, trained by this package on a
procedural world.

``world`` draws puppets, ``recipes`` trains the parts, ``python -m idcrafter.nano`` runs the recipes, ``weights``
holds what they made.
"""

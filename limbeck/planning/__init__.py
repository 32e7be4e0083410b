"""What a recipe will take in memory, time and money, and which method suits, before anything is run.

Reading order: work (pieces) -> flops, roofline, calibrate (what a piece takes on a machine) -> scene, priced (the pieces of a recipe, part by part)
-> costs -> candidates, advice -> plan -> asked (the command) and picture.
"""

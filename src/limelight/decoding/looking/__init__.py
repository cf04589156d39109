"""Parts of looking again (:mod:`limelight.decoding.methods.look_again`).

localisers/   where the model should look: one score per position of the prompt
gates         when a second look is worth its cost
fields        from positions to places in the original picture, sound or film
regions       what to look at: windows with the most of a field
views         the prompts that show these windows, and their cached streams
search        which views are taken, and in which order
joins         how the answers of several views become one
"""

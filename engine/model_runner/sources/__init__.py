"""Where weights come from: a Hugging Face folder, a GGUF file, the embedded default, or random numbers.

GGUF files, and so the embedded model, are converted once into a Hugging Face folder in the cache; what is
loaded in the end is always a folder, or a dummy. Nothing here opens a network connection or runs code that
comes with a model.
"""

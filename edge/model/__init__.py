"""The network: one config, one StableLM, loading an artefact."""
